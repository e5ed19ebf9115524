"""``worker``, whose threads are greenlets of gevent's."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from tests.chaos.worker import main  # noqa: E402 - what it imports is to be patched

if __name__ == "__main__":
    main()

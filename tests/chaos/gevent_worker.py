"""``worker`` with greenlets of gevent for threads."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from tests.chaos.worker import main  # noqa: E402 - after the patch

if __name__ == "__main__":
    main()

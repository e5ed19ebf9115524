"""Patch, then run the tests: arguments after the library's name go to pytest."""

from __future__ import annotations

import os
import sys
import warnings


def patch(library: str) -> None:
    """Make later threads green threads."""
    if library == "gevent":
        from gevent import monkey

        monkey.patch_all()
    else:
        # It warns on import that it is deprecated.
        warnings.filterwarnings("ignore", "\\s*Eventlet is deprecated")
        import eventlet

        eventlet.monkey_patch()


def main() -> int:
    """Patch, then run pytest."""
    library, *arguments = sys.argv[1:]
    # Plugins that happen to be installed here import trio, which fails with eventlet's sockets.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    from tests.transport.green.lane import FILES, Lane

    options = ["-p", "pytest_timeout", "-o", f"testpaths={FILES}"]
    return int(pytest.main([*options, *arguments], plugins=[Lane(library)]))


if __name__ == "__main__":
    patch(sys.argv[1])  # before any other import
    sys.exit(main())

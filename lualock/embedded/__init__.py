"""Start or join a real server without set-up, on a unix socket in a private folder.

``start()`` returns an ``Embedded`` whose ``url`` works with redis-py; Celery's broker wants
``redis+socket://`` and the path instead of ``unix://``. All processes of one user share one server.
The server ends, and its folder is removed, when the last of them is done or dead.

LUALOCK_EMBEDDED_DIR chooses the folder, an absolute, short path. The server creates and removes it,
and processes with the same folder share a server. LUALOCK_SERVER chooses the server program.
LUALOCK_EMBEDDED=0 forbids ``lualock.connect()`` to use this server.
"""

from __future__ import annotations

from lualock.embedded.binaries import Binary, every, find
from lualock.embedded.client import Embedded, start

__all__ = ["Binary", "Embedded", "every", "find", "start"]

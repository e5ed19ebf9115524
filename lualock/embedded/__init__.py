"""A real server without set-up: start it, or join it, on a unix socket in a private folder.

``start()`` gives an ``Embedded`` whose ``url`` any Redis client understands. All processes of one
user share one server; it ends, and its folder goes, when the last of them is done or dead.

LUALOCK_EMBEDDED_DIR chooses the folder (an absolute, short path; it is made and removed, and
processes share a server by sharing it). LUALOCK_SERVER chooses the server program.
"""

from __future__ import annotations

from lualock.embedded.binaries import Binary, every, find
from lualock.embedded.client import Embedded, start

__all__ = ["Binary", "Embedded", "every", "find", "start"]

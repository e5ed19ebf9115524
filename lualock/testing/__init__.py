"""Test programs that use lualock: a pytest plugin, which pytest finds on its own.

``plugin`` has the fixtures, ``kit`` what a test checks and does, ``other_process`` a process that
holds a lock, and ``holder`` the program of that process. Nothing is simulated: the server is real
(``pip install 'lualock[embedded]'``), and so are the processes.
"""

from lualock.testing.kit import LockKit
from lualock.testing.other_process import OtherProcess

__all__ = ["LockKit", "OtherProcess"]

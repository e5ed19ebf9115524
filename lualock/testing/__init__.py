"""For the tests of programs that use lualock: a pytest plugin, which pytest finds by itself.

``plugin`` has the fixtures, ``kit`` what a test asks and does, ``elsewhere`` another process
that holds a lock, and ``holder`` its program. Nothing is simulated: the server is a real
one (``pip install 'lualock[embedded]'``), and so are the processes.
"""

from lualock.testing.elsewhere import OtherProcess
from lualock.testing.kit import LockKit

__all__ = ["LockKit", "OtherProcess"]

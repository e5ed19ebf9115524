"""Core tests under green threads: ``python -m tests.transport.green gevent`` (or ``eventlet``).

The process is patched before any other import (``__main__``). Then pytest runs the variant for
threads of the tests of waiting, loss and faults, and tests of what only green threads can meet
(``cases``). ``tests/transport/test_green.py`` runs this as a part of the suite.
"""

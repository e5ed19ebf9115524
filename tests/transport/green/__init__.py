"""Core tests under green threads: ``python -m tests.transport.green gevent`` (or ``eventlet``).

The process is patched before anything else is imported (``__main__``). Then pytest runs the
threads' variant of the tests of waiting, loss and faults, and what only green threads can meet
(``situations``). ``tests/transport/test_green.py`` runs this as a part of the suite.
"""

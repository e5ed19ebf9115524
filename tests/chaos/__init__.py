"""Chaos on real processes: ``make chaos MINUTES=10``.

Dozens of processes (``workers``) take locks on a real server (``worker``). A fault injector with a
seed kills and pauses workers and the server (``injector``), and an observer reads the server
meanwhile (``observer``). All write event logs in the format of ``tests/simulation/checker.py``
(``event_log``), which judges them at the end (``round``).

Real processes are not deterministic: the seed decides what they and the injector do, but not the
outcome.
"""

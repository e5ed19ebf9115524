"""Chaos on real processes: ``make chaos MINUTES=10``.

Dozens of processes take locks on a real server (``worker``), a saboteur with a seed kills, stops
and disturbs them and the server (``saboteur``), an observer looks at the server meanwhile
(``observer``). All of them write diaries in the format of ``tests/simulation/checker.py``
(``diary``), which judges them when everything is over (``round``).

Real processes are not deterministic: the seed decides what each of them is going to do and what the
saboteur does, not what comes of it.
"""

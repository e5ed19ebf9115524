"""All scenarios, in the order in which they run and are reported.

Each is a module: ``run`` measures and answers rows, ``targets`` says what must show in them, and
``TITLE``, ``WORDS`` and ``COLUMNS`` are its table (a column: its head, and a row's field with a
format); ``MISSING``, where it has one, is what stands for ``None``.

``SECONDS`` is the one place that says how long each may take, in a whole run and in a quick one.
Most measure rounds until their time is used; what does a fixed work (``many_locks``: a million
leases) has here what that takes. The report has both beside each other.
"""

from __future__ import annotations

from typing import Any

from bench import (
    client_cost,
    contention,
    coroutines,
    fairness,
    hand_over,
    job_systems,
    jobs,
    many_locks,
    promptness,
    races,
    recovery,
    renewals,
    server_cost,
    servers,
    threads,
    uncontended,
    waiters,
    wake_ups,
)

SCENARIOS: dict[str, Any] = {
    "uncontended": uncontended,
    "threads": threads,
    "coroutines": coroutines,
    "jobs": jobs,
    "job_systems": job_systems,
    "contention": contention,
    "hand_over": hand_over,
    "fairness": fairness,
    "recovery": recovery,
    "promptness": promptness,
    "waiters": waiters,
    "wake_ups": wake_ups,
    "many_locks": many_locks,
    "renewals": renewals,
    "client_cost": client_cost,
    "server_cost": server_cost,
    "servers": servers,
    "races": races,
}

SECONDS: dict[str, tuple[float, float]] = {
    "uncontended": (30, 3),
    "threads": (13, 2),
    "coroutines": (38, 5),
    "jobs": (4, 1),
    "job_systems": (32, 7),
    "contention": (75, 9),
    "hand_over": (30, 4),
    "fairness": (34, 4),
    "recovery": (12, 3),
    "promptness": (15, 3),
    "waiters": (65, 7),
    "wake_ups": (12, 1),
    "many_locks": (20, 2),
    "renewals": (23, 3),
    "client_cost": (3, 3),
    "server_cost": (8, 1),
    "servers": (12, 3),
    "races": (20, 3),
}

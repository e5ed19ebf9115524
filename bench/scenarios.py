"""All scenarios, in the order in which they run and are reported.

Each is a module: ``run`` measures and returns rows, ``targets`` judges them, and ``TITLE``,
``WORDS`` and ``COLUMNS`` make its table (a column: its head, and a row's field with a format). An
optional ``MISSING`` is shown for ``None``.

Only ``SECONDS`` sets how long each may take, in a whole run and in a quick one. Most scenarios
measure rounds until their time is used; for one with a fixed amount of work (``many_locks``: a
million leases) it is the expected time. The report shows both times.
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
    "promptness": (22, 3),
    "waiters": (65, 7),
    "wake_ups": (12, 1),
    "many_locks": (20, 2),
    "renewals": (23, 3),
    "client_cost": (3, 3),
    "server_cost": (8, 1),
    "servers": (12, 3),
    "races": (20, 3),
}

"""All scenarios, in the order in which they run and are reported.

Each is a module: ``run`` measures and answers rows, ``targets`` says what must show in them, and
``TITLE``, ``WORDS`` and ``COLUMNS`` are its table (a column: its head, and a row's field with a
format); ``MISSING``, where it has one, is what stands for ``None``.
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

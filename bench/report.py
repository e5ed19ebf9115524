"""Results as JSON and as Markdown."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from bench import (
    contention,
    coroutines,
    promptness,
    races,
    renewals,
    server_cost,
    uncontended,
    waiters,
    wake_ups,
)

Targets = list[tuple[str, float, bool]]

PLACEMENTS = """\
Client and server share one core in the table that is judged: on many machines, virtual ones
above all, waking a sleeping core takes longer than everything that is to be compared, for
everybody alike. The other tables leave the placement to the system."""


def facts(server_version: str) -> dict[str, str]:
    """The machine and the versions, without any name."""
    return {
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "redis-py": version("redis"),
        "hiredis": version("hiredis"),
        "lualock": version("lualock"),
        "server": server_version,
    }


def as_json(results: dict[str, list[Any]], told: dict[str, str], judged: Targets) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "facts": told,
        "results": {name: [asdict(row) for row in rows] for name, rows in results.items()},
        "targets": [{"claim": c, "figure": f, "met": m} for c, f, m in judged],
    }


def as_markdown(results: dict[str, list[Any]], told: dict[str, str], judged: Targets) -> str:
    """Everything, for people."""
    parts = ["# lualock benchmark", ", ".join(f"{k} {v}" for k, v in told.items())]
    parts += [_SECTIONS[name](rows) for name, rows in results.items()]
    parts.append("## What must show")
    parts.append(
        _table(
            ["claim", "this run", ""],
            [[c, f"{f:.2f}", "met" if m else "**missed**"] for c, f, m in judged],
        )
    )
    return "\n\n".join(parts) + "\n"


def _uncontended(tables: list[uncontended.Table]) -> str:
    parts = ["## uncontended: acquire and release of a free lock", PLACEMENTS]
    for table in tables:
        parts.append(f"{table.transport}, {table.placement}:")
        rows = [
            [
                row.name,
                f"{row.median_us:.1f}",
                f"{row.p10_us:.1f} to {row.p90_us:.1f}",
                f"{row.pairs_per_s:,.0f}",
                f"{row.times_lualock:.2f}",
            ]
            for row in table.rows
        ]
        head = ["", "µs a pair", "p10 to p90", "pairs/s", "times lualock's"]
        parts.append(_table(head, rows))
    return "\n\n".join(parts)


def _contention(rows: list[contention.Row]) -> str:
    body = [
        [
            row.rival,
            str(row.processes),
            f"{row.per_s:,.0f}",
            f"{row.times_lualock:.2f}",
            f"{row.times_fewest:.2f}",
            f"{row.spread:.2f}",
            f"{row.published:.2f}",
        ]
        for row in rows
    ]
    head = ["", "processes", "a second", "times lualock's", "times its two processes'"]
    head += ["last / first done", "PUBLISH each"]
    return f"## contention: one lock, many processes\n\n{_table(head, body)}"


def _waiters(rows: list[waiters.Row]) -> str:
    body = [
        [
            f"{row.waiters:,}",
            f"{row.hand_over_us:.0f}",
            f"{row.times_few:.2f}",
            f"{row.idle_per_s:.3f}",
            f"{row.bytes_each:.0f}",
        ]
        for row in rows
    ]
    head = [
        "waiters",
        "µs a hand-over",
        "times among few",
        "commands a second, each, idle",
        "bytes each",
    ]
    return f"## waiters: one lock, many coroutines\n\n{_table(head, body)}"


def _wake_ups(rows: list[wake_ups.Row]) -> str:
    body = [
        [
            row.way,
            f"{row.processes} x {row.threads}",
            f"{row.per_s:,.0f}",
            f"{row.times_shared:.2f}",
            str(row.connections),
        ]
        for row in rows
    ]
    head = ["", "processes x threads", "hops a second", "shared reading is so many times as fast"]
    head += ["connections a process"]
    return f"## wake_ups: three ways to wake a thread that waits\n\n{_table(head, body)}"


def _promptness(rows: list[promptness.Row]) -> str:
    body = [
        [row.what, f"{row.median_ms:.1f}", f"{row.worst_ms:.1f}", f"{row.limit_ms:.0f}"]
        for row in rows
    ]
    head = ["what should have happened", "ms late (median)", "worst", "limit"]
    return f"## promptness: how late what must happen does\n\n{_table(head, body)}"


def _coroutines(rows: list[coroutines.Row]) -> str:
    body = [
        [row.rival, f"{row.tasks:,}", f"{row.pairs_per_s:,.0f}", f"{row.times_faster_lualock:.2f}"]
        for row in rows
    ]
    head = ["", "tasks", "pairs/s", "lualock is so many times as fast"]
    return f"## coroutines: a lock for each task\n\n{_table(head, body)}"


def _renewals(rows: list[renewals.Row]) -> str:
    body = [
        [
            row.shell,
            f"{row.leases:,}",
            f"{row.ttl_s:.0f}",
            f"{row.core:.3f}",
            f"{row.per_s:,.0f}",
            f"{row.sent_each:.3f}",
            str(row.lost),
        ]
        for row in rows
    ]
    head = ["renewed by", "leases", "ttl (s)", "of one core", "scripts a second"]
    head += ["server reads each", "lost"]
    return f"## renewals: very many leases held by one process\n\n{_table(head, body)}"


def _races(rows: list[races.Row]) -> str:
    head = ["", "fault", "acquisitions", "double holders", "taken from holder", "stuck", "crashes"]
    body = [
        [
            row.rival,
            row.fault,
            f"{row.acquisitions:,}",
            str(row.double_holders),
            str(row.taken_from_holder),
            str(row.stuck),
            str(row.crashes),
        ]
        for row in rows
    ]
    words = (
        f"{races.WORKERS} worker processes, leases of {races.TTL_S * 1000:.0f} ms. A double holder "
        "is a worker let in while another was inside and had every reason to believe that it was "
        "alone."
    )
    return "\n\n".join(["## races: what goes wrong", words, _table(head, body)])


def _server_cost(rows: list[server_cost.Row]) -> str:
    body = [
        [row.name, f"{row.pair_us:.2f}", f"{row.times_plain:.2f}", f"{row.held_bytes:.0f}"]
        for row in rows
    ]
    table = _table(["", "server µs a pair", "times the plain pair", "bytes a held lock"], body)
    return f"## server_cost: what it costs the server\n\n{table}"


_SECTIONS: dict[str, Any] = {
    "uncontended": _uncontended,
    "contention": _contention,
    "wake_ups": _wake_ups,
    "waiters": _waiters,
    "promptness": _promptness,
    "coroutines": _coroutines,
    "renewals": _renewals,
    "races": _races,
    "server_cost": _server_cost,
}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

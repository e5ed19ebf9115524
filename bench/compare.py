"""Two runs beside each other: ``python -m bench compare A.json B.json``.

Two rows are the same if their texts and sizes are. A figure that changed by less than the noise of
these machines is left out.

"""

from __future__ import annotations

from typing import Any

from bench.report import table

SIZES = ("processes", "threads", "tasks", "waiters", "leases", "locks")
NOISE = 1.15


def compared(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return what changed, and which targets are met in only one run."""
    parts = ["# Two runs", _facts(before, after)]
    parts += _alone(before, after, "before") + _alone(after, before, "after")
    for name, rows in after["results"].items():
        moved = _moved(before["results"].get(name, []), rows)
        if moved:
            parts += [f"## {name}", table(["", "figure", "before", "after", "times"], moved)]
    turned = _turned(before, after)
    parts += [
        "## Targets",
        table(["claim", "before", "after"], turned) if turned else "The same in both.",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = [*before["facts"], *(name for name in after["facts"] if name not in before["facts"])]
    rows = [[n, before["facts"].get(n, "-"), after["facts"].get(n, "-")] for n in names]
    return table(["", "before", "after"], [row for row in rows if row[1] != row[2]])


def _alone(run: dict[str, Any], other: dict[str, Any], when: str) -> list[str]:
    """Name the scenarios that only this run has."""
    names = [name for name in run["results"] if name not in other["results"]]
    return [f"Only {when}: {', '.join(names)}."] if names else []


def _name(row: dict[str, Any]) -> str:
    return ", ".join(
        value if isinstance(value, str) else f"{value:,} {field}"
        for field, value in row.items()
        if isinstance(value, str) or field in SIZES
    )


def _moved(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[list[str]]:
    known = {_name(row): row for row in before}
    moved = []
    for row in after:
        old = known.get(_name(row), {})
        for field, value in row.items():
            was = old.get(field, value)  # a figure that the other version lacks has not changed
            if field in SIZES or was == value or isinstance(value, str) or isinstance(was, str):
                continue
            if not was or not value or not 1 / NOISE <= value / was <= NOISE:
                times = f"{value / was:.2f}" if was and value is not None else ""
                moved.append([_name(row), field, _figure(was), _figure(value), times])
    return moved


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"


def _turned(before: dict[str, Any], after: dict[str, Any]) -> list[list[str]]:
    was, now = ({one["claim"]: one for one in run["targets"]} for run in (before, after))
    both = [(claim, was.get(claim), now.get(claim)) for claim in was | now]
    return [
        [claim, _judged(old), _judged(new)]
        for claim, old, new in both
        if old is None or new is None or old["met"] != new["met"]
    ]


def _judged(target: dict[str, Any] | None) -> str:
    if target is None:
        return "-"
    return f"{_figure(target['figure'])} ({'met' if target['met'] else 'missed'})"

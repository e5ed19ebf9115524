"""Write the figures of a run into the README and the site.

``python -m bench docs bench/results/report.json`` keeps the run as ``docs/bench/report.json``,
draws its plots beside it, and rewrites what stands between ``<!-- bench: name -->`` and
``<!-- end -->`` in the pages. A name is one of ``BLOCKS``, or a scenario: its words and its table.

What the run lacks is named: a scenario in the place of its table, a rival in the block ``broken``.
A run without a scenario of ``PLOTS`` is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import contention, plots, report, rivals
from bench.report import Unusable
from bench.scenarios import SCENARIOS

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "bench" / "report.json"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "explanation" / "performance.md",
    ROOT / "docs" / "explanation" / "measured-choices.md",
)
PLOTS = ("uncontended", "contention")
BLOCK = re.compile(r"<!-- bench: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
# In the README beside the fastest rival of the run.
FEW = (rivals.LUALOCK, rivals.PYTHON_REDIS_LOCK, rivals.REDIS_PY)


def update(kept: dict[str, Any]) -> list[Path]:
    """Keep the run, and write its figures and plots; return the files."""
    paths = plots.draw(kept, KEPT.parent, PLOTS)  # or refuse the run, if it lacks one
    texts = {page: rewrite(page.read_text("utf-8"), kept) for page in PAGES}
    texts[KEPT] = report.as_text(kept)
    for path, text in texts.items():
        path.write_text(text, "utf-8")
    return [*paths, *texts]


def rewrite(page: str, kept: dict[str, Any]) -> str:
    """Return the page with the figures of the run."""

    def block(found: re.Match[str]) -> str:
        return f"<!-- bench: {found[1]} -->\n{_block(found[1], kept)}\n<!-- end -->"

    return BLOCK.sub(block, page)


def _block(name: str, kept: dict[str, Any]) -> str:
    if name in BLOCKS:
        return BLOCKS[name](kept)
    if name not in SCENARIOS:
        raise Unusable(f"{name} is no block: choose from {', '.join((*BLOCKS, *SCENARIOS))}")
    rows = kept["results"].get(name)
    return report.section(name, rows) if rows else f"This run has not measured `{name}`."


def _contention(kept: dict[str, Any]) -> str:
    return _rates(kept["results"]["contention"])


def _few_of_contention(kept: dict[str, Any]) -> str:
    """Return the rates of lualock, the fastest rival and the known ones, and of which run."""
    rows = kept["results"]["contention"]
    judged = [row for row in rows if row["processes"] == _judged_count(rows)]
    fastest = sorted(judged, key=lambda row: row["per_s"], reverse=True)
    best = next((row["rival"] for row in fastest if row["rival"] != rivals.LUALOCK), rivals.LUALOCK)
    missing = [name for name in FEW if name not in {row["rival"] for row in rows}]
    words = f"Changes of holder a second, one {report.summary(kept)}"
    words += f"; not measured: {', '.join(missing)}" if missing else ""
    return f"{words}:\n\n{_rates([row for row in rows if row['rival'] in {*FEW, best}])}"


def _rates(rows: list[dict[str, Any]]) -> str:
    """Return changes of holder a second at each number of processes, the fastest rival first, and
    the p99 of a wait."""
    found = {(row["rival"], row["processes"]): row for row in rows}
    counts = sorted({row["processes"] for row in rows})
    most = _judged_count(rows)

    def figure(rival: str, processes: int, field: str, form: str) -> str:
        row = found.get((rival, processes))
        return "not measured" if row is None else format(row[field], form)

    def rate(rival: str) -> float:
        row = found.get((rival, most))
        return 0.0 if row is None else float(row["per_s"])

    return report.table(
        ["", *(f"{count} processes" for count in counts), f"ms wait among {most}, p99"],
        [
            [
                rival,
                *(figure(rival, count, "per_s", ",.0f") for count in counts),
                figure(rival, most, "wait_p99_ms", ",.0f"),
            ]
            for rival in sorted(sorted({row["rival"] for row in rows}), key=rate, reverse=True)
        ],
    )


def _judged_count(rows: list[dict[str, Any]]) -> int:
    counts = {int(row["processes"]) for row in rows}
    return contention.JUDGED if contention.JUDGED in counts else max(counts)


BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "run": report.facts_line,
    "targets": report.targets_table,
    "broken": report.broken_table,
    "contention": _contention,
    "few_of_contention": _few_of_contention,
}

"""Results as JSON and as Markdown."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import inf, isfinite
from pathlib import Path
from typing import Any

from bench import rivals
from bench.rivals import apart
from bench.scenarios import SCENARIOS
from bench.setting import Broken, Targets

PACKAGES = (
    *("lualock", "redis", "hiredis", "python-redis-lock", "pottery", "portalocker"),
    *("python-redilock", "aioredlock", "redis-lock-py", "redis-fifo-lock"),
)
MISSING = "not in time"  # unless a scenario has its own
SPENT = """\
All ways of a scenario are measured in turn and have equal shares of its time, so a slow one has
fewer rounds than a fast one. A ratio is the median of the rounds' ratios."""


class Unusable(Exception):
    """A file that is not a report, or an incomplete command line."""


def facts(server_version: str, *, quick: bool, took_s: float) -> dict[str, str]:
    """Return the commit, the machine and the versions, without any name."""
    return {
        "run": f"{'quick' if quick else 'whole'}, {took_s:.0f} s",
        "commit": _commit(),
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "server": server_version,
        **{name: _version(name) for name in PACKAGES},
    }


def _commit() -> str:
    command = ("git", "describe", "--always", "--dirty", "--exclude=*")
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(name: str) -> str:
    try:
        return apart.version_of(name) if name in apart.WHY_APART else version(name)
    except PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Spent:
    """The time of a scenario, its budget, and the number of rounds of its ways: the fewest (of a
    slow one) and the most."""

    scenario: str
    took_s: float
    budget_s: float
    fewest: int | None
    most: int | None


@dataclass
class Report:
    """All results of a run."""

    broken: list[Broken]
    facts: dict[str, str] = field(default_factory=dict)
    results: dict[str, list[Any]] = field(default_factory=dict)
    targets: Targets = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)

    def add(
        self, name: str, rows: list[Any], took_s: float, budget_s: float, counted: list[int]
    ) -> None:
        """Add the results of a scenario."""
        self.results[name] = rows
        self.spent.append(
            Spent(name, took_s, budget_s, min(counted, default=None), max(counted, default=None))
        )
        try:
            self.targets += SCENARIOS[name].targets(rows)
        except (LookupError, StopIteration, ValueError):
            # A rival of the claims broke, so no claim is shown.
            self.targets.append(
                (f"{name}: a rival that lualock is compared with broke", inf, False)
            )

    def as_json(self) -> dict[str, Any]:
        """Return all of it for programs."""
        return {
            "facts": self.facts,
            "results": {
                n: [_plain(asdict(row)) for row in rows] for n, rows in self.results.items()
            },
            "broken": [asdict(one) for one in self.broken],
            "targets": [_plain({"claim": c, "figure": f, "met": m}) for c, f, m in self.targets],
            "spent": [_plain(asdict(one)) for one in self.spent],
        }

    def as_markdown(self) -> str:
        """Return all of it for readers: first the targets, then what broke, then the tables."""
        kept = self.as_json()
        spent = [
            [one.scenario, f"{one.took_s:.0f}", f"{one.budget_s:.0f}", _rounds(one)]
            for one in self.spent
        ]
        parts = ["# lualock benchmark", facts_line(kept), "## Targets", targets_table(kept)]
        parts += ["## Rivals that broke", broken_table(kept)]
        for name, rows in kept["results"].items():
            parts += [f"## {name}: {SCENARIOS[name].TITLE}", f"![{name}]({name}.svg)"]
            parts.append(section(name, rows))
        parts += ["## How the rivals are used", _used()]
        parts += ["## How long it took", SPENT, table(["", "s", "of", "rounds"], spent)]
        return "\n\n".join(parts) + "\n"


def as_text(kept: dict[str, Any]) -> str:
    """Return the JSON file of a run."""
    return json.dumps(kept, indent=1, allow_nan=False) + "\n"


def facts_line(kept: dict[str, Any]) -> str:
    """Return the facts of a run in one line."""
    return ", ".join(f"{name} {value}" for name, value in kept["facts"].items())


def summary(kept: dict[str, Any]) -> str:
    """Return the facts that a plot or a short table needs."""
    facts = defaultdict(lambda: "?", kept["facts"])
    facts["run"] = facts["run"].partition(",")[0]
    return (
        "{run} run of commit {commit}, {cores} cores, Python {python}, {server}, redis-py {redis}"
    ).format_map(facts)


def targets_table(kept: dict[str, Any]) -> str:
    """Return the table of the targets."""
    rows = [
        [
            one["claim"],
            "-" if one["figure"] is None else f"{one['figure']:.2f}",
            "met" if one["met"] else "**missed**",
        ]
        for one in kept["targets"]
    ]
    return table(["claim", "this run", ""], rows)


def broken_table(kept: dict[str, Any]) -> str:
    """Return the table of the rivals that broke or could not be installed."""
    rows = [[one["rival"], one["scenario"], _cell(one["error"])] for one in kept["broken"]]
    return table(["rival", "where", "error"], rows) if rows else "None."


def _used() -> str:
    """Return how each rival is used, from its adapter."""
    rows = [[name, rivals.words(name)] for name in rivals.SYNC | rivals.TASKS]
    return table(["", "how"], rows)


def _rounds(one: Spent) -> str:
    if one.most is None:
        return "-"
    return f"{one.most}" if one.fewest == one.most else f"{one.fewest} to {one.most}"


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Round the figures, and replace infinite ones (ratios to nothing), which JSON lacks."""
    return {
        name: (float(f"{value:.5g}") if isfinite(value) else None)
        if isinstance(value, float)
        else value
        for name, value in row.items()
    }


def load(path: str) -> dict[str, Any]:
    """Load the JSON of an earlier run."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"{path}: {error}") from error
    if not isinstance(found, dict) or not {"facts", "results", "targets"} <= found.keys():
        raise Unusable(f"{path} is not the report.json of a run")
    return found


def section(name: str, rows: list[dict[str, Any]]) -> str:
    """Return a scenario's words and table."""
    scenario = SCENARIOS[name]
    heads, columns = zip(*scenario.COLUMNS, strict=True)
    missing = getattr(scenario, "MISSING", MISSING)
    cells = [[_formatted(row, column, missing) for column in columns] for row in rows]
    return "\n\n".join(filter(None, [scenario.WORDS.strip(), table(list(heads), cells)]))


def _formatted(row: dict[str, Any], column: str, missing: str) -> str:
    field, _, form = column.partition(":")
    value = row.get(field)
    return missing if value is None else format(value, form)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

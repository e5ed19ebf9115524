"""Results as JSON and as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.rivals import apart
from bench.scenarios import SCENARIOS
from bench.setting import Broken, Targets

PACKAGES = (
    *("lualock", "redis", "hiredis", "python-redis-lock", "pottery", "portalocker"),
    *("python-redilock", "aioredlock", "redis-lock-py", "redis-fifo-lock"),
)


def facts(server_version: str, *, quick: bool, took_s: float) -> dict[str, str]:
    """The machine and the versions, without any name."""
    return {
        "run": f"{'quick' if quick else 'whole'}, {took_s:.0f} s",
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "server": server_version,
        **{name: _version(name) for name in PACKAGES},
    }


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


def as_json(
    results: dict[str, list[Any]], told: dict[str, str], judged: Targets, broken: list[Broken]
) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "facts": told,
        "results": {name: [_finite(asdict(row)) for row in rows] for name, rows in results.items()},
        "broken": [asdict(one) for one in broken],
        "targets": [{"claim": c, "figure": f, "met": m} for c, f, m in judged],
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no word for what is infinite: a ratio to nothing."""
    return {k: None if v in (float("inf"), -float("inf")) else v for k, v in row.items()}


def as_markdown(
    results: dict[str, list[Any]], told: dict[str, str], judged: Targets, broken: list[Broken]
) -> str:
    """Everything, for people: first what must show, then what broke, then the tables."""
    met = [[c, f"{f:.2f}", "met" if m else "**missed**"] for c, f, m in judged]
    parts = [
        "# lualock benchmark",
        ", ".join(f"{k} {v}" for k, v in told.items()),
        "## What must show",
        table(["claim", "this run", ""], met),
        "## Rivals that broke, or could not be installed beside the others",
        table(["rival", "where", "error"], [[b.rival, b.scenario, _cell(b.error)] for b in broken])
        if broken
        else "None.",
    ]
    for name, rows in results.items():
        parts += section(name, rows)
    return "\n\n".join(parts) + "\n"


def section(name: str, rows: list[Any]) -> Iterable[str]:
    """A scenario's part of the report."""
    scenario = SCENARIOS[name]
    yield f"## {name}: {scenario.TITLE}"
    if scenario.WORDS:
        yield scenario.WORDS.strip()
    yield f"![{name}]({name}.svg)"
    heads, fields = zip(*scenario.COLUMNS, strict=True)
    missing = getattr(scenario, "MISSING", "not in time")
    yield table(list(heads), [[_told(row, one, missing) for one in fields] for row in rows])


def _told(row: Any, column: str, missing: str) -> str:
    field, _, form = column.partition(":")
    value = getattr(row, field)
    return missing if value is None else format(value, form)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""One plot for each scenario, from the JSON of a run: a rival has one colour in all plots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report, rivals
from bench.scenarios import SCENARIOS

OURS = "#d62728"
# Colours that differ from each other and from lualock's; the tuned and the asyncio form of a rival
# have the colour of the rival itself.
COLOURS = {
    "SETNX + DEL": "#7f7f7f",
    "SETNX/GETSET timestamps": "#bcbd22",
    "SET NX PX": "#8c564b",
    "redis-py": "#1f77b4",
    "python-redis-lock": "#2ca02c",
    "redis-lock-py": "#17becf",
    "redis-fifo-lock": "#ff7f0e",
    "python-redilock": "#9467bd",
    "pottery": "#e377c2",
    "portalocker": "#c49c94",
    "aioredlock": "#aec7e8",
    "the function itself": "#7f7f7f",
    "ReaderThread": "#1f77b4",
    "OwnConnection": "#2ca02c",
    "PING": "#000000",
    "two scripts": "#000000",
    "SET + DEL": "#444444",
}


@dataclass(frozen=True)
class Lines:
    """``y`` over ``x``, a line for each ``by``; both axes are logarithmic."""

    x: str
    y: str
    label: str
    by: str = "rival"


@dataclass(frozen=True)
class Bars:
    """A bar for each row, or a group of bars for several fields; ``only`` chooses rows. A
    logarithmic axis, which has no zero to begin a bar at, has dots instead."""

    fields: tuple[str, ...]
    label: str
    names: tuple[str, ...] = ("rival",)
    log: bool = True
    only: tuple[tuple[str, str], ...] = ()


PLOTS: dict[str, Lines | Bars] = {
    "uncontended": Bars(
        ("median_us",),
        "µs a pair (TCP, client and server on one core; less is better)",
        only=(("transport", "TCP"), ("placement", "one core")),
    ),
    "threads": Lines("threads", "pairs_per_s", "pairs a second, a lock for each thread"),
    "coroutines": Lines("tasks", "pairs_per_s", "pairs a second, a lock for each task"),
    "jobs": Bars(("median_us",), "µs a call (less is better)"),
    "job_systems": Bars(("plain_us", "locked_us"), "µs a job", names=("system",), log=False),
    "contention": Lines("processes", "per_s", "changes of holder a second, one lock for all"),
    "hand_over": Bars(("p50_us", "p99_us", "p999_us"), "µs from release to the next holder"),
    "fairness": Bars(("longest_ms",), "ms, longest wait of 16 processes"),
    "recovery": Bars(("late_ms",), "ms after the end of a killed holder's lease", log=False),
    "promptness": Bars(("median_ms",), "ms late", names=("what",), log=False),
    "waiters": Lines("waiters", "hand_over_us", "µs a hand-over (lualock)", by=""),
    "wake_ups": Bars(("per_s",), "hops a second", names=("way", "processes", "threads"), log=False),
    "many_locks": Bars(("bytes_each",), "bytes of the server's memory a held lock", log=False),
    "renewals": Bars(("core",), "share of a core, renewing", names=("api",), log=False),
    "client_cost": Bars(("bytecodes",), "bytecodes a pair"),
    "server_cost": Bars(("pair_us",), "server µs a pair", log=False),
    "servers": Bars(("median_us",), "µs a pair", names=("server", "rival")),
    "races": Bars(
        ("double_holders", "taken_from_holder"),
        "times that it went wrong (0: no bar)",
        names=("rival", "fault"),
        log=False,
    ),
}


def colour(name: str) -> str:
    """Return the colour of a rival in all plots."""
    if name.startswith(rivals.LUALOCK):
        return OURS
    for part, found in COLOURS.items():
        if part.lower() in name.lower():
            return found
    return "#7f7f7f"


def source(kept: dict[str, Any], scenario: str) -> str:
    """Return a digest of what a plot shows, which its file names: the drawing itself differs
    between versions of matplotlib."""
    shown = json.dumps([report.summary(kept), kept["results"].get(scenario)])
    return f"report.json, {hashlib.sha256(shown.encode()).hexdigest()[:16]}"


def draw(
    kept: dict[str, Any], folder: Path, scenarios: Sequence[str], *, suffix: str = "svg"
) -> list[Path]:
    """Draw the plots of a run as SVG files; ``scenarios``: only these."""
    import matplotlib as mpl

    mpl.use("agg")
    # The same data give the same file, and text stays text.
    mpl.rcParams.update({"svg.hashsalt": "lualock", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    chosen = scenarios or [name for name in kept["results"] if name in PLOTS]
    for name in chosen:
        if name not in PLOTS or name not in kept["results"]:
            raise report.Unusable(f"{name} is no scenario of this run")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in chosen:
        rows = kept["results"][name]
        if not rows:
            continue
        plot = PLOTS[name]
        figure, axes = plt.subplots(figsize=(8, _height(plot, rows)), layout="constrained")
        if isinstance(plot, Lines):
            _lines(axes, plot, rows)
        else:
            _bars(axes, plot, rows, getattr(SCENARIOS[name], "MISSING", report.MISSING))
        axes.set_title(f"{name}: {SCENARIOS[name].TITLE}", loc="left")
        axes.grid(axis="x" if isinstance(plot, Bars) else "both", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(report.summary(kept), fontsize=7, color="#666666")
        path = folder / f"{name}.{suffix}"
        svg = {"Date": None, "Source": source(kept, name)}
        figure.savefig(path, metadata=svg if suffix == "svg" else None)
        plt.close(figure)
        paths.append(path)
    return paths


def _height(plot: Lines | Bars, rows: list[dict[str, Any]]) -> float:
    if isinstance(plot, Lines):
        return 4.5
    chosen = len(_chosen(plot, rows))
    return 1.3 + 0.22 * chosen * (1 + 0.4 * (len(plot.fields) - 1))


def _chosen(plot: Bars, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    only = [row for row in rows if all(row[field] == value for field, value in plot.only)]
    return only or rows


def _lines(axes: Any, plot: Lines, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import NullLocator

    named: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row[plot.y]:
            named.setdefault(row[plot.by] if plot.by else rivals.LUALOCK, []).append(
                (row[plot.x], row[plot.y])
            )
    for name, points in named.items():
        ours = name.startswith(rivals.LUALOCK)
        tuned = "(" in name
        axes.plot(
            *zip(*sorted(points), strict=True),
            label=name,
            color=colour(name),
            marker="o" if ours else ".",
            linewidth=2.5 if ours else 1.2,
            linestyle="--" if tuned else "-",
            zorder=3 if ours else 2,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({row[plot.x] for row in rows})
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    _numbers(axes.yaxis)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.label)
    if plot.by:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)


def _bars(axes: Any, plot: Bars, rows: list[dict[str, Any]], missing: str) -> None:
    chosen = _chosen(plot, rows)
    if len(plot.fields) == 1 and len(plot.names) == 1:
        chosen = sorted(chosen, key=lambda row: (row[plot.fields[0]] is None, row[plot.fields[0]]))
    thick = 0.8 / len(plot.fields)
    most = max((row[f] or 0 for row in chosen for f in plot.fields), default=1)
    least = min((row[f] for row in chosen for f in plot.fields if (row[f] or 0) > 0), default=1)
    for position, row in enumerate(chosen):
        rival = str(row.get("rival", row[plot.names[0]]))
        for number, field in enumerate(plot.fields):
            at = position + (number - (len(plot.fields) - 1) / 2) * thick
            value = row[field]
            style: dict[str, Any] = {"color": _bar_colour(rival), "alpha": 1 - 0.3 * number}
            if not plot.log:
                axes.barh(at, value or 0, thick * 0.9, **style)
            elif value:
                axes.plot(value, at, "o", **style)
            axes.annotate(
                missing if value is None else _figure(value),
                (max(value or 0, least / 2 if plot.log else 0), at),
                xytext=(6 if plot.log else 3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set_yticks(
        range(len(chosen)), [", ".join(str(row[f]) for f in plot.names) for row in chosen]
    )
    axes.invert_yaxis()
    if plot.log and most > 0:
        axes.set_xscale("log")
        _numbers(axes.xaxis)
        axes.set_xlim(left=least / 2, right=most * 3)
    label = plot.label
    if len(plot.fields) > 1:
        label += " (" + ", ".join(field.rpartition("_")[0] or field for field in plot.fields) + ")"
    axes.set_xlabel(label)


def _numbers(axis: Any) -> None:
    """Write the figures of a logarithmic axis out, even within one decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    low, high = axis.get_view_interval()
    if high / low > 300:
        axis.set_major_locator(LogLocator(numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _figure(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _bar_colour(name: str) -> str:
    known = name.startswith(rivals.LUALOCK) or any(p.lower() in name.lower() for p in COLOURS)
    return colour(name) if known else OURS

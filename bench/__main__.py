"""The command line: ``python -m bench [scenario ...] [--quick] [--guard] [--out FOLDER]``,
``python -m bench compare A.json B.json``, ``python -m bench plot A.json FOLDER [scenario ...]`` and
``python -m bench docs A.json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from bench import compare, docs, plots, report, rivals
from bench.rivals import roster
from bench.scenarios import SCENARIOS, SECONDS
from bench.server import started
from bench.setting import Setting


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    argv = sys.argv[1:] if arguments is None else arguments
    try:
        match argv:
            case ["compare", before, after]:
                print(compare.compared(report.load(before), report.load(after)))
            case ["plot", kept, folder, *scenarios]:
                for path in plots.draw(report.load(kept), Path(folder), scenarios):
                    print(path)
            case ["docs", kept]:
                for path in docs.update(report.load(kept)):
                    print(path)
            case ["compare" | "plot" | "docs", *_]:
                raise report.Unusable((__doc__ or "").strip())
            case _:
                return _run(argv)
    except report.Unusable as why:
        _say(str(why))
        return 2
    return 0


def _run(arguments: list[str]) -> int:
    """Run the scenarios, print the report, and keep it as JSON, Markdown and plots."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "scenario", nargs="*", type=_scenario, help=f"default: all of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--quick", action="store_true", help="less time, smaller crowds")
    parser.add_argument("--guard", action="store_true", help="exit status 1 if a target is missed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args(arguments)

    began = time.monotonic()
    with started() as server:
        setting = Setting(server, options.quick, list(rivals.SYNC), list(rivals.TASKS))
        roster.call(setting)
        made = report.Report(setting.broken)
        for name in options.scenario or SCENARIOS:
            start = time.monotonic()
            _say(f"{start - began:4.0f} s  {name}")
            setting.budget_s, setting.counted = SECONDS[name][options.quick], []
            rows = SCENARIOS[name].run(setting)
            took_s = time.monotonic() - start
            made.add(name, rows, took_s, setting.budget_s, setting.counted)
        took_s = time.monotonic() - began
        made.facts = report.facts(server.version, quick=options.quick, took_s=took_s)
    _say(f"{took_s:4.0f} s  report")

    options.out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = made.as_json()
    (options.out / "report.json").write_text(report.as_text(kept), "utf-8")
    markdown = made.as_markdown()
    (options.out / "report.md").write_text(markdown, "utf-8")
    plots.draw(kept, options.out, [])
    print(markdown)
    missed = [claim for claim, _, met in made.targets if not met]
    if not made.targets:
        missed = ["these scenarios have no targets"]
    if options.guard and missed:
        _say("missed: " + "; ".join(missed))
    return int(options.guard and bool(missed))


def _scenario(name: str) -> str:
    # (Up to Python 3.12 argparse needs the empty list among the choices of "*", and shows it.)
    if name not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"no {name!r}: choose from {', '.join(SCENARIOS)}")
    return name


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

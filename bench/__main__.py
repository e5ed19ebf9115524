"""The command line: ``python -m bench [scenario ...] [--quick] [--guard] [--out FOLDER]``,
``python -m bench compare A.json B.json`` and ``python -m bench plot A.json FOLDER [scenario ...]``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench import compare, plots, report, rivals
from bench.rivals import roster
from bench.scenarios import SCENARIOS
from bench.server import started
from bench.setting import Setting, Targets


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    given = sys.argv[1:] if arguments is None else arguments
    match given:
        case ["compare", before, after]:
            print(compare.compared(_load(before), _load(after)))
            return 0
        case ["plot", kept, folder, *scenarios]:
            for path in plots.draw(_load(kept), Path(folder), scenarios):
                print(path)
            return 0
    return _run(given)


def _load(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    return found


def _run(arguments: list[str]) -> int:
    """Run the scenarios, print the report, and keep it as JSON, Markdown and plots."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller crowds")
    parser.add_argument("--guard", action="store_true", help="exit status 1 if a target is missed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    asked = parser.parse_args(arguments)

    results: dict[str, list[Any]] = {}
    judged: Targets = []
    began = time.monotonic()
    with started() as server:
        setting = Setting(server, asked.quick, list(rivals.SYNC), list(rivals.TASKS))
        roster.call(setting)
        for name in asked.scenario or SCENARIOS:
            _say(f"{time.monotonic() - began:4.0f} s  {name}")
            results[name] = SCENARIOS[name].run(setting)
            judged += SCENARIOS[name].targets(results[name])
        told = report.facts(server.version, quick=asked.quick, took_s=time.monotonic() - began)
    _say(f"{time.monotonic() - began:4.0f} s  report")

    asked.out.mkdir(parents=True, exist_ok=True)
    kept = report.as_json(results, told, judged, setting.broken)
    (asked.out / "report.json").write_text(json.dumps(kept, indent=1), "utf-8")
    markdown = report.as_markdown(results, told, judged, setting.broken)
    (asked.out / "report.md").write_text(markdown, "utf-8")
    plots.draw(kept, asked.out, [])
    print(markdown)
    missed = [claim for claim, _, met in judged if not met]
    if asked.guard and missed:
        _say("missed: " + "; ".join(missed))
    return int(asked.guard and bool(missed))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``python -m bench [scenario ...] [--quick] [--guard] [--out FOLDER]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import (
    contention,
    coroutines,
    promptness,
    races,
    renewals,
    report,
    server_cost,
    uncontended,
    waiters,
    wake_ups,
)
from bench.server import started

SCENARIOS: dict[str, Any] = {
    "uncontended": uncontended,
    "contention": contention,
    "wake_ups": wake_ups,
    "waiters": waiters,
    "promptness": promptness,
    "coroutines": coroutines,
    "renewals": renewals,
    "races": races,
    "server_cost": server_cost,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the scenarios, print the report, and keep it as JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter races")
    parser.add_argument("--guard", action="store_true", help="exit status 1 if a target is missed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    asked = parser.parse_args(arguments)

    results: dict[str, list[Any]] = {}
    judged: report.Targets = []
    with started() as server:
        told = report.facts(server.version)
        for name in asked.scenario or SCENARIOS:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            results[name] = SCENARIOS[name].run(server, quick=asked.quick)
            if hasattr(SCENARIOS[name], "targets"):
                judged += SCENARIOS[name].targets(results[name])

    markdown = report.as_markdown(results, told, judged)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "report.md").write_text(markdown, "utf-8")
    as_json = json.dumps(report.as_json(results, told, judged), indent=1)
    (asked.out / "report.json").write_text(as_json, "utf-8")
    print(markdown)
    return int(asked.guard and not all(met for _, _, met in judged))


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.chaos --minutes 10``: chaos on each server in turn, for a share of the time."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from tests.chaos.round import Outcome, Plan, judge, play
from tests.chaos.worker import FAULTS, KINDS
from tests.support.servers import INSTALLED

SHOWN = 20
"""How many violations are printed; ``--judge`` finds them all again."""


def figures(outcome: Outcome) -> str:
    """Return the figures of one round, or of all."""
    acts = ", ".join(f"{what} {count}" for what, count in sorted(outcome.acts.items()))
    return (
        f"  {outcome.held} acquisitions, {outcome.handed_over} of them after a wait in the queue\n"
        f"  {acts or 'no faults'}\n"
        f"  all workers finished within {outcome.calm_s:.1f} s of the last fault\n"
        f"  two holders by nature: {dict(sorted(outcome.attributed.items()))}\n"
        f"  violations: {len(outcome.violations)}"
    )


def report(outcome: Outcome, again: str) -> None:
    """Print the result of a round, and how to examine a violation."""
    print(figures(outcome), flush=True)
    for violation in outcome.violations[:SHOWN]:
        print(f"    {violation}")
    if outcome.violations:
        print(f"  the event logs: {outcome.folder}")
        print(f"  judge them again: python -m tests.chaos --judge {outcome.folder}")
        print(f"  play it again: {again}")
        print("  (real processes: the same faults at about the same times, not the same outcome)")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2, help="of faults, in all")
    parser.add_argument("--seed", type=int, help="default: a random one")
    parser.add_argument("--server", choices=list(INSTALLED), help="default: each of them in turn")
    parser.add_argument("--processes", type=int, default=24)
    parser.add_argument("--kind", choices=KINDS, help="of the workers; default: all kinds")
    parser.add_argument(
        "--fault", choices=FAULTS, default="", help="a bug that is planted in the workers"
    )
    parser.add_argument("--judge", type=Path, help="only judge the event logs of this folder again")
    options = parser.parse_args()
    if options.judge is not None:
        outcome = judge(options.judge)
        report(outcome, "see the first report")
        return 1 if outcome.violations else 0
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    servers = [options.server] if options.server else list(INSTALLED)
    kinds = [options.kind] if options.kind else KINDS
    minutes = options.minutes / len(servers)
    total = Outcome(Path())
    for server in servers:
        print(
            f"{server}: {minutes:g} minutes, {options.processes} processes, seed {seed}", flush=True
        )
        plan = Plan(server, minutes * 60, seed, options.processes, options.fault, kinds)
        outcome = play(plan)
        kind = f" KIND={options.kind}" if options.kind else ""
        report(outcome, f"make chaos MINUTES={minutes:g} SERVER={server} SEED={seed}{kind}")
        total.calm_s = max(total.calm_s, outcome.calm_s)
        total.held += outcome.held
        total.handed_over += outcome.handed_over
        total.acts += outcome.acts
        total.attributed += outcome.attributed
        total.violations += outcome.violations
    print(f"in all, seed {seed}:\n{figures(total)}")
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.simulation``: run seeds, replay one, try mutants or planted bugs, or measure.

``schedule`` measures the rules by which a waiter checks the queue.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation import mutants, planted, schedule
from tests.simulation.many import run_many
from tests.simulation.run import Result, play
from tests.simulation.world import Server


def replay(seed: int, around_s: float) -> int:
    """Print the trace of one seed: all of it, or the seconds before the first violation."""
    result = play(seed, Server(), trace=True)
    at = result.failing[0][1][0].t if result.failing and around_s else None
    for line in result.trace:
        if at is None or at - around_s <= float(line.split()[0]) <= at + 0.001:
            print(line)
    for _, violations in result.failing:
        print(f"\nseed {seed}:")
        for violation in violations:
            print(f"  {violation}")
    print(f"\n{len(result.failing)} failing; faults: {dict(result.faults)}")
    return 1 if result.failing else 0


def simulate(first: int, count: int, workers: int, most: int) -> int:
    """Run seeds and print the results."""
    start = time.monotonic()
    total = Result()
    for part in run_many(first, count, workers):
        for seed, violations in part.failing:
            print(f"seed {seed}: {violations[0]}")
            print(f"  {len(violations)} in all; replay: python -m tests.simulation --seed {seed}")
        for text in part.probed:
            print(text)
        total.add(part)
        if len(total.failing) + len(total.probed) >= most:
            print(f"stopped after {most} violations")
            break
    took_s = time.monotonic() - start
    print(f"{total.seeds} seeds in {took_s:.1f} s: {total.seeds / took_s:.0f} seeds/s")
    print(f"{total.scripts} script executions ({total.scripts / took_s:.0f}/s)")
    print(f"{total.acquired} acquisitions, {total.waited} waits in line")
    print("faults: " + ", ".join(f"{name} {n}" for name, n in sorted(total.faults.items())))
    print(f"two holders by nature: {dict(sorted(total.attributed.items()))}")
    print(f"violations: {len(total.failing)} seeds, {len(total.probed)} of as many probes")
    return 1 if total.failing or total.probed else 0


def find_planted(most: int) -> int:
    """Print for each planted bug which seed finds it first, and by which rule."""
    missed = 0
    for name in (*planted.PLANTED, *planted.DRIVER):
        found = planted.find(name, most)
        missed += found is None
        print(f"{name}: " + ("not found" if found is None else "seed {}, {}".format(*found)))
    return 1 if missed else 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed, with its trace")
    parser.add_argument(
        "--around", type=float, default=0, help="print only so many seconds before the failure"
    )
    parser.add_argument("--seeds", type=int, default=5000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--most", type=int, default=20, help="stop after this many failing seeds")
    kinds = ["seeds", "mutants", "planted", "schedule"]
    parser.add_argument("what", nargs="?", choices=kinds, default="seeds")
    options = parser.parse_args()
    if options.what == "mutants":
        return mutants.main(options.seeds, options.workers, options.first)
    if options.what == "planted":
        return find_planted(options.seeds)
    if options.what == "schedule":
        return schedule.main()
    if options.seed is not None:
        return replay(options.seed, options.around)
    return simulate(options.first, options.seeds, options.workers, options.most)


if __name__ == "__main__":
    sys.exit(main())

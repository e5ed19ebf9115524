"""Run many seeds, on several cores."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterable
from typing import TypeVar

from lualock.scripts import every
from tests.simulation.contracts import JOBS, MULTI, contract_of
from tests.simulation.probes import Bench
from tests.simulation.run import Result, has_jobs, has_multi, play
from tests.simulation.world import Server

CHUNK = 200
SEEDS = ((JOBS, has_jobs), (MULTI, has_multi))
"""Contracts whose scripts only some seeds run."""
A = TypeVar("A")
B = TypeVar("B")


def run_chunk(seeds: range) -> Result:
    """Run some seeds in this process, and as many probes."""
    global _here
    if _here is None:
        _here = Server(), Bench()
    server, bench = _here
    total = Result()
    for seed in seeds:
        total.add(play(seed, server))
        total.probed += [f"probe {seed}: {text}" for text in bench.probe(seed)]
    return total


_here: tuple[Server, Bench] | None = None


def run_many(first: int, count: int, workers: int) -> Iterable[Result]:
    """Run many seeds on several cores; yield the result of each chunk."""
    ends = range(first, first + count, CHUNK)
    chunks = [range(start, min(start + CHUNK, first + count)) for start in ends]
    return in_parallel(run_chunk, chunks, workers)


def in_parallel(work: Callable[[A], B], jobs: list[A], workers: int) -> Iterable[B]:
    """Do work in several processes; yield the results in order."""
    if workers == 1:
        yield from map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(work, jobs)


def hunt(
    changed: dict[bytes, bytes],
    most: int,
    only: Callable[[int], bool] | None = None,
    *,
    bugs: frozenset[str] = frozenset(),
    rule: str = "",
) -> tuple[int, str] | None:
    """Return the first seed that fails on changed scripts, and by which rule; None if none of
    ``most`` does.

    ``only``: chooses the seeds. ``bugs``: of the simulated driver. ``rule``: only this one counts.
    """
    server = Server()
    server.sources, server.bugs = changed, bugs
    judges = {contract_of(one) for one in every().values() if one.source in changed}
    for contract, runs in SEEDS:
        if only is None and judges == {contract}:
            only = runs  # other seeds do not run these scripts
    seeds: Iterable[int] = filter(only, itertools.count()) if only else itertools.count()
    for seed in itertools.islice(seeds, most):
        for _, violations in play(seed, server).failing:
            rules = [violation.rule for violation in violations]
            if not rule or rule in rules:
                return seed, rule or rules[0]
    return None

"""Many seeds, on several cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable

from tests.simulation.run import Result, play
from tests.simulation.world import Server

CHUNK = 200


def run_chunk(seeds: range) -> Result:
    """Run some seeds in this process."""
    global _server
    if _server is None:
        _server = Server()
    total = Result()
    for seed in seeds:
        total.add(play(seed, _server))
    return total


_server: Server | None = None


def run_many(first: int, count: int, workers: int) -> Iterable[Result]:
    """Run many seeds on several cores, and tell of each chunk."""
    ends = range(first, first + count, CHUNK)
    chunks = [range(start, min(start + CHUNK, first + count)) for start in ends]
    if workers == 1:
        yield from map(run_chunk, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(run_chunk, chunks)

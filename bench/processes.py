"""Processes as pre-forking workers are made: forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["bench.rivals.preload", "bench.rivals.roster", "bench.crowd", "bench.recovery"]
)

"""Processes as pre-forking workers are made: forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing

FORKED = ("rivals.preload", "rivals.roster", "crowd", "promptness", "races", "recovery", "wake_ups")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"bench.{name}" for name in FORKED])

"""Processes like pre-forking workers: forked from one that has all imports."""

from __future__ import annotations

import multiprocessing

FORKED = ("rivals.preload", "rivals.roster", "crowd", "promptness", "races", "recovery", "wake_ups")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"bench.{name}" for name in FORKED])

"""Import every rival that can be imported, so that processes forked from one have them at once."""

from __future__ import annotations

import contextlib
from importlib import import_module

from bench.rivals import SYNC, TASKS

for _where in (SYNC | TASKS).values():
    # The use of the rival reports its error.
    with contextlib.suppress(Exception):
        import_module("bench.rivals." + _where.split(":")[0])

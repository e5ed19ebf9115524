"""Seeds that found something, with a line each. ``tests/test_simulation.py`` plays them all.

A seed means a run only as long as the simulator and the library draw the same numbers in the same
order, so an old one may not meet its old bug any more; it costs a few milliseconds all the same.
"""

from __future__ import annotations

REGRESSIONS: dict[int, str] = {
    29666: "a ghost's place in the queue stayed: its abandon had no ticket",
    21979: "no ghost was laid after a lease that was found lost",
}

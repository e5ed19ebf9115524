"""Layer 6, a leaf: only one instance of a job runs at a time.

``arguments`` makes a lock's name from a job's arguments, ``run`` is the order of events (one logic
for functions and coroutines), ``decorator`` and ``locked_job`` are the two ways to declare a job.
"""

from lualock.jobs.decorator import JobMaker
from lualock.jobs.locked_job import LockedJob

__all__ = ["JobMaker", "LockedJob"]

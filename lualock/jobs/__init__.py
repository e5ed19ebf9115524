"""Run one instance of a job at a time, and enqueue a job only once.

* ``decorator`` and ``locked_job`` declare a job; ``declaration`` is what both make.
* ``naming`` derives the lock's name from the job's arguments; ``identity`` is about ids and tokens.
* ``run`` is the order of events of one run: ``acquire`` takes its locks, ``policies`` say what to
  do while another holder has one, ``finish`` gives them up, or keeps what the next delivery needs.
* ``enqueue`` is the order of events of enqueueing, ``reservation`` what a queued job holds.
* ``actions`` carries both orders of events out, for functions and for coroutines.
* ``verbs`` and ``scripts/`` are the protocol of jobs, beyond that of locks.
* ``job_adapter`` is what an integration calls; ``delivery`` has what it passes in and gets back.

The integrations of the job systems are in :mod:`lualock.integrations`.
"""

from lualock.jobs.acquire import Attempt, Contention
from lualock.jobs.as_function import as_function
from lualock.jobs.decorator import JobMaker
from lualock.jobs.delivery import (
    RESERVE_S,
    Delivery,
    Enqueued,
    Refused,
    Reserved,
    RetryLater,
    Superseded,
)
from lualock.jobs.identity import token_of
from lualock.jobs.job_adapter import JobAdapter, adapter
from lualock.jobs.locked_job import LockedJob
from lualock.jobs.policies import Coalesce, Raise, Replace, Retry, Skip, Wait
from lualock.jobs.run import current_lease

__all__ = [
    "RESERVE_S",
    "Attempt",
    "Coalesce",
    "Contention",
    "Delivery",
    "Enqueued",
    "JobAdapter",
    "JobMaker",
    "LockedJob",
    "Raise",
    "Refused",
    "Replace",
    "Reserved",
    "Retry",
    "RetryLater",
    "Skip",
    "Superseded",
    "Wait",
    "adapter",
    "as_function",
    "current_lease",
    "token_of",
]

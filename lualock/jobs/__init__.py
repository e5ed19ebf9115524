"""Layer 6, a leaf: only one instance of a job runs at a time.

``arguments`` makes a lock's name from a job's arguments, ``job`` is what is known of a job,
``terms`` what its declaration and a job system say. ``run`` and ``enqueue`` are orders of events
(one logic for functions and coroutines, carried out by ``actions``), ``taking`` is how a run gets
its lock, ``policies`` what else may be done when that is held, ``finish`` how it gives it up;
``places`` is what a queued job has. ``verbs`` and ``scripts/`` are what a lock does not have: to
take it by way of a place, and the request to stop. ``decorator`` and ``locked_job`` are the two
ways to declare a job, ``bound`` is what a job system's integration calls. ``rq``, ``celery``,
``dramatiq``, ``huey``, ``arq``, ``taskiq`` and ``saq`` are these integrations; nothing here imports
them.
"""

from lualock.jobs.as_function import as_function
from lualock.jobs.bound import JobAdapter, bound
from lualock.jobs.decorator import JobMaker
from lualock.jobs.locked_job import LockedJob
from lualock.jobs.policies import Coalesce, Replace, Retry, Skip, Wait
from lualock.jobs.run import current_lease
from lualock.jobs.taking import Attempt, Contention
from lualock.jobs.terms import (
    RESERVE_S,
    Delivery,
    Enqueued,
    Refused,
    Reserved,
    RetryLater,
    Superseded,
    token_of,
)

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
    "Refused",
    "Replace",
    "Reserved",
    "Retry",
    "RetryLater",
    "Skip",
    "Superseded",
    "Wait",
    "as_function",
    "bound",
    "current_lease",
    "token_of",
]

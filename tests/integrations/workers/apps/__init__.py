"""A program of each system, as its users write one: the jobs, and ``send``, which enqueues one.

A feature of only some systems, a delayed start or the removal of a queued job, is a function
``later`` or ``remove`` of their programs. The workers are started by ``fleet``.
"""

import os
from typing import Any

from lualock.jobs import Enqueued, Refused

BROKER = os.environ["LUALOCK_BROKER"]
RETRY_S = 1
FLAKY = ("holding", "freeing", "stubborn", "hopeless", "struck")
"""The jobs that their system is to try a second time, after RETRY_S seconds."""
DELAY_S = 3
BACK_S = 25
"""When a job comes back whose worker was killed, where a system has a way to do that."""


def outcome(entry: Enqueued | Refused) -> dict[str, Any]:
    """Return the outcome of enqueueing a job, for the producer's answer."""
    state = "enqueued" if isinstance(entry, Enqueued) else entry.state
    return {"state": state, "job_id": entry.job_id}

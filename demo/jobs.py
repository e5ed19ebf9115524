"""The job: this is all that a user of lualock writes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import ClassVar

import lualock
from demo.events import EventLog
from demo.graph import network


class UpdateNetworkGraph(lualock.LockedJob):
    """Rebuild the network graph of a repository, never twice at the same time."""

    lock_timeout = 1.5  # seconds; explicit, so the lease is not renewed

    log: ClassVar[EventLog]
    results: ClassVar[Path]

    @classmethod
    def lock(cls, repo_id: int, job: int, work_s: float) -> str:
        """Return the name of the lock: one for each repository, whatever the other arguments."""
        return f"network-graph:{repo_id}"

    @classmethod
    def lock_failed(cls, repo_id: int, job: int, work_s: float, *, holder: str) -> None:
        """Called instead of the work if another worker has the lock."""
        cls.log.write("refused", repo_id, job, holder)

    @classmethod
    def lock_expired_before_release(cls, repo_id: int, job: int, work_s: float) -> None:
        """Called after the work if it took longer than the lease."""
        cls.log.write("expired", repo_id, job)

    @classmethod
    def perform(cls, repo_id: int, job: int, work_s: float) -> None:
        """Do the work; ``work_s`` seconds of it stand for a slow disk."""
        cls.log.write("started", repo_id, job)
        time.sleep(work_s)
        (cls.results / f"{repo_id}.json").write_text(json.dumps(network(repo_id)))
        cls.log.write("finished", repo_id, job)

"""The job: this is all that a user of lualock writes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import ClassVar

import lualock
from demo.events import Diary
from demo.graph import network


class UpdateNetworkGraph(lualock.LockedJob):
    """Rebuild the network graph of a repository; never twice at the same time."""

    lock_timeout = 1.5  # seconds; explicit, so the lease is not renewed: work had better be faster

    diary: ClassVar[Diary]
    results: ClassVar[Path]

    @classmethod
    def lock(cls, repo_id: int, job: int, work_s: float) -> str:
        """One lock a repository, whatever else the job is told."""
        return f"network-graph:{repo_id}"

    @classmethod
    def lock_failed(cls, repo_id: int, job: int, work_s: float, *, holder: str) -> None:
        """Called instead of the work, when somebody is at it already."""
        cls.diary.write("refused", repo_id, job, holder)

    @classmethod
    def lock_expired_before_release(cls, repo_id: int, job: int, work_s: float) -> None:
        """Called after the work, when it took longer than the lease."""
        cls.diary.write("expired", repo_id, job)

    @classmethod
    def perform(cls, repo_id: int, job: int, work_s: float) -> None:
        """The work itself; ``work_s`` seconds of it stand for a slow disk."""
        cls.diary.write("started", repo_id, job)
        time.sleep(work_s)
        (cls.results / f"{repo_id}.json").write_text(json.dumps(network(repo_id)))
        cls.diary.write("finished", repo_id, job)

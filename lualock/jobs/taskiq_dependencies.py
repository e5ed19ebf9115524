"""What taskiq gives a task beside what it was sent with: its dependencies (``TaskiqDepends``).

They are no arguments of the job: who enqueues it has none of them, and a session of a data base
has no name that is the same in every process. So they go past the lock to the job's body.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

from taskiq_dependencies import DependencyGraph

from lualock.errors import InvalidArgument
from lualock.jobs.bound import JobAdapter

_given: ContextVar[Mapping[str, Any]] = ContextVar("lualock_taskiq_given")


class Dependencies:
    """Those of one job."""

    def __init__(self, work: JobAdapter, job: Any) -> None:
        self._with, self._is_class = work, isinstance(job, type)
        self.body = work.body

    def without(self) -> JobAdapter:
        """The job without them: for its lock's name, its callbacks, and who enqueues it."""
        return self._work

    @cached_property
    def _work(self) -> JobAdapter:
        # Not when it is declared: what its hints name may be defined after it.
        work, names = self._with, self._names
        if names and self._is_class:
            raise InvalidArgument(
                f"job {work.name}: of a class, the dependencies {sorted(names)} would be among "
                "the arguments that name its lock; make it a function"
            )
        if names:
            body, job = self.body, work._job
            own = [value for name, value in job.signature.parameters.items() if name not in names]
            job.signature = job.signature.replace(parameters=own)
            job.body = lambda *args, **kwargs: body(*args, **kwargs, **_given.get())
        return work

    @cached_property
    def _names(self) -> frozenset[str]:
        body = self.body
        found = (each for some in DependencyGraph(body).dependencies.values() for each in some)
        return frozenset(
            each.param_name for each in found if each.parent and each.parent.dependency == body
        )

    @contextmanager
    def past(self, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Code in which the body gets them out of these arguments; the others."""
        before = _given.set({name: kwargs[name] for name in self._names & kwargs.keys()})
        try:
            yield {name: value for name, value in kwargs.items() if name not in self._names}
        finally:
            _given.reset(before)

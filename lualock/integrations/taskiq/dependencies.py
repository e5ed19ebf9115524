"""Keep the dependencies of a taskiq task (``TaskiqDepends``) out of its lock's name.

They are not arguments of the job: its producer has none of them, and a session of a database has no
text that is the same in every process. They are passed to the job's body directly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

from taskiq_dependencies import DependencyGraph

from lualock.errors import InvalidArgument
from lualock.jobs import JobAdapter

_values: ContextVar[Mapping[str, Any]] = ContextVar("lualock_taskiq_dependencies")


class Dependencies:
    """The dependencies of one job."""

    def __init__(self, adapter: JobAdapter, job: Any) -> None:
        self._declared, self._is_class = adapter, isinstance(job, type)
        self.body = adapter.body

    def adapter(self) -> JobAdapter:
        """Return the job without dependencies, for its lock's name, callbacks and producers."""
        return self._adapter

    @cached_property
    def _adapter(self) -> JobAdapter:
        # Not at declaration: the type hints may name what is defined later.
        adapter, names = self._declared, self._names
        if names and self._is_class:
            raise InvalidArgument(
                f"could not make a task of job {adapter.name}: it is a class, so the dependencies "
                f"{sorted(names)} would be among the arguments that name its lock. Make it a "
                "function"
            )
        if names:
            body, job = self.body, adapter.job
            own = [value for name, value in job.signature.parameters.items() if name not in names]
            job.signature = job.signature.replace(parameters=own)
            job.body = lambda *args, **kwargs: body(*args, **kwargs, **_values.get())
        return adapter

    @cached_property
    def _names(self) -> frozenset[str]:
        body = self.body
        graph = DependencyGraph(body).dependencies
        found = (dependency for group in graph.values() for dependency in group)
        return frozenset(
            each.param_name for each in found if each.parent and each.parent.dependency == body
        )

    @contextmanager
    def set_aside(self, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Set the dependencies among these arguments aside for the body; yield the others."""
        reset_token = _values.set({name: kwargs[name] for name in self._names & kwargs.keys()})
        try:
            yield {name: value for name, value in kwargs.items() if name not in self._names}
        finally:
            _values.reset(reset_token)

"""Find the adapter of a job, as an integration needs it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

from lualock import jobs
from lualock.errors import InvalidArgument
from lualock.jobs.identity import names_in

log = logging.getLogger("lualock.jobs")

SYSTEM = "__lualock_system__"
"""The attribute of a function that names the integration that made it; see :func:`adapter_in`."""


CARRIED = "lualock_token"
"""The argument in which a token travels, where a system has no other place for it. The function
that the system calls takes it out, and the job does not get it."""


def with_adapter(function: Callable[..., Any], adapter: Any, job: Any) -> Callable[..., Any]:
    """Return the function that an integration made of a job, so that :func:`jobs.adapter` finds the
    job's adapter. A job that is a class gives the function its name."""
    function.__lualock__ = adapter  # type: ignore[attr-defined]  # functions take any attribute
    if isinstance(job, type):
        function.__name__, function.__qualname__ = job.__name__, job.__qualname__
    return function


def innermost_adapter(job: Any) -> jobs.JobAdapter:
    """Return the adapter of a job that an integration runs itself.

    The integration calls the job's body, so it never calls a decorator above ``locks.job``.

    :raises InvalidArgument: ``job`` is not a job, or has a decorator above ``locks.job``.
    """
    adapter = jobs.adapter(job)
    if not isinstance(job, type) and getattr(job, "__wrapped__", None) != adapter.body:
        raise InvalidArgument(
            f"could not use job {adapter.name}: what is above locks.job (another decorator, or "
            "pydantic=True of Celery) would never be called. Put it below locks.job"
        )
    return adapter


def is_outer(function: Callable[..., Any]) -> bool:
    """Return whether a function is a decorator's above ``locks.job``, which calls what that made.

    Such a function has copied its attributes (``functools.wraps``).
    """
    inner = getattr(function, "__wrapped__", None)
    adapter = getattr(function, "__lualock__", None)
    return getattr(inner, "__lualock__", None) is adapter and isinstance(adapter, jobs.JobAdapter)


def forget_unknown(adapters: Iterable[jobs.JobAdapter], job_id: str, token: str | None) -> None:
    """Release what a job holds whose function no worker knows any more, because it was renamed.

    The names that travelled with the job say where, on each server of the jobs that are known.
    """
    if not token or not names_in(token):
        return
    for adapter in {(one.locks.server, one.locks.prefix): one for one in adapters}.values():
        try:
            adapter.cancel(job_id=job_id, token=token)
        except Exception as error:
            log.warning("what the unknown job %s holds expires on its own: %s", job_id, error)


def run_here(adapter: jobs.JobAdapter, args: Any, kwargs: Any, delivery: Any) -> Any:
    """Run a job to its end in this thread; a coroutine gets an event loop of its own."""
    result = adapter.run(args, kwargs, delivery)
    return asyncio.run(result) if adapter.asynchronous else result


def delivered_by(run: Callable[..., Any], calls: int) -> tuple[Any, Any] | None:
    """Return a worker and the message that it delivers by this call, or ``None``.

    A hook is set on the broker where a job is declared. Another broker may deliver the job, and has
    no hook then.

    :param run: the worker's method that calls a job's function, with ``self`` and ``message``.
    :param calls: how many calls are between that method and the caller of this function.
    """
    frame = inspect.currentframe()
    for _ in range(calls + 1):
        frame = frame and frame.f_back
    if frame is None or frame.f_code is not getattr(run, "__code__", None):
        return None  # other code calls the function, which is not a delivery
    return frame.f_locals["self"], frame.f_locals["message"]


def adapter_in(system: str, function: Any) -> jobs.JobAdapter:
    """Return the adapter of a function that ``locked`` of an integration made.

    Another function would run under its lock too, but not as the job that was queued, so that
    job's reservation would stay.

    :raises InvalidArgument: it is not a job, or ``locked`` did not make it.
    """
    adapter = jobs.adapter(function)
    if getattr(function, SYSTEM, None) != system:
        raise InvalidArgument(
            f"could not enqueue job {adapter.name}: it was not made for this system. Decorate it "
            f"with lualock.integrations.{system}.locked, above locks.job"
        )
    return adapter

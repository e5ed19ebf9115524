"""A job that is a class, as the function that most job systems want."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lualock.jobs.bound import bound


def as_function(job: Any) -> Callable[..., Any]:
    """A function of the name and the arguments of a :class:`lualock.LockedJob`, to be given to a
    system's own decorator: ``app.task(base=LockedTask)(as_function(UpdateNetworkGraph))``."""
    work = bound(job)
    if work.asynchronous:

        @functools.wraps(work.body)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await work.run(args, kwargs)

        call: Any = call_async
    else:

        @functools.wraps(work.body)
        def call_plain(*args: Any, **kwargs: Any) -> Any:
            return work.run(args, kwargs)

        call = call_plain
    for name in ("__module__", "__name__", "__qualname__"):
        setattr(call, name, getattr(job, name))
    call.__lualock__ = work  # what bound() looks for
    return call  # type: ignore[no-any-return]

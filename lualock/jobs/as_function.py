"""Turn a job that is a class into the function that most job systems want."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lualock.jobs import job_adapter


def as_function(job: Any) -> Callable[..., Any]:
    """Return a function with the name and the arguments of a :class:`lualock.LockedJob`.

    Pass it to a system's own decorator:
    ``app.task(base=LockedTask)(as_function(UpdateNetworkGraph))``.
    """
    adapter = job_adapter.adapter(job)
    if adapter.asynchronous:

        @functools.wraps(adapter.body)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await adapter.run(args, kwargs)

        call: Any = call_async
    else:

        @functools.wraps(adapter.body)
        def call_plain(*args: Any, **kwargs: Any) -> Any:
            return adapter.run(args, kwargs)

        call = call_plain
    for name in ("__module__", "__name__", "__qualname__"):
        setattr(call, name, getattr(job, name))
    call.__lualock__ = adapter  # jobs.adapter() looks for this attribute
    return call  # type: ignore[no-any-return]

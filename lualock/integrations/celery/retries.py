"""What Celery will do with a task: when it begins, whether it failed, and when it is retried."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from celery.exceptions import Ignore, Reject, Retry, TaskPredicate

from lualock.jobs.delivery import is_failure


def delay_s(options: dict[str, Any]) -> float:
    """Return in how many seconds a task may begin. Workers take a naive time as UTC."""
    eta = options.get("eta")
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta.replace("Z", "+00:00"))
    if isinstance(eta, datetime):
        if eta.tzinfo is None:
            eta = eta.replace(tzinfo=timezone.utc)
        return (eta - datetime.now(eta.tzinfo)).total_seconds()
    return float(options.get("countdown") or 0.0)


def failed(error: BaseException) -> bool:
    """Return whether Celery counts the error of a task that is not retried as a failure."""
    return is_failure(error) and (
        not isinstance(error, TaskPredicate) or getattr(error, "requeue", None) is False
    )


def retry_s(task: Any, error: BaseException) -> float | None:
    """Return in how many seconds at most Celery retries a task that raised this, or ``None``."""
    if task.request.is_eager:  # at once, or never: if its error is propagated, or put back
        return None
    if isinstance(error, Reject):  # a task that was acknowledged before it began stays out
        return 0.0 if error.requeue and task.acks_late else None
    if isinstance(error, Ignore):
        return None
    if isinstance(error, Retry):
        if error.sig is not None and changes_lock(task, error.sig.args, error.sig.kwargs):
            return None  # it has other arguments, and this run keeps nothing for those
        if isinstance(error.when, datetime):
            return max(0.0, delay_s({"eta": error.when}))
        return float(error.when or 0.0)
    # As Celery's add_autoretry_behaviour decides, which wraps this code.
    settings = {"max_retries": task.max_retries} | getattr(task, "retry_kwargs", {})
    if not isinstance(error, tuple(getattr(task, "autoretry_for", ()))):
        return None
    if isinstance(error, tuple(getattr(task, "dont_autoretry_for", ()))):
        return None
    if settings["max_retries"] is not None and task.request.retries >= settings["max_retries"]:
        return None
    if getattr(task, "retry_backoff", False):
        return float(getattr(task, "retry_backoff_max", 600))
    return float(settings.get("countdown", task.default_retry_delay))


def changes_lock(task: Any, args: Any, kwargs: Any) -> bool:
    """Return whether these arguments give another lock than those of the task that runs now."""

    def key(args: Any, kwargs: Any) -> bytes:
        return task.work.lock(args or (), kwargs or {}).key  # type: ignore[no-any-return]

    return key(args, kwargs) != key(task.request.args, task.request.kwargs)

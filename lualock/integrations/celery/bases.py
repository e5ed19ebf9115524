"""What a locked task has from the Task class of its app.

``base=LockedTask`` replaces the class that the app gives to its tasks otherwise: the one of
``Celery(task_cls=...)``, or Celery's own for Django, which has ``delay_on_commit``. So a task
derives from both.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import celery
from kombu.utils.imports import symbol_by_name


def bases_with_own(cls: type) -> tuple[type, ...]:
    """Return the base classes of a task class, with the one that its app has for all tasks."""
    app, own = vars(cls).get("app"), None
    if isinstance(app, celery.Celery):
        own = app.Task
    elif "_app" in vars(cls):  # this is the class for all tasks of an app
        own = _class_for_django()
    if own is None or issubclass(cls, own):
        return cls.__bases__
    return (*(base for base in cls.__bases__ if not issubclass(own, base)), own)


def request_class(cls: Any, locked: str) -> Any:
    """Return the request class of a task: the locked one, and with it one that the user declared.

    :param locked: the name of the locked one.
    """
    for base in cls.__mro__:
        declared = vars(base).get("Request")
        if declared in (None, locked, celery.Task.Request):
            continue
        ours, theirs = map(symbol_by_name, (locked, declared))
        return theirs if issubclass(theirs, ours) else type(theirs.__name__, (ours, theirs), {})
    return locked


def _class_for_django() -> Any:
    """Return the class that Celery takes for tasks in a Django project, or ``None`` elsewhere."""
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        with suppress(ImportError):  # Celery ignores the variable then
            from celery.contrib.django.task import DjangoTask

            return DjangoTask
    return None

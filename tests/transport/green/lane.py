"""Choose the tests that run under green threads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.servers import BINARIES

FILES = (
    "tests/transport/green/cases.py tests/server/test_waiting.py tests/server/test_loss.py "
    "tests/transport/test_faults.py"
)

LEFT_OUT = dict.fromkeys(
    [
        "test_a_generator_that_closes_all_as_it_ends_with_its_loop",
        "test_a_generator_that_ends_with_its_loop_releases_its_lock",
        "test_a_loop_that_ends_after_aclose",
        "test_a_loop_that_was_just_closed_is_forgotten",
        "test_loops_do_not_share_connections",
        "test_a_waiter_in_a_loop_that_was_just_closed",
    ],
    "about event loops of asyncio alone",
)
"""Tests by name, and why they do not run under green threads. (Coroutine functions without a
variant for threads are about asyncio alone, too.)"""


@dataclass(frozen=True)
class Green:
    """The parts of the patching library that tests use."""

    spawn: Callable[..., Any]
    """Start a greenlet: a function and its arguments."""
    kill: Callable[[Any], None]
    """Raise GreenletExit in a greenlet, wherever it waits."""
    Timeout: Any
    """``with Timeout(seconds)`` raises itself in this greenlet after that time."""


class Lane:
    """A pytest plugin: each test once, in its variant for threads, on one server."""

    def __init__(self, library: str) -> None:
        self._library = library

    @pytest.fixture
    def green(self) -> Green:
        """Return the green threads of this process."""
        if self._library == "gevent":
            import gevent

            return Green(gevent.spawn, gevent.kill, gevent.Timeout)
        import eventlet

        return Green(eventlet.spawn, eventlet.kill, eventlet.Timeout)

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Choose the tests."""
        kept: dict[str, pytest.Item] = {}
        for item in items:
            assert isinstance(item, pytest.Function)
            params = dict(item.callspec.params) if hasattr(item, "callspec") else {}
            # Coroutine functions without this parameter are about asyncio alone.
            asynchronous = params.pop("asynchronous", inspect.iscoroutinefunction(item.obj))
            server = params.pop("server", None)
            params.pop("resp", None)
            first = server in (None, next(iter(BINARIES)))
            if first and not asynchronous and item.originalname not in LEFT_OUT:
                kept.setdefault(f"{item.path}::{item.originalname}{params}", item)
        left = set(items) - set(kept.values())
        items[:] = kept.values()
        config.hook.pytest_deselected(items=list(left))

"""Carry out the steps of a protocol by hand."""

from __future__ import annotations

from lualock._protocol import RunScript, ServerClock


def sent(step: object, server: ServerClock) -> RunScript:
    """Return a step as it is when a driver has sent it."""
    assert isinstance(step, RunScript)
    server.stamp(step)
    return step

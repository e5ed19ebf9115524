"""Run another thread's work between any two instructions of a function."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from typing import Any


def interleaved(
    at: int,
    where: str,
    work: Callable[[], object],
    other: Callable[[], object],
    *,
    patience_s: float = 5.0,
) -> bool:
    """Do ``work``, and ``other`` in another thread just before the ``at``-th instruction of the
    function ``where``; return whether there are so many.

    If ``other`` takes longer than ``patience_s``, because it waits for ``where``, both go on.
    """
    left, thread = at, threading.Thread(target=other)

    def trace(frame: types.FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_name != where:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                thread.start()
                thread.join(patience_s)
        return trace

    previous_trace = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(previous_trace)
    if left <= 0:
        thread.join(5)
        assert not thread.is_alive()
    return left <= 0

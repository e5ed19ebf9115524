"""Layer 0: random words, made some at a time: to ask the system for each would cost a hundredth of
what a lock does."""

from __future__ import annotations

from collections.abc import Callable

from lualock._core import fork


class Supply:
    """Words that ``make`` makes, each used once. Take one by ``spare.pop()``, or where there is
    none (``IndexError``) by :meth:`more`."""

    def __init__(self, make: Callable[[], list[bytes]]) -> None:
        self._make = make
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """A child must not use its parent's."""
        self.spare: list[bytes] = []

    def more(self) -> bytes:
        """Make some, and take one."""
        made = self._make()
        one = made.pop()
        self.spare += made
        return one

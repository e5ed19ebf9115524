"""Make random words in batches: one system call for each costs a hundredth of a whole lock."""

from __future__ import annotations

from collections.abc import Callable

from lualock._core import fork


class Supply:
    """A supply of words that ``make`` makes, each used once.

    Take one by ``spare.pop()``, and if that is empty (``IndexError``) by :meth:`more`.
    """

    def __init__(self, make: Callable[[], list[bytes]]) -> None:
        self._make = make
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """Drop the words, because a child must not use its parent's."""
        self.spare: list[bytes] = []

    def more(self) -> bytes:
        """Make a batch, and take one word."""
        made = self._make()
        one = made.pop()
        self.spare += made
        return one

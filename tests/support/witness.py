"""A witness for tests: every contender tells it what it has, and it finds what must not be."""

from __future__ import annotations

from typing import Any


class Witness:
    """Sees two holders inside reported validity, and fences that do not grow."""

    def __init__(self) -> None:
        self.leases: list[Any] = []
        self.fences: list[int] = []
        self._given: list[Any] = []

    def look(self) -> None:
        """At most one lease says that it is held."""
        held = [lease for lease in self.leases if lease.held]
        assert len(held) <= 1, f"two holders: {held}"

    def took(self, lease: Any) -> None:
        """Somebody has just acquired this lease."""
        self.leases.append(lease)
        self.look()
        if lease.held:  # else it came too late, and perhaps after its successor
            assert not self.fences or lease.fence > self.fences[-1], "the fence did not grow"
            self.fences.append(lease.fence)
        else:
            assert lease.fence not in self.fences, "a fence came twice"

    def gives(self, lease: Any) -> None:
        """The lease is about to be given back: another may have it before it says so."""
        self.leases.remove(lease)
        self._given.append(lease)

    def passed_on_since(self, lease: Any) -> bool:
        """Whether somebody had the lock after this lease, and gave it back."""
        return any(later.fence > lease.fence for later in self._given)

    def gave(self, lease: Any) -> None:
        """Giving it back has ended, well or not: what it says of itself counts again."""
        self.leases.append(lease)
        self.look()

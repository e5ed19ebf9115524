"""A witness for tests: contenders report their leases to it, and it finds violations."""

from __future__ import annotations

from typing import Any


class Witness:
    """Finds two holders at one time, and fences that do not increase."""

    def __init__(self) -> None:
        self.leases: list[Any] = []
        self.fences: list[int] = []
        self._released: list[Any] = []

    def check(self) -> None:
        """Check that at most one lease is held."""
        held = [lease for lease in self.leases if lease.held]
        assert len(held) <= 1, f"two holders: {held}"

    def acquired(self, lease: Any) -> None:
        """Note a lease that was just acquired."""
        self.leases.append(lease)
        self.check()
        if lease.held:  # otherwise it came late, perhaps after its successor
            assert not self.fences or lease.fence > self.fences[-1], "the fence did not increase"
            self.fences.append(lease.fence)
        else:
            assert lease.fence not in self.fences, "a fence came twice"

    def releasing(self, lease: Any) -> None:
        """Note that a lease is about to be released: the next holder may report first."""
        self.leases.remove(lease)
        self._released.append(lease)

    def released_since(self, lease: Any) -> bool:
        """Whether a later lease of the lock was released."""
        return any(later.fence > lease.fence for later in self._released)

    def release_ended(self, lease: Any) -> None:
        """Note that the release has ended, with or without success: the lease counts again."""
        self.leases.append(lease)
        self.check()

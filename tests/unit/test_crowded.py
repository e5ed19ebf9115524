"""The hint that a lock has waiters: remembered by name, and bounded."""

from __future__ import annotations

from lualock._core.lock import Crowded


def test_it_is_bounded() -> None:
    """The hint forgets a lock that is free again, and never remembers more than its limit."""
    crowded = Crowded()
    for number in range(3 * Crowded.MAX):
        crowded.note(b"%d" % number, True)
        assert len(crowded) <= Crowded.MAX
    crowded.note(b"a", True)
    assert b"a" in crowded
    crowded.note(b"a", False)
    assert b"a" not in crowded

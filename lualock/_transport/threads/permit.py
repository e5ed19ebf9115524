"""The right to one thing, for as long as somebody has it."""

from __future__ import annotations


class Permit:
    """Known to others by weak references only, so it is gone with whatever has it, however that
    ended: an interruption between taking a lock and the ``try`` that gives it back cannot leave it
    taken for ever."""

    __slots__ = ("__weakref__",)

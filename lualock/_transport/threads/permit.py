"""The right to one thing, for as long as its owner exists."""

from __future__ import annotations


class Permit:
    """A right that ends with its owner. It is counted through weak references only, so it is gone
    with its owner, however that ended: an interruption between taking a lock and the ``try`` that
    returns it cannot leave it taken for ever."""

    __slots__ = ("__weakref__",)

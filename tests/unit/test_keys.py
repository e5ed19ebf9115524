"""Names and their keys: one to one, with one hash tag."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from lualock._core.keys import display_name, lock_key

NAMES = st.one_of(
    st.binary(min_size=1, max_size=80),
    st.text(st.characters(), min_size=1, max_size=40),
    st.text("{}%7D25\x00\n a", min_size=1, max_size=8),
)


def _raw(name: str | bytes) -> bytes:
    return name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name


def _hash_tag(key: bytes) -> bytes:
    # As the cluster specification says: between the first { and the first } after it.
    start = key.index(b"{") + 1
    return key[start : key.index(b"}", start)]


@given(NAMES, NAMES)
@example("}", "%7D")
@example("a}", "a%7D")
@example("{a}", "a")
def test_one_to_one(one: str | bytes, two: str | bytes) -> None:
    """Two names have one key exactly if they have the same bytes."""
    assert (lock_key(b"p", one) == lock_key(b"p", two)) == (_raw(one) == _raw(two))


@given(NAMES)
@example("}")
@example("{}")
@example("a}b{c")
def test_the_whole_name_is_the_hash_tag(name: str | bytes) -> None:
    """For any name, the hash tag is not empty and ends at the end of the key."""
    key = lock_key(b"p", name)
    tag = _hash_tag(key)
    assert tag
    assert key == b"p:{" + tag + b"}"


@given(NAMES)
def test_names_are_shown_on_one_line(name: str | bytes) -> None:
    """A name in a message is printable and short."""
    shown = display_name(name)
    assert shown.isprintable()
    assert len(shown) <= 80

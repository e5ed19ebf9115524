"""Names of jobs: equal arguments give one name, different arguments give different names."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import inspect
import json
import subprocess
import sys
import uuid
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lualock
from lualock.jobs.naming import bind_arguments, canonical, lock_name

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.binary(max_size=6)
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.dates()
    | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


class Colour(enum.Enum):
    """An enumeration."""

    RED = 1


class Number(enum.IntEnum):
    """An enumeration whose members are also integers."""

    ONE = 1


class Shade(str, enum.Enum):
    """An enumeration whose members are also texts."""

    LIGHT = "light"


def _same(one: Any, two: Any) -> bool:
    """Return whether two values are equal and of the same kinds, at every depth."""
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    return bool(one == two)


@given(PLAIN, PLAIN)
def test_one_text_exactly_for_equal_values(one: Any, two: Any) -> None:
    """Two values have one text exactly if they are equal and of one kind."""
    assert (canonical(one) == canonical(two)) == _same(one, two)


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=6), st.randoms())
def test_order_does_not_matter(values: dict[str, int], random: Any) -> None:
    """The order of a dict or a set does not change its text."""
    items = list(values.items())
    random.shuffle(items)
    assert canonical(dict(items)) == canonical(values)
    assert canonical({k for k, _ in items}) == canonical(set(values))


def test_different_kinds_have_different_texts() -> None:
    """Values of different kinds that print alike have different texts."""
    values: list[Any] = [1, "1", 1.0, True, b"1", None, "null", "None", [1], {1}, {"1": 1}, {2: 1}]
    values += [decimal.Decimal(1), Fraction(1), Colour.RED, "Colour.RED", dt.date(2026, 1, 1)]
    values += ["2026-01-01", dt.datetime(2026, 1, 1), uuid.UUID(int=1), PurePosixPath("1"), []]
    values += ["", b"", {}, set(), "[1]", float("nan"), "nan", float("inf"), [[]], [[], []]]
    assert len({canonical(value) for value in values}) == len(values)


def test_equal_values_have_one_text() -> None:
    """Equal values that are written differently have one text."""
    assert canonical(0.0) == canonical(-0.0)
    assert canonical((1, 2)) == canonical([1, 2])
    assert canonical(decimal.Decimal("1.50")) == canonical(decimal.Decimal("1.5"))
    noon = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone.utc)
    assert canonical(noon) == canonical(noon.astimezone(dt.timezone(dt.timedelta(hours=5))))


@pytest.mark.parametrize(
    "value",
    [
        Number.ONE,
        Shade.LIGHT,
        {Shade.LIGHT: Number.ONE},
        {1: "a", None: "b"},
        {True: [{False: {0.5: (1, 2)}}]},
        {Number.ONE: 1, float("inf"): -0.0},
    ],
)
def test_a_round_trip_through_json_keeps_the_text(value: Any) -> None:
    """A value has the same text after it has passed through JSON."""
    assert canonical(json.loads(json.dumps(value))) == canonical(value)


def test_positional_keyword_and_default_agree() -> None:
    """The name does not depend on how an argument is passed."""

    def job(repo_id: int, depth: int = 3, *more: int, full: bool = False, **rest: int) -> None: ...

    signature = inspect.signature(job)

    def name(*args: Any, **kwargs: Any) -> str:
        return lock_name("job", bind_arguments(signature, args, kwargs))

    assert name(7) == name(repo_id=7) == name(7, 3) == name(7, depth=3, full=False)
    assert name(7, a=1, b=2) == name(7, b=2, a=1)
    others = [name(7), name(8), name(7, 4), name(7, 3, 1), name(7, full=True), name(7, a=1)]
    assert len(set(others)) == len(others)


def test_the_ancestor_s_collision() -> None:
    """("a-b") and ("a", "b") have different keys, which was not so in resque-lock."""
    assert lock_name("job", {"a": "a-b"}) != lock_name("job", {"a": "a", "b": "b"})
    assert lock_name("job", {"a": 'a","b'}) != lock_name("job", {"a": "a", "b": "b"})


def test_names_are_readable_or_digests() -> None:
    """Short plain arguments are readable on the server; long and structured ones are digests."""
    assert lock_name("m.job", {"a": 7, "b": "x"}) == 'job:v1:m.job(7,"x")'
    for secret in ({"password": "hunter2"}, ["hunter2"], "hunter2" * 30):
        name = lock_name("m.job", {"a": secret})
        assert "hunter2" not in name
        assert len(name) < 100


@pytest.mark.parametrize(
    "value",
    [
        *(object(), lambda: 1, iter([]), type, [object()], {"k": object()}),
        *(10**5000, decimal.Decimal("1E+5000")),  # more digits than Python writes
        dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unserialisable_arguments(value: Any) -> None:
    """An argument without a canonical form is refused, with its name and a remedy."""
    with pytest.raises(lualock.InvalidArgument, match=r"argument 'repo' of job m\.job: .*key="):
        lock_name("m.job", {"id": 1, "repo": value})


def test_values_that_contain_themselves() -> None:
    """A list that contains itself is refused without endless recursion."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(lualock.InvalidArgument, match="contains itself"):
        lock_name("m.job", {"loop": loop})


def test_another_process_makes_the_same_name() -> None:
    """A name depends on neither hash seeds nor addresses."""
    code = (
        "from lualock.jobs.naming import lock_name; import uuid, decimal\n"
        "print(lock_name('m.job', {'a': {'x', 'y', 'z'}, 'b': {'k': [1.5, None, b'1']},"
        " 'c': uuid.UUID(int=5), 'd': decimal.Decimal('2.50')}))"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(names) == 1


def test_the_version_pins_the_names() -> None:
    """These texts are stored on servers, so a change needs a new version."""
    value = {"a": [1, 1.5, "x", None, True, b"\x01"], "b": {3, 1, 2}}
    assert canonical(value) == '{"a":[1,1.5,"x",null,true,bytes(01)],"b":set[1,2,3]}'
    assert canonical(Colour.RED) == 'enum("Colour.RED")'
    assert canonical(dt.date(2026, 1, 2)) == "date(2026-01-02)"
    digest = "#a4a81db53d703a17122f56d2d3d58dca6a56c536"
    assert lock_name("m.job", {"a": value}) == f"job:v1:m.job({digest})"


def test_combined_flags_have_different_texts() -> None:
    """Combined flags have different texts, even if Python has no name for them."""

    class May(enum.Flag):
        READ, WRITE, RUN = 1, 2, 4

    together = [May.READ | May.WRITE, May.READ | May.RUN, May(0), May.READ]
    assert len({canonical(value) for value in together}) == len(together)

"""When a waiter checks the queue on its own: a table, and what holds for every waiter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lualock._protocol.schedule import (
    CHECK_GROUPS,
    CHECK_HEAD_S,
    CHECK_LATE_S,
    CHECK_LEAST_S,
    CHECK_MAX_S,
    CHECK_MOST_S,
    YOUNG_S,
    next_check_s,
)


@pytest.mark.parametrize(
    ("ahead", "lease_left_s", "young_left_s", "expected_s"),
    [
        (0, 1.0, 0.0, 1.0 + CHECK_LATE_S),  # the first: when the lease ends
        (0, -1.0, 0.0, CHECK_LATE_S),  # it has ended
        (0, 30.0, 0.0, CHECK_HEAD_S),  # before the end of a long one: its key may be deleted
        (0, None, 0.0, CHECK_HEAD_S),  # a lease without an end: the same
        (0, 30.0, YOUNG_S, YOUNG_S),  # a new waiter checks once more
        (1, 2.0, 0.0, 2.0 + CHECK_LATE_S),  # another one: when the lease ends as well
        (1, 0.1, 0.0, CHECK_LEAST_S),  # but not at each end of a short lease,
        (9, 0.1, 0.0, 9 * CHECK_LEAST_S),  # the more rarely the further back it is,
        (1, 30.0, 0.0, CHECK_MOST_S),  # and before the end of a long one
        (3, 30.0, 0.0, 3 * CHECK_MOST_S),
        (3, None, 0.0, 3 * CHECK_MOST_S),
        (9999, 30.0, 0.0, CHECK_MAX_S - CHECK_GROUPS + 1),  # in a group of those far behind
    ],
)
def test_the_table(
    ahead: int, lease_left_s: float | None, young_left_s: float, expected_s: float
) -> None:
    """Each kind of waiter checks when the table says."""
    assert next_check_s(ahead, lease_left_s, young_left_s) == pytest.approx(expected_s)


@given(
    st.integers(0, 20_000), st.none() | st.floats(-5, 366 * 86_400), st.floats(-YOUNG_S, YOUNG_S)
)
def test_every_waiter(ahead: int, lease_left_s: float | None, young_left_s: float) -> None:
    """No waiter checks later than the queue's key lives, and no waiter behind the first polls."""
    wait_s = next_check_s(ahead, lease_left_s, young_left_s)
    assert 0 < wait_s <= CHECK_MAX_S
    if young_left_s <= 0 and ahead > 0:
        assert wait_s >= min(CHECK_LEAST_S * ahead, CHECK_MAX_S - CHECK_GROUPS)

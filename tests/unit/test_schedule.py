"""When a waiter checks the queue on its own: a table, and what holds for every waiter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lualock._protocol.schedule import (
    CHECK_BEHIND_S,
    CHECK_LATE_S,
    CHECK_LEAST_S,
    CHECK_MAX_S,
    CLAIM_MS,
    YOUNG_S,
    next_check_s,
)

CLAIM_S = CLAIM_MS / 1000


@pytest.mark.parametrize(
    ("ahead", "lease_left_s", "young_left_s", "expected_s"),
    [
        (0, 30.0, 0.0, 30.0 + CHECK_LATE_S),  # the first: when the lease ends
        (0, -1.0, 0.0, CHECK_LATE_S),  # it has ended
        (0, None, 0.0, CHECK_MAX_S),  # a lease without an end: only the message may be lost
        (0, 30.0, YOUNG_S, YOUNG_S),  # a new waiter checks once more
        (1, 0.5, 0.0, 0.5 + 2 * CHECK_LATE_S),  # the second: just after the first
        (1, 30.0, 0.0, 2 * CLAIM_S),  # and often, for a message that was lost
        (2, 0.5, 0.0, CHECK_LEAST_S),  # near, but not at each end of a short lease
        (3, 30.0, 0.0, 4 * CLAIM_S),
        (20, 0.5, 0.0, 20 * CHECK_BEHIND_S),  # far behind: rarely
        (9999, 30.0, 0.0, CHECK_MAX_S * (1 - 7 / 32)),  # spread below the longest time
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
    """No waiter checks later than the queue's key lives, and no waiter polls."""
    wait_s = next_check_s(ahead, lease_left_s, young_left_s)
    assert 0 < wait_s <= CHECK_MAX_S
    if young_left_s <= 0 and (lease_left_s is None or lease_left_s > CHECK_LEAST_S or ahead > 1):
        assert wait_s >= min(CHECK_LEAST_S, 2 * CLAIM_S)

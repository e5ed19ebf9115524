"""Each rule of the schedule by which a waiter checks the queue pays: see ``schedule``."""

from __future__ import annotations

import pytest

from tests.simulation.schedule import PAYS, SHIPPED, VARIANTS


@pytest.mark.parametrize(
    ("variant", "scenario"),
    [
        ("no CLAIM_MS", "the holder and 1 half-open waiters die"),
        ("no CHECK_LATE_S", "the holder and 2 waiters die"),
        ("no CHECK_HEAD_S", "the key is deleted, 0 half-open waiters and one"),
        ("no CHECK_LEAST_S", "10 wait, ttl 1 s"),
        ("no CHECK_MOST_S", "the key is deleted, 1 half-open waiters and one"),
        ("no CHECK_MAX_S", "the key is deleted, 20 half-open waiters and one"),
        ("no CHECK_GROUPS", "1000 wait, reconnected together"),
        ("no YOUNG_S", "a holder dies early"),
        ("nor YOUNG_TICKS", "32 clients hold for 1 ms"),
    ],
)
def test_each_rule_of_the_schedule_pays(variant: str, scenario: str) -> None:
    """Without a rule of the schedule, a figure is more than 10 % worse."""
    shipped = VARIANTS[SHIPPED].figures([scenario])
    without = VARIANTS[variant].figures([scenario])
    assert any(without[figure] > PAYS * shipped[figure] for figure in shipped), (shipped, without)

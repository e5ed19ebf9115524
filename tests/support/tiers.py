"""The tiers of the tests: see CONTRIBUTING.md."""

from __future__ import annotations

from typing import Any

import pytest


def full(*values: Any) -> list[Any]:
    """Return values of a parameter that only `make test-all` tries."""
    return [pytest.param(value, marks=pytest.mark.full) for value in values]

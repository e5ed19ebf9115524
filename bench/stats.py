"""Medians, quantiles and ratios for all scenarios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that so large a share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the tenth and the ninetieth percentile."""
    return statistics.median(values), quantile(values, 0.1), quantile(values, 0.9)


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median of the rounds' ratios, because the speed of a machine differs between
    rounds."""
    pairs = list(zip(theirs, ours, strict=False))
    return statistics.median(t / o if o else float("inf") for t, o in pairs)

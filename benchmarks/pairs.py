"""What is said of a few runs of contenders that took turns: medians with extremes, ratios pair by
pair, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median, min, max and number of values of which there is at least one."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def ratios(ones: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Return one by the other for each round in which both ran."""
    return [ones[number] / others[number] for number in sorted(ones) if number in others]


def confidence(values: Sequence[float], limit: float, at_most: bool = True) -> float:
    """Return how sure the values make it that their median is at most (or at least) `limit`: 0.5 if
    they tell nothing.

    By the sign test, which supposes nothing of how they are spread: if the median were beyond the
    limit, so many or more of them would be within it with a probability of at most 1 minus what is
    returned.
    """
    within = sum(value <= limit if at_most else value >= limit for value in values)
    count = len(values)
    return (
        1 - sum(math.comb(count, k) for k in range(within, count + 1)) / 2**count if count else 0.5
    )

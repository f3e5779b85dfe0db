"""The few statistics that tables need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Proportion:
    """A share of successes with its 95 % interval.

    Attributes:
        value: successes / trials.
        low: lower end of the interval.
        high: upper end.
        n: trials.
    """

    value: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int) -> Proportion:
    """The Wilson score interval (1927), which keeps its coverage for small ``n`` and for shares near 0 and 1.

    Raises:
        ValueError: ``n`` < 1, or ``successes`` not in [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson: expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    share, square = successes / n, Z95 * Z95
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if successes == n else centre + half
    return Proportion(share, low, high, n)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there; None if none is."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None

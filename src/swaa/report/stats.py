"""Means and shares with 95 % intervals. What is drawn anew is examples: several answers to one go together."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
RESAMPLES = 10_000
SEED = 0
BLOCK = 1 << 20
"""So many drawn numbers are made at a time."""
CACHED = 8
"""Blocks that are kept, of 8 MB each: the rows of a table have as many examples, so they share their draws."""
NORMAL_FROM = 1000
"""Student's t with so many degrees of freedom is taken for normal: its quantile is within 0.2 %."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        value: the mean.
        low: lower end of the interval; None for a single example, which says nothing of the spread.
        high: upper end.
        n: examples.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Proportion(Estimate):
    """A share of successes with its 95 % interval; ``n`` trials."""

    low: float
    high: float


def wilson(successes: int, n: int) -> Proportion:
    """The Wilson score interval (1927), which keeps its coverage for small ``n`` and for shares near 0 and 1.

    >>> interval = wilson(0, 24)
    >>> round(interval.low, 2), round(interval.high, 2)
    (0.0, 0.14)

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


def bootstrap(
    values: Sequence[float], weights: Sequence[float] | None = None, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Estimate:
    """The (weighted) mean of ``values``, one an example, with Hesterberg's expanded percentile interval.

    Examples are drawn with replacement, and the ends are quantiles of the drawn means, as of the percentile interval
    (Efron, 1979). The quantiles lie further out than 2.5 %: at Phi(-sqrt(n / (n - 1)) t), where t is the 97.5 %
    quantile of Student's distribution with n - 1 degrees of freedom, since the percentile interval of a small sample is
    too narrow by just this (Hesterberg 2015, arXiv 1411.5279).

    Args:
        values: at least one.
        weights: >= 0, with a positive sum; the mean is then sum(weights * values) / sum(weights), and a drawn example
            brings its weight along.
        resamples: how many means are drawn.
        seed: of the draws; the same values give the same interval.

    Raises:
        ValueError: no values, or no positive weight.
    """
    n = len(values)
    data = np.asarray(values, dtype=np.float64)
    shares = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if n == 0 or shares.sum() <= 0:
        raise ValueError("bootstrap: expected at least one value with a positive weight")
    value = float((data * shares).sum() / shares.sum())
    if n == 1:
        return Estimate(value, None, None, n)
    if data.min() == data.max():  # no draw can differ; rounding must not
        return Estimate(float(data[0]), float(data[0]), float(data[0]), n)
    tail = math.erfc(math.sqrt(n / (n - 1) / 2) * student_quantile(n - 1)) / 2
    low, high = np.quantile(_drawn_means(data, shares, resamples, seed), [tail, 1 - tail])
    return Estimate(value, float(low), float(high), n)


def _drawn_means(values: Floats, weights: Floats, draws: int, seed: int) -> Floats:
    """Means of ``draws`` samples with replacement; draws without any weight are left out."""
    size, means = max(1, BLOCK // len(values)), []
    for number, start in enumerate(range(0, draws, size)):
        counts = _counts(len(values), min(size, draws - start), seed, number)
        sums, totals = counts @ (values * weights), counts @ weights
        means.append(sums[totals > 0] / totals[totals > 0])
    return np.concatenate(means)


@functools.lru_cache(maxsize=CACHED)
def _counts(n: int, size: int, seed: int, block: int) -> Floats:
    """How often each of ``n`` examples is in each of ``size`` samples with replacement; ``(size, n)``."""
    chosen = np.random.default_rng([seed, block]).integers(0, n, size=(size, n))
    places = chosen + n * np.arange(size)[:, None]
    return np.bincount(places.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


@functools.cache
def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with ``freedom`` >= 1 degrees of freedom, found by halving."""
    if freedom >= NORMAL_FROM:
        return Z95
    low, high = Z95, 13.0  # with one degree of freedom it is 12.7
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _student_within(t: float, freedom: int) -> float:
    """P(|T| < t), by the finite sums for whole degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for number in range(odd, freedom - 1, 2):  # cos^(odd) + 2/3 cos^3 + …, or 1 + 1/2 cos^2 + 3/8 cos^4 + …
        total += term
        term *= cosine * cosine * (number + 1) / (number + 2)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def share(answers: Sequence[Sequence[float]]) -> Estimate:
    """A share of 0s and 1s, one sequence an example: the mean over examples of an example's own share.

    Where the answers to each example are all alike, as a single one is, examples are trials, and the interval is
    Wilson's, which holds too where the bootstrap would claim certainty, as all are right. Otherwise answers to one
    example are no independent trials, and examples are drawn anew by :func:`bootstrap`.

    Raises:
        ValueError: no example, or one without an answer.
    """
    means = example_means(answers)
    if set(means) <= {0.0, 1.0}:
        return wilson(int(sum(means)), len(means))
    return bootstrap(means)


def example_means(answers: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each example's answers.

    Raises:
        ValueError: no example, or one without an answer.
    """
    if not answers or not all(answers):
        raise ValueError("expected at least one example, and at least one answer to each")
    return [sum(some) / len(some) for some in answers]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there; None if none is."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None

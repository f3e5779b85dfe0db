"""The difference of two recipes on the same examples, with an interval and a p value."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from swaa.report.stats import BLOCK, SEED, Z95, Estimate, bootstrap, example_means

Example = TypeVar("Example", bound=Hashable)

ENUMERATED = 16
"""Up to so many examples that differ, every assignment of signs is looked at: at most 65,536."""
FLIPS = 9_999
TINY = 1e-9
"""Sums that differ by less, relative to the sum of all, are the same sum, rounded differently."""


@dataclass(frozen=True)
class Paired:
    """A recipe against a baseline.

    Attributes:
        difference: mean over examples of the recipe's value minus the baseline's; its ``n`` counts the pairs.
        p: two-sided p value of "the sign of each example's difference is chance".
        p_holm: ``p`` corrected for the comparisons of the same table (Holm 1979).
        unpaired: examples that only one of the two has a value of.
    """

    difference: Estimate
    p: float
    p_holm: float
    unpaired: int = 0


def compare_paired(
    recipe: Mapping[Example, Sequence[float]], baseline: Mapping[Example, Sequence[float]]
) -> Paired | None:
    """The comparison over the examples that both have values of; None where there is none.

    Args:
        recipe: the values of an example's answers, by example.
        baseline: likewise.
    """
    shared = [example for example in recipe if example in baseline]
    if not shared:
        return None
    ours = example_means([recipe[example] for example in shared])
    theirs = example_means([baseline[example] for example in shared])
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    p = sign_flip_p(differences)
    return Paired(paired_interval(differences), p, p, len(recipe.keys() ^ baseline.keys()))


def paired_interval(differences: Sequence[float]) -> Estimate:
    """The mean difference of values in [0, 1], with its interval.

    Of right and wrong (differences of 1, 0 and -1) the score interval of :func:`tango`, otherwise the bootstrap's over
    examples. The bootstrap would do badly where few examples differ, and claim certainty where none does.
    """
    if not set(differences) <= {-1.0, 0.0, 1.0}:
        return bootstrap(differences)
    return tango(differences.count(1.0), differences.count(-1.0), len(differences))


def tango(gained: int, lost: int, n: int) -> Estimate:
    """The difference of two paired shares with its score interval (Tango 1998), the paired kin of Wilson's.

    It holds the differences d that the score test does not refuse: those with
    ``|gained - lost - n d| <= z sqrt(n (2 q + d (1 - d)))``, where q is the likeliest share of losses, were the
    difference d.

    Args:
        gained: examples that only the recipe gets right.
        lost: examples that only the baseline gets right.
        n: all examples, at least one.
    """
    value = (gained - lost) / n

    def distance(d: float) -> float:
        """How far the difference is from d, in standard errors under d; it falls as d grows."""
        linear, product = (2 * n - gained + lost) * d - gained - lost, lost * d * (1 - d)
        q = (math.sqrt(linear * linear + 8 * n * product) - linear) / (4 * n)
        return (gained - lost - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))

    low = -1.0 if lost == n else _falls_to(distance, Z95, -1.0, value)
    high = 1.0 if gained == n else _falls_to(distance, -Z95, value, 1.0)
    return Estimate(value, low, high, n)


def _falls_to(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where in (low, high) a falling function has the value ``target``, by halving."""
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > target else (low, middle)
    return (low + high) / 2


def sign_flip_p(differences: Sequence[float], *, flips: int = FLIPS, seed: int = SEED) -> float:
    """The two-sided p value of the paired permutation test (Fisher 1935): how often signs at random reach |sum|.

    Examples without a difference say nothing. Where all others differ by the same amount, as right and wrong answers
    do, this is the exact McNemar test, a binomial one; up to ``ENUMERATED`` of them, all assignments are looked at; and
    otherwise ``flips`` random ones, of which the one that was observed counts too, so that p is never 0 and never too
    small on average (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585).
    """
    sizes = np.array([abs(difference) for difference in differences if difference], dtype=np.float64)
    if len(sizes) == 0:
        return 1.0
    if np.allclose(sizes, sizes[0], rtol=TINY, atol=0):
        return mcnemar_p(sum(difference > 0 for difference in differences), len(sizes))
    reached = abs(sum(differences)) - TINY * sizes.sum()
    if len(sizes) <= ENUMERATED:
        signs = (np.arange(1 << len(sizes))[:, None] >> np.arange(len(sizes)) & 1) * 2.0 - 1
        return float((abs(signs @ sizes) >= reached).mean())
    rng, hits = np.random.default_rng(seed), 0
    for start in range(0, flips, step := max(1, BLOCK // len(sizes))):
        signs = rng.integers(0, 2, size=(min(step, flips - start), len(sizes))) * 2.0 - 1
        hits += int((abs(signs @ sizes) >= reached).sum())
    return (hits + 1) / (flips + 1)


def mcnemar_p(gained: int, changed: int) -> float:
    """The exact two-sided p value of ``gained`` of ``changed`` examples having got better (McNemar 1947)."""
    tail = ways = 1  # of 0 in ``changed``
    for count in range(min(gained, changed - gained)):
        ways = ways * (changed - count) // (count + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << changed))


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for being looked at together (Holm 1979), in the order given.

    The smallest is multiplied by their number, the next by one less, and so on; none falls below a smaller one's.
    """
    order = sorted(range(len(ps)), key=ps.__getitem__)
    corrected, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = least
    return corrected

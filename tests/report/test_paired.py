from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.report.paired import ENUMERATED, compare_paired, holm, mcnemar_p, paired_interval, sign_flip_p, tango
from swaa.report.stats import Estimate, bootstrap, wilson

FEW = settings(max_examples=max(1, settings.default.max_examples // 20))


def sign_flips(differences: list[float]) -> float:
    """The p value by all assignments of signs, in exact numbers: differences are whole here."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * difference for sign, difference in zip(signs, differences, strict=True)))
        for signs in itertools.product([-1, 1], repeat=len(differences))
    ]
    return sum(one >= observed for one in sums) / len(sums)


@FEW
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_the_permutation_test_is_that_of_all_signs(differences: list[int]) -> None:
    """Divided by 7, so that equal sums are not equal in rounded numbers."""
    assert sign_flip_p([one / 7 for one in differences]) == pytest.approx(sign_flips([float(d) for d in differences]))


@pytest.mark.parametrize("changed", range(13))
def test_mcnemar_is_the_binomial_test_and_the_sign_flips(changed: int) -> None:
    for gained in range(changed + 1):
        chances = [math.comb(changed, count) / 2**changed for count in range(changed + 1)]
        as_far = sum(c for count, c in enumerate(chances) if abs(count - changed / 2) >= abs(gained - changed / 2))
        assert mcnemar_p(gained, changed) == pytest.approx(as_far)
        differences = [1.0] * gained + [-1.0] * (changed - gained) + [0.0] * 5
        assert sign_flip_p(differences) == pytest.approx(as_far)
        if 1 <= changed <= 10:
            assert sign_flips(differences[:changed]) == pytest.approx(as_far)


def test_mcnemar_of_very_many_is_no_overflow() -> None:
    assert mcnemar_p(1500, 3000) == 1.0
    assert 0 < mcnemar_p(1400, 3000) < 0.001
    assert mcnemar_p(0, 3000) == 0.0, "smaller than any float"


def test_monte_carlo_agrees_with_enumeration_and_counts_the_observed() -> None:
    rng = random.Random(3)
    differences = [rng.uniform(-1, 2) for _ in range(ENUMERATED)]
    exact = sign_flip_p(differences)
    padded = sign_flip_p([*differences, 1e-12])  # one more than is enumerated, which does not change the sums
    assert 0.01 < exact < 0.9
    assert padded == pytest.approx(exact, abs=0.02)
    assert padded == sign_flip_p([*differences, 1e-12]), "the draws have a seed"
    certain = [1 + rng.random() for _ in range(60)]
    assert sign_flip_p(certain, flips=99) == 0.01, "never 0"


def test_monte_carlo_keeps_its_level() -> None:
    """Where nothing but chance sets the signs, p <= 0.05 comes about 5 % of the time."""
    rng, rejected = random.Random(0), 0
    for _ in range(400):
        rejected += sign_flip_p([rng.gauss(0, 1) for _ in range(20)], flips=199) <= 0.05
    assert 0.025 <= rejected / 400 <= 0.08


def test_no_difference_is_no_evidence() -> None:
    assert sign_flip_p([0.0] * 8) == 1.0
    assert sign_flip_p([]) == 1.0


def score_statistic(gained: int, lost: int, n: int, d: float) -> float:
    """The score test of "the difference is d"; the likeliest share of losses is looked for, not calculated."""

    def log_likelihood(q: float) -> float:
        parts = ((gained, q + d), (lost, q), (n - gained - lost, 1 - 2 * q - d))
        return sum(count * math.log(max(share, 1e-300)) for count, share in parts if count)

    low, high = max(0.0, -d), (1 - d) / 2
    for _ in range(200):  # it is concave
        third = (high - low) / 3
        if log_likelihood(low + third) < log_likelihood(high - third):
            low += third
        else:
            high -= third
    return (gained - lost - n * d) / math.sqrt(n * (2 * low + d - d * d))


@pytest.mark.parametrize("n", [1, 2, 7, 24, 100])
def test_tangos_ends_are_where_the_score_test_turns(n: int) -> None:
    for gained in {0, 1, n // 3, n}:
        for lost in {0, 1, (n - gained) // 2, n - gained} & set(range(n - gained + 1)):
            interval = tango(gained, lost, n)
            assert interval.low is not None
            assert interval.high is not None
            assert -1 <= interval.low <= interval.value == (gained - lost) / n <= interval.high <= 1
            for end, sign in ((interval.low, 1), (interval.high, -1)):
                if -1 < end < 1:
                    z = score_statistic(gained, lost, n, end)
                    assert z == pytest.approx(sign * 1.959963984540054, abs=1e-4)


@pytest.mark.parametrize("n", [1, 5, 24, 100])
def test_where_no_pair_differs_the_interval_is_as_wide_as_wilsons(n: int) -> None:
    same, won, lost = (paired_interval([value] * n) for value in (0.0, 1.0, -1.0))
    wide = wilson(0, n).high
    assert (same.low, same.high) == pytest.approx((-wide, wide))
    assert won.low is not None
    assert lost.high is not None
    assert (won.high, lost.low) == (1.0, -1.0)
    assert won.low == pytest.approx(-lost.high)


def test_partial_scores_have_the_bootstraps_interval() -> None:
    differences = [0.5, -1.0, 0.0, 1.0, 0.25]
    assert paired_interval(differences) == bootstrap(differences)


def test_pairs_are_the_examples_that_both_have() -> None:
    recipe = {"a": [1.0, 0.0], "b": [1.0], "c": [0.0], "d": [1.0]}
    baseline = {"c": [1.0], "b": [1.0], "a": [0.0], "e": [0.0]}
    found = compare_paired(recipe, baseline)
    assert found is not None
    assert found.difference.value == pytest.approx((0.5 + 0 - 1) / 3)
    assert (found.difference.n, found.unpaired) == (3, 2)
    assert found.p == sign_flips([1.0, 0.0, -2.0])
    assert compare_paired({"a": [1.0]}, {"b": [1.0]}) is None


def coverage(interval_of: Callable[[list[float]], Estimate], ours: float, theirs: float, n: int) -> float:
    """How often an interval holds the truth, exactly: over all numbers of examples that only one side gets right."""
    held = 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            ways = math.comb(n, gained) * math.comb(n - gained, lost)
            chance = ways * ours**gained * theirs**lost * (1 - ours - theirs) ** (n - gained - lost)
            if chance < 1e-7:
                continue
            interval = interval_of([1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost))
            assert interval.low is not None
            assert interval.high is not None
            held += chance * (interval.low - 1e-9 <= ours - theirs <= interval.high + 1e-9)
    return held


@pytest.mark.parametrize(("ours", "theirs"), [(0.2, 0.1), (0.02, 0.1), (0.05, 0.4)])
@pytest.mark.parametrize("n", [8, 24, 60])
def test_the_paired_interval_covers_the_truth(ours: float, theirs: float, n: int) -> None:
    assert coverage(paired_interval, ours, theirs, n) >= 0.925


@pytest.mark.parametrize(("n", "most"), [(8, 0.6), (24, 0.91)])
def test_the_bootstrap_would_not_where_few_pairs_differ(n: int, most: float) -> None:
    """Why the interval of right and wrong is another one."""
    assert coverage(bootstrap, 0.02, 0.1, n) <= most


def holm_by_hand(ps: list[float]) -> list[float]:
    """An adjusted p is the largest of (m - rank) p over all that are as small or smaller: by definition, in loops."""
    ranked = sorted(ps)
    return [min(1.0, max((len(ps) - rank) * other for rank, other in enumerate(ranked) if other <= p)) for p in ps]


@FEW
@given(st.lists(st.sampled_from([0.0001, 0.004, 0.01, 0.0125, 0.03, 0.2, 0.7, 1.0]), max_size=8))
def test_holm_is_the_definition(ps: list[float]) -> None:
    assert holm(ps) == pytest.approx(holm_by_hand(ps))


def test_holm_on_a_published_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.report.passk import mean_pass_at_k, pass_at_k, usual_ks
from swaa.report.stats import Proportion, bootstrap, example_means, mean, share, student_quantile, wilson

FEW = settings(max_examples=max(1, settings.default.max_examples // 40))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (12, 24, 0.3143, 0.6857),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (15, 20, 0.5313, 0.8881),
    ],
)
def test_wilson_against_published_values(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    assert interval.value == successes / n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 7, 24, 100])
def test_wilson_is_where_the_score_test_turns(n: int) -> None:
    """An end p of it solves |share - p| = z sqrt(p (1 - p) / n): checked without the closed form."""
    for successes in range(n + 1):
        interval = wilson(successes, n)
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        for end in {interval.low, interval.high} - {0.0, 1.0}:
            distance = abs(interval.value - end)
            assert distance == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes <= n and n >= 1"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (24, 2.0639), (99, 1.9842), (500, 1.9647)],
)
def test_students_quantile_against_published_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_students_quantile_falls_to_the_normal_one() -> None:
    quantiles = [student_quantile(freedom) for freedom in range(1, 60)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert student_quantile(999) == pytest.approx(student_quantile(1000), rel=0.002)


def expanded_percentile(values: list[float], weights: list[float], draws: int) -> tuple[float, float]:
    """The interval again, in loops, with other random numbers."""
    rng, n, means = random.Random(1), len(values), []
    for _ in range(draws):
        places = [rng.randrange(n) for _ in range(n)]
        total = sum(weights[place] for place in places)
        if total:
            means.append(sum(weights[place] * values[place] for place in places) / total)
    means.sort()
    tail = statistics.NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile(n - 1))
    return means[int(tail * len(means))], means[math.ceil((1 - tail) * len(means)) - 1]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_bootstrap_is_that_of_loops(weighted: bool) -> None:
    rng = random.Random(5)
    values = [rng.expovariate(1) for _ in range(20)]
    weights = [float(rng.randrange(4)) for _ in values] if weighted else [1.0] * 20
    estimate = bootstrap(values, weights if weighted else None)
    low, high = expanded_percentile(values, weights, 20_000)
    assert estimate.value == pytest.approx(sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights))
    assert estimate.low is not None
    assert estimate.high is not None
    width = high - low
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.03 * width)


def coverage(draw: Callable[[random.Random], float], truth: float, n: int, times: int = 600) -> float:
    """How often the interval of a fresh sample holds the true mean."""
    rng, held = random.Random(n), 0
    for _ in range(times):
        estimate = bootstrap([draw(rng) for _ in range(n)], resamples=1_000)
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= truth <= estimate.high
    return held / times


@pytest.mark.parametrize("n", [8, 24, 100])
@pytest.mark.parametrize(
    ("draw", "truth", "floor"),
    [
        (lambda rng: rng.gauss(3, 2), 3.0, 0.93),
        (lambda rng: rng.betavariate(2, 1), 2 / 3, 0.93),
        (lambda rng: rng.expovariate(1), 1.0, 0.85),  # skewed: short of 95 % while n is small
        (lambda rng: rng.choice([-1.0, 0.0, 0.0, 1.0, 1.0]), 0.2, 0.92),  # differences of right and wrong
    ],
    ids=["normal", "beta", "exponential", "differences"],
)
def test_the_bootstrap_covers_the_truth(
    draw: Callable[[random.Random], float], truth: float, floor: float, n: int
) -> None:
    """95 % of the time, up to the chance of 600 samples (0.9 %) and the skew of the exponential distribution."""
    held = coverage(draw, truth, n)
    assert floor <= held <= 0.985
    if n == 100:
        assert held >= 0.925


def test_clustered_answers_cover_the_truth_where_counting_each_would_not() -> None:
    """Four answers to an example agree for the most part; the truth is 1/2."""
    rng, held, naive = random.Random(0), 0, 0
    for _ in range(400):
        chances = [rng.betavariate(0.3, 0.3) for _ in range(30)]
        answers = [[float(rng.random() < chance) for _ in range(4)] for chance in chances]
        estimate = share(answers)
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= 0.5 <= estimate.high
        each = wilson(int(sum(map(sum, answers))), 120)
        naive += each.low <= 0.5 <= each.high
    assert held / 400 >= 0.925
    assert naive / 400 < 0.85


def test_the_same_values_have_the_same_interval() -> None:
    rng = random.Random(2)
    values = [rng.random() for _ in range(50)]
    assert bootstrap(values) == bootstrap(list(values))
    assert bootstrap(values) != bootstrap(values, seed=1)


@FEW
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_an_interval_lies_within_the_values_and_moves_with_them(values: list[float]) -> None:
    estimate = bootstrap(values, resamples=200)
    moved = bootstrap([2 * value + 1 for value in values], resamples=200)
    assert estimate.low is not None
    assert estimate.high is not None
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    assert (moved.low, moved.high) == pytest.approx((2 * estimate.low + 1, 2 * estimate.high + 1), abs=1e-9)


def test_degenerate_samples_are_exact() -> None:
    assert bootstrap([0.1] * 7) == bootstrap([0.1] * 7, resamples=10)
    assert (bootstrap([0.1] * 7).low, bootstrap([0.1] * 7).high) == (0.1, 0.1)
    assert (bootstrap([3.0]).low, bootstrap([3.0]).high) == (None, None)
    for refused in ([], [1.0]):
        with pytest.raises(ValueError, match="at least one value with a positive weight"):
            bootstrap(refused, [0.0] * len(refused))


def test_a_share_of_single_answers_is_wilsons() -> None:
    assert share([[1.0], [0.0], [1.0]]) == wilson(2, 3)
    assert share([[1.0, 1.0], [0.0, 0.0]]) == wilson(1, 2), "answers that agree are one trial"
    assert share([[0.0, 0.0]] * 24) == wilson(0, 24), "not [0, 0]"
    mixed = share([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert mixed.value == 0.5
    assert not isinstance(mixed, Proportion)


def test_examples_count_alike_however_many_answers_they_have() -> None:
    assert example_means([[1.0, 0.0], [1.0]]) == [0.5, 1.0]
    for refused in ([], [[]]):
        with pytest.raises(ValueError, match="at least one example"):
            example_means(refused)


def test_a_mean_is_of_what_is_there() -> None:
    assert mean([1.0, None, 2.0]) == 1.5
    assert mean([None]) is None


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_counts_the_subsets(n: int) -> None:
    for right in range(n + 1):
        answers = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(answers, k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@FEW
@given(st.integers(1, 200), st.data())
def test_pass_at_k_is_the_closed_form(n: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    expected = 1 - math.comb(n - right, k) / math.comb(n, k)
    assert pass_at_k(n, right, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of four answers that are each right with chance 0.3, its mean is what two fresh ones bring."""
    expected = 0.0
    for outcome in itertools.product([0, 1], repeat=4):
        chance = math.prod(0.3 if right else 0.7 for right in outcome)
        expected += chance * pass_at_k(4, sum(outcome), 2)
    assert expected == pytest.approx(1 - 0.7**2)


@pytest.mark.parametrize(("n", "right", "k"), [(4, 5, 1), (4, 2, 5), (4, 2, 0), (4, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k <= answers and 0 <= right <= answers"):
        pass_at_k(n, right, k)


def test_mean_pass_at_k_leaves_out_examples_with_fewer_answers() -> None:
    answers = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0]]
    estimate = mean_pass_at_k(answers, 2)
    assert estimate is not None
    assert (estimate.value, estimate.n) == (pytest.approx(1 / 3), 2)
    assert mean_pass_at_k(answers, 4) is None
    assert mean_pass_at_k([[0.0, 0.0]] * 5, 2) == wilson(0, 5)
    assert mean_pass_at_k([[1.0, 0.0]] * 5, 2) == wilson(5, 5)


def test_tables_show_powers_of_two_and_all() -> None:
    assert [usual_ks(n) for n in range(6)] == [(), (), (2,), (2, 3), (2, 4), (2, 4, 5)]

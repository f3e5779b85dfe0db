from __future__ import annotations

import math

import pytest

from swaa.report.stats import mean, wilson


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


def test_a_mean_is_of_what_is_there() -> None:
    assert mean([1.0, None, 2.0]) == 1.5
    assert mean([None]) is None

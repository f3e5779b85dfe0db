"""Fronts and halving against definitions written out as loops."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.search.front import dominates, fronts, halved, pareto

figures = st.integers(0, 4).map(float)
"""Few values, so that many points tie."""
clouds = st.integers(1, 4).flatmap(lambda size: st.lists(st.tuples(*[figures] * size), min_size=1, max_size=12))
few = settings(max_examples=settings.default.max_examples // 10)


def beaten(point: tuple[float, ...], rivals: list[tuple[float, ...]]) -> bool:
    """Is there a rival that is as good everywhere, and better somewhere?"""
    for rival in rivals:
        as_good = better = 0
        for place in range(len(point)):
            as_good += rival[place] <= point[place]
            better += rival[place] < point[place]
        if as_good == len(point) and better > 0:
            return True
    return False


@few
@given(clouds)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, ...]]) -> None:
    assert pareto(points) == [place for place, point in enumerate(points) if not beaten(point, points)]


@few
@given(clouds)
def test_fronts_are_peeled_off_one_after_another(points: list[tuple[float, ...]]) -> None:
    left, peeled = dict(enumerate(points)), []
    while left:
        rest = list(left.values())
        peeled.append([place for place, point in left.items() if not beaten(point, rest)])
        left = {place: point for place, point in left.items() if place not in peeled[-1]}
    assert fronts(points) == peeled


@few
@given(clouds, st.floats(0.05, 1))
def test_whole_fronts_go_on_until_they_are_the_share(points: list[tuple[float, ...]], keep: float) -> None:
    kept = halved(points, keep)
    needed = math.ceil(keep * len(points) - 1e-9)
    assert len(kept) >= needed
    assert set(pareto(points)) <= set(kept)
    for front in fronts(points):
        assert set(front) <= set(kept) or not set(front) & set(kept), "a front was broken"
    last = next(front for front in reversed(fronts(points)) if set(front) <= set(kept))
    assert len(kept) - len(last) < needed, "one front less would have done"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [((1, 1), (1, 2), True), ((1, 1), (1, 1), False), ((0, 2), (1, 1), False), ((2, 2), (1, 1), False)],
)
def test_domination(one: tuple[int, ...], other: tuple[int, ...], expected: bool) -> None:
    assert dominates(one, other) is expected


def test_nothing_has_no_front() -> None:
    assert pareto([]) == halved([], 0.5) == []

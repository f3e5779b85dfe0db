"""What nothing else is better than: Pareto fronts of points, each coordinate the smaller the better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

Point: TypeAlias = tuple[float, ...]


def dominates(one: Point, other: Point) -> bool:
    """Is ``one`` nowhere worse than ``other``, and somewhere better?"""
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def fronts(points: Sequence[Point]) -> list[list[int]]:
    """All places of ``points``, sorted by non-domination (Deb et al. 2002, doi 10.1109/4235.996017).

    The first front is what no other point dominates, the second what is left undominated without the first, and so on.
    Equal points share a front. Places keep their order within a front.
    """
    left, found = list(range(len(points))), []
    while left:
        front = [place for place in left if not any(dominates(points[other], points[place]) for other in left)]
        found.append(front)
        left = [place for place in left if place not in front]
    return found


def pareto(points: Sequence[Point]) -> list[int]:
    """The places of the points that no other dominates."""
    return fronts(points)[0] if points else []


def halved(points: Sequence[Point], keep: float) -> list[int]:
    """The places of the points that go on: whole fronts, the best first, until they are a share ``keep`` of all.

    A front is never broken, so nothing undominated is lost, and more than the share may stay. Non-dominated sorting
    in successive halving: Schmucker et al. 2021, arXiv 2106.12639.
    """
    enough, kept = math.ceil(keep * len(points) - 1e-9), list[int]()
    for front in fronts(points):
        if len(kept) >= enough:
            break
        kept += front
    return sorted(kept)

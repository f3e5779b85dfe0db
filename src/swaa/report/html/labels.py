"""Putting labels beside points so that they hide neither each other nor the points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle, in units of the drawing."""

    left: float
    top: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The common area."""
        if self.left >= other.left + other.width or other.left >= self.left + self.width:
            return 0.0  # nearly every pair, of the hundreds of thousands of a plot: its labels are looked for so long
        across = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        down = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        return max(0.0, across) * max(0.0, down)

    def outside(self, frame: Box) -> float:
        """The area that lies outside a frame."""
        return self.width * self.height - self.overlap(frame)


_ANGLES = 16
_DISTANCES = (1.0, 1.7, 2.5, 3.5, 5.0, 7.0)


def place(points: Sequence[tuple[float, float]], widths: Sequence[float], frame: Box, radius: float) -> list[Box]:
    """A box for the label of each point, ``2 * radius`` high.

    Greedy, the most crowded points first: each takes, of places on circles about its point, the one that costs least:
    area over other labels and marks, area outside the frame, then distance.

    Args:
        points: centres of the marks.
        widths: of the labels.
        frame: where labels should stay.
        radius: of a mark.
    """
    marks = [Box(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in points]
    order = sorted(range(len(points)), key=lambda index: _room(points, index))
    boxes: dict[int, Box] = {}
    for index in order:
        taken = [*marks, *boxes.values()]
        candidates = list(_around(points[index], widths[index], radius))
        boxes[index] = min(candidates, key=lambda box: _cost(box, taken, frame) + _length(box, points[index]) / 1000)
    return [boxes[index] for index in range(len(points))]


def _room(points: Sequence[tuple[float, float]], index: int) -> float:
    """Distance to the nearest other point."""
    return min((math.dist(points[index], other) for k, other in enumerate(points) if k != index), default=math.inf)


def _around(point: tuple[float, float], width: float, radius: float) -> list[Box]:
    height = 2 * radius
    boxes = []
    for distance in _DISTANCES:
        for turn in range(_ANGLES):
            angle = 2 * math.pi * turn / _ANGLES - math.pi / 4  # up and to the right comes first
            x = point[0] + math.cos(angle) * (radius * distance + 3 + width / 2)
            y = point[1] + math.sin(angle) * (radius * distance + 3 + height / 2)
            boxes.append(Box(x - width / 2, y - height / 2, width, height))
    return boxes


def _cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    return sum(box.overlap(other) for other in taken) + 2 * box.outside(frame)


def _length(box: Box, point: tuple[float, float]) -> float:
    return math.dist((box.left + box.width / 2, box.top + box.height / 2), point)

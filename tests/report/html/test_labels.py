"""The common area of two labels, against the unit squares that lie in both."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from swaa.report.html.labels import Box

BOXES = st.builds(Box, *[st.integers(0, 7)] * 2, *[st.integers(0, 6)] * 2)


def squares(box: Box) -> set[tuple[int, int]]:
    """The lower corners of a box's unit squares."""
    left, top, width, height = (int(value) for value in (box.left, box.top, box.width, box.height))
    return set(product(range(left, left + width), range(top, top + height)))


@given(BOXES, BOXES)
def test_the_overlap_is_the_common_squares(one: Box, other: Box) -> None:
    assert one.overlap(other) == len(squares(one) & squares(other))
    assert one.outside(other) == len(squares(one) - squares(other))

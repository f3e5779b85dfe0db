"""Numbers that look random and follow from positions, by arithmetic that tensors and intervals both know.

A hash with shifts and exclusive-ors would be unknown to intervals, and one that wraps around would differ from theirs.
This one squares, adds and takes remainders, and no product leaves 60 bits for positions below 2**31.
"""

from __future__ import annotations

from typing import Any, cast

from swaa.policies.base import Index

MODULUS = 2**29 - 3
"""A prime; :func:`scramble` gives numbers from 0 to one less."""

_START, _FACTOR, _OFFSET = 88_675_123, 181_783_497, 123_456_791


def scramble(*values: Index | int) -> Index:
    """A number below :data:`MODULUS` for these values, each at least 0 and below 2**31, as if drawn at random."""

    mixed: Any = _START
    for value in (*values, 1, 2):  # two rounds more, so that all depends on all
        mixed = (mixed * mixed + value * _FACTOR + _OFFSET) % MODULUS
    return cast(Index, mixed)

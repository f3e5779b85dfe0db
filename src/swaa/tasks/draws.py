"""Random draws that are the same bytes on every platform and in every Python version.

``random.Random`` promises that only for ``random()``: ``choice``, ``sample`` and ``shuffle`` have changed
before. Here every draw is a block of SHA-256 over a key and a counter, reduced without bias.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_WORD = 1 << 64
_GOLDEN_STEP = 0x9E3779B97F4A7C15  # the golden ratio's fraction, in units of 2**-64; odd, so the sequence is full


class Draws:
    """An endless stream of draws, fixed by its key; different keys give independent streams.

    Args:
        key: whatever names the stream, for example a seed and an example's index. Order and type of the parts
            matter.
    """

    def __init__(self, *key: int | str) -> None:
        self._key = repr(key).encode()
        self._count = 0

    def word(self) -> int:
        """The next 64 bits, as an int in ``[0, 2**64)``."""
        block = hashlib.sha256(self._key + self._count.to_bytes(8, "big")).digest()
        self._count += 1
        return int.from_bytes(block[:8], "big")

    def below(self, bound: int) -> int:
        """An int in ``[0, bound)``, each equally likely."""
        limit = _WORD - _WORD % bound
        while (word := self.word()) >= limit:
            pass
        return word % bound

    def choice(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[self.below(len(items))]

    def fraction(self) -> float:
        """A float in ``[0, 1)`` with 53 random bits."""
        return (self.word() >> 11) / (1 << 53)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list of ``items`` in random order (Fisher and Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


def spread(start: int, index: int) -> float:
    """Point ``index`` of the Weyl sequence that begins at ``start``: a float in ``[0, 1)``.

    However many points are taken, they cover ``[0, 1)`` more evenly than random ones, and taking more leaves
    the first ones as they are.
    """
    return ((start + index * _GOLDEN_STEP) % _WORD >> 11) / (1 << 53)

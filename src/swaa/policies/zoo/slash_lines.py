"""Slash lines: chosen distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class SlashLines(Predicate):
    """Each query sees the tokens at chosen distances before it: visible iff ``q - k in distances``.

    The slash lines of MInference, found by it anew for each prompt and head, here given. Each distance costs a
    comparison, so it is for some dozens of them; for all short distances take :class:`SlidingWindow`.

    Args:
        distances: of the visible tokens, ascending, in tokens; 0 is the query's own.

    Raises:
        UserError: ``distances`` is no tuple of ascending ints >= 0.

    Source: Jiang et al., "MInference 1.0" (arXiv 2407.02490).
    """

    distances: tuple[int, ...]

    def __post_init__(self) -> None:
        self.require_ints("distances", at_least=0)

    def visible(self, q: Index, k: Index) -> Index:
        chosen = k < 0
        for distance in self.distances:
            chosen = chosen | (q - k == distance)
        return chosen

    def implies(self, other: Predicate) -> bool:
        return isinstance(other, SlashLines) and set(self.distances) <= set(other.distances)

    @classmethod
    def examples(cls) -> Sequence[SlashLines]:
        return (cls((0, 5, 6)), cls((0,)), cls((1, 129)))

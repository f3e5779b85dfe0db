"""Vertical lines: chosen tokens that all later queries see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class VerticalLines(Predicate):
    """Tokens at chosen positions stay visible to all: visible iff ``k in positions``.

    The vertical lines of MInference, found by it anew for each prompt and head, here given. Each position costs a
    comparison, so it is for some dozens of them; for the first few tokens take :class:`SinkTokens`.

    Args:
        positions: of the visible tokens, ascending, in tokens, at least 0.

    Raises:
        UserError: ``positions`` is no tuple of ascending ints >= 0.

    Source: Jiang et al., "MInference 1.0" (arXiv 2407.02490).
    """

    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        self.require_ints("positions", at_least=0)

    def visible(self, q: Index, k: Index) -> Index:
        chosen = k < 0
        for position in self.positions:
            chosen = chosen | (k == position)
        return chosen

    def implies(self, other: Predicate) -> bool:
        return isinstance(other, VerticalLines) and set(self.positions) <= set(other.positions)

    @classmethod
    def examples(cls) -> Sequence[VerticalLines]:
        return (cls((0, 5, 6)), cls((0,)), cls((3, 130, 131)))

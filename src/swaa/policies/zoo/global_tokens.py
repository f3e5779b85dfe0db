"""Global tokens: they see all, and all see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class GlobalTokens(Predicate):
    """Tokens at chosen positions see every earlier token, and every later one sees them: visible iff
    ``q in positions or k in positions``.

    Each position costs two comparisons, so it is for some dozens of them.

    Args:
        positions: of the global tokens, ascending, in tokens, at least 0.

    Raises:
        UserError: ``positions`` is no tuple of ascending ints >= 0.

    Source: the global attention of Beltagy et al., "Longformer" (arXiv 2004.05150); the global part of Zaheer et al.,
    "Big Bird" (arXiv 2007.14062).
    """

    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        self.require_ints("positions", at_least=0)

    def visible(self, q: Index, k: Index) -> Index:
        touched = k < 0
        for position in self.positions:
            touched = touched | (q == position) | (k == position)
        return touched

    def implies(self, other: Predicate) -> bool:
        return isinstance(other, GlobalTokens) and set(self.positions) <= set(other.positions)

    @classmethod
    def examples(cls) -> Sequence[GlobalTokens]:
        return (cls((0, 12)), cls((0,)), cls((3, 130, 131)))

"""A causal sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class SlidingWindow(Predicate):
    """Each query sees the last ``window_size`` tokens, itself among them: visible iff ``q - k < window_size``.

    Args:
        window_size: visible tokens, the query's own included, at least 1 (transformers and SWAA count alike).

    Raises:
        UserError: ``window_size`` is not an int >= 1.

    Source: Beltagy et al., "Longformer" (arXiv 2004.05150); as an adaptation, SWAA (arXiv 2512.10411).
    """

    window_size: int

    def __post_init__(self) -> None:
        self.require_int("window_size", at_least=1)

    def visible(self, q: Index, k: Index) -> Index:
        return q - k < self.window_size

    def implies(self, other: Predicate) -> bool:
        return isinstance(other, SlidingWindow) and self.window_size <= other.window_size

    @classmethod
    def examples(cls) -> Sequence[SlidingWindow]:
        return (cls(1), cls(8), cls(300))

"""Stretches of one sequence that do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class DocumentIsolation(Predicate):
    """The sequence is cut at given places, and tokens see their own stretch: visible iff
    ``no s in starts has k < s <= q``.

    For documents that stand in one prompt. It is something else than packing, where several sequences share a row for
    speed, each with positions and sinks of its own; that is bound by the compiler and needs no policy. Each start costs
    two comparisons, so it is for some dozens of them.

    Args:
        starts: positions of the first token of every stretch but the first, ascending, in tokens, at least 1.

    Raises:
        UserError: ``starts`` is no tuple of ascending ints >= 1.

    Source: the context part of Ratner et al., "Parallel Context Windows" (arXiv 2212.10947).
    """

    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        self.require_ints("starts", at_least=1)

    def visible(self, q: Index, k: Index) -> Index:
        together = q >= 0
        for start in self.starts:
            together = together & ((q < start) | (k >= start))
        return together

    def implies(self, other: Predicate) -> bool:
        return isinstance(other, DocumentIsolation) and set(other.starts) <= set(self.starts)

    @classmethod
    def examples(cls) -> Sequence[DocumentIsolation]:
        return (cls((8, 13)), cls((1,)), cls((5, 100, 101)))

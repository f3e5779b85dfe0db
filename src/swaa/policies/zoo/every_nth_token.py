"""Every n-th token is global."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.errors import invalid
from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class EveryNthToken(Predicate):
    """Every ``step``-th token stays visible to all: visible iff ``k >= start and (k - start) % step < width``.

    Summary positions at fixed places, as in the fixed pattern of Sparse Transformers. Unlike a dilated window it is the
    same tokens for every query.

    Args:
        step: distance from one visible run to the next, in tokens, at least 1.
        width: tokens of a run, from 1 to ``step``.
        start: position of the first visible token, at least 0.

    Raises:
        UserError: a value is no int, or out of its range.

    Source: Child et al., "Generating Long Sequences with Sparse Transformers" (arXiv 1904.10509).
    """

    step: int
    width: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        self.require_int("step", at_least=1)
        self.require_int("width", at_least=1)
        self.require_int("start", at_least=0)
        if self.width > self.step:
            accepted = f"an int from 1 to step ({self.step} tokens)"
            raise invalid("EveryNthToken.width", accepted=accepted, got=self.width, mend="Use FullAttention for all.")

    def visible(self, q: Index, k: Index) -> Index:
        return (k >= self.start) & ((k - self.start) % self.step < self.width)

    @classmethod
    def examples(cls) -> Sequence[EveryNthToken]:
        return (cls(8), cls(1), cls(8, 3, 5), cls(100, 20, 80))

"""The fixed pattern of Sparse Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.errors import invalid
from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class FixedAttention(Predicate):
    """The own block, and the last tokens of every block as its summary: visible iff
    ``q // stride == k // stride or k % stride >= stride - num_summary``.

    The paper gives the two parts to different heads; that is ``ChunkedAttention(stride).on_heads("::2",
    otherwise=EveryNthToken(stride, num_summary, stride - num_summary))``.

    Args:
        stride: tokens of a block, at least 1.
        num_summary: last tokens of a block that all later queries see, from 1 to ``stride``.

    Raises:
        UserError: a value is no int, or out of its range.

    Source: Child et al., "Generating Long Sequences with Sparse Transformers" (arXiv 1904.10509).
    """

    stride: int
    num_summary: int = 1

    def __post_init__(self) -> None:
        self.require_int("stride", at_least=1)
        self.require_int("num_summary", at_least=1)
        if self.num_summary > self.stride:
            accepted, mend = f"an int from 1 to stride ({self.stride} tokens)", "Use FullAttention for all."
            raise invalid("FixedAttention.num_summary", accepted=accepted, got=self.num_summary, mend=mend)

    def visible(self, q: Index, k: Index) -> Index:
        own = q // self.stride == k // self.stride
        return own | (k % self.stride >= self.stride - self.num_summary)

    @classmethod
    def examples(cls) -> Sequence[FixedAttention]:
        return (cls(8), cls(1), cls(8, 3), cls(100, 20))

"""The strided pattern of Sparse Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class StridedAttention(Predicate):
    """The last ``stride`` tokens, and every ``stride``-th before: visible iff
    ``q - k < stride or (q - k) % stride == 0``.

    Any two positions are two steps apart. The paper gives the two parts to different heads; that is
    ``SlidingWindow(stride).on_heads("::2", otherwise=DilatedWindow(2**20, stride))``, with a window that no context
    fills. Every key is seen again later, so a cache drops nothing.

    Args:
        stride: in tokens, at least 1 (the paper: close to the square root of the length).

    Raises:
        UserError: ``stride`` is not an int >= 1.

    Source: Child et al., "Generating Long Sequences with Sparse Transformers" (arXiv 1904.10509).
    """

    stride: int

    def __post_init__(self) -> None:
        self.require_int("stride", at_least=1)

    def visible(self, q: Index, k: Index) -> Index:
        return (q - k < self.stride) | ((q - k) % self.stride == 0)

    @classmethod
    def examples(cls) -> Sequence[StridedAttention]:
        return (cls(8), cls(1), cls(100))

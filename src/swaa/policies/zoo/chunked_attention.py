"""Attention within chunks of fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class ChunkedAttention(Predicate):
    """The sequence is cut into chunks, and each query sees its own: visible iff
    ``q // chunk_size == k // chunk_size``.

    Unlike a window, the first token of a chunk sees itself alone. Llama 4 has it on three layers of four.

    Args:
        chunk_size: tokens of a chunk, at least 1.

    Raises:
        UserError: ``chunk_size`` is not an int >= 1.

    Source: block-local attention, Qiu et al., "Blockwise Self-Attention" (arXiv 1911.02972); Llama 4 (Meta, 2025).
    """

    chunk_size: int

    def __post_init__(self) -> None:
        self.require_int("chunk_size", at_least=1)

    def visible(self, q: Index, k: Index) -> Index:
        return q // self.chunk_size == k // self.chunk_size

    def implies(self, other: Predicate) -> bool:
        return isinstance(other, ChunkedAttention) and other.chunk_size % self.chunk_size == 0

    @classmethod
    def examples(cls) -> Sequence[ChunkedAttention]:
        return (cls(8), cls(1), cls(100))

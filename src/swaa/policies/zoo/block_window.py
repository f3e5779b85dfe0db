"""Block-local attention with neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class BlockWindow(Predicate):
    """A sliding window of whole blocks, the query's own the last of them: visible iff
    ``q // block_size - k // block_size < num_blocks``.

    The local part of BigBird and of Longformer's blocked form. One block is :class:`ChunkedAttention`.

    Args:
        block_size: tokens of a block, at least 1.
        num_blocks: visible blocks, the query's own included, at least 1.

    Raises:
        UserError: a value is not an int >= 1.

    Source: Zaheer et al., "Big Bird" (arXiv 2007.14062); Beltagy et al., "Longformer" (arXiv 2004.05150).
    """

    block_size: int
    num_blocks: int = 2

    def __post_init__(self) -> None:
        self.require_int("block_size", at_least=1)
        self.require_int("num_blocks", at_least=1, unit="blocks")

    def visible(self, q: Index, k: Index) -> Index:
        return q // self.block_size - k // self.block_size < self.num_blocks

    def implies(self, other: Predicate) -> bool:
        if not isinstance(other, BlockWindow) or self.block_size != other.block_size:
            return False
        return self.num_blocks <= other.num_blocks

    @classmethod
    def examples(cls) -> Sequence[BlockWindow]:
        return (cls(8), cls(1, 1), cls(8, 3), cls(64, 2))

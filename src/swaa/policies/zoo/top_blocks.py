"""The blocks of keys that look most promising to each query: block top-k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swaa.policies.base import Predicate
from swaa.policies.content import ContentPolicy
from swaa.policies.registry import register_policy

if TYPE_CHECKING:
    from torch import Tensor


@register_policy
@dataclass(frozen=True, repr=False)
class TopBlocks(ContentPolicy):
    """Each query sees its own block, and the earlier blocks whose mean key has the largest dot product with it.

    Chosen by each query head and each query for itself; of blocks with equal products the earlier one goes first.
    Its keys cannot be freed: any block may be chosen again.

    Args:
        block_size: tokens of a block, at least 1.
        num_blocks: earlier blocks that a query sees, at least 1; its own comes on top.

    Raises:
        UserError: an argument is not an int >= 1.

    Source: the gate of MoBA (Lu et al., arXiv 2502.13189), here on models that were not trained with it. Relatives:
    Quest (arXiv 2406.10774) bounds the products by the extremes of a block's keys, while decoding; MInference
    (arXiv 2407.02490) lets the queries of a block choose together by their mean, while prefilling.
    """

    block_size: int
    num_blocks: int

    def __post_init__(self) -> None:
        self.require_int("block_size", at_least=1)
        self.require_int("num_blocks", at_least=1, unit="blocks")

    def select(self, query: Tensor, key_means: Tensor, candidates: Tensor) -> Tensor:
        scores = (query @ key_means.transpose(-1, -2)).masked_fill(~candidates, float("-inf"))
        best = scores.argsort(dim=-1, descending=True, stable=True)[..., : self.num_blocks]
        return candidates.new_zeros(scores.shape).scatter(-1, best, True)

    @property
    def most_blocks(self) -> int:
        return self.num_blocks

    def implies(self, other: Predicate) -> bool:
        if not isinstance(other, TopBlocks) or self.block_size != other.block_size:
            return False
        return self.num_blocks <= other.num_blocks

    @classmethod
    def examples(cls) -> Sequence[TopBlocks]:
        return (cls(1, 1), cls(8, 2), cls(64, 8))

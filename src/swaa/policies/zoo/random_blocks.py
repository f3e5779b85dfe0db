"""Random blocks: a few earlier key blocks for every query block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.hashing import MODULUS, scramble
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class RandomBlocks(Predicate):
    """Every query block sees one earlier block for each seed, drawn evenly from all earlier ones: visible iff
    ``k // block_size == draw(q // block_size, seed) for a seed``.

    A draw follows from the block's number and the seed alone, so it is the same in every run, layer and head. Two seeds
    may draw the same block. The own block is never drawn: add a window. Any block may be drawn later, so a cache drops
    nothing.

    Args:
        block_size: tokens of a block, at least 1.
        seeds: one int >= 0 for each block to draw, ascending.

    Raises:
        UserError: ``block_size`` is not an int >= 1, or ``seeds`` no tuple of ascending ints >= 0.

    Source: the random part of Zaheer et al., "Big Bird" (arXiv 2007.14062).
    """

    block_size: int
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        self.require_int("block_size", at_least=1)
        self.require_ints("seeds", at_least=0, unit="seeds")

    def visible(self, q: Index, k: Index) -> Index:
        own, block = q // self.block_size, k // self.block_size
        drawn = block < 0
        for seed in self.seeds:
            drawn = drawn | (block == scramble(seed, own) * own // MODULUS)
        return drawn & (q >= self.block_size)  # the first block has none before it

    @classmethod
    def examples(cls) -> Sequence[RandomBlocks]:
        return (cls(8), cls(1), cls(8, (0, 1, 5)), cls(64, (7,)))

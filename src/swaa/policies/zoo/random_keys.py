"""Random keys: the control at equal budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.hashing import MODULUS, scramble
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class RandomKeys(Predicate):
    """Each query sees itself and ``num_keys - 1`` earlier tokens on average, drawn anew for each query: visible iff
    ``q == k or random(q, k, seed) < (num_keys - 1) / q``.

    The control for any sparse policy: on average it shows as many keys as ``SlidingWindow(num_keys)``, at every query.
    Draws follow from the two positions and the seed, so they are the same in every run, layer and head. Nearly every
    block of the mask is partial, so it runs no faster than full attention and its block mask takes quadratic time to
    build; and a cache drops nothing, as any key may be drawn later.

    Args:
        num_keys: visible tokens on average, the query's own included, at least 1.
        seed: which of the many draws, an int >= 0.

    Raises:
        UserError: a value is out of its range.

    Source: random attention alone is compared in Zaheer et al., "Big Bird" (arXiv 2007.14062).
    """

    num_keys: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.require_int("num_keys", at_least=1)
        self.require_int("seed", at_least=0, unit="a seed")

    def visible(self, q: Index, k: Index) -> Index:
        return (q == k) | (scramble(self.seed, q, k) * q < (self.num_keys - 1) * MODULUS)

    @classmethod
    def examples(cls) -> Sequence[RandomKeys]:
        return (cls(8), cls(1), cls(300, 1))

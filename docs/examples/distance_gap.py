"""A policy of one's own: what do the middle distances matter? It sees what is near and what is far."""

from dataclasses import dataclass

import swaa


@swaa.register_policy
@dataclass(frozen=True, repr=False)
class DistanceGap(swaa.Predicate):
    """Near and far tokens, and none between: visible iff ``q - k < near or q - k >= far``."""

    near: int
    far: int

    def __post_init__(self):
        self.require_int("near", at_least=1)
        self.require_int("far", at_least=self.near)

    def visible(self, q, k):
        return (q - k < self.near) | (q - k >= self.far)

    @classmethod
    def examples(cls):
        return cls(4, 8), cls(1, 1), cls(100, 130)

"""Full causal attention: what the model was pretrained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.boolean import EVERYWHERE, Formula
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class FullAttention(Predicate):
    """Every query sees every earlier token and itself: visible iff ``k <= q``. The unit of ``&``."""

    def visible(self, q: Index, k: Index) -> Index:
        return q >= k

    @classmethod
    def examples(cls) -> Sequence[FullAttention]:
        return (cls(),)

    @property
    def formula(self) -> Formula:
        return EVERYWHERE

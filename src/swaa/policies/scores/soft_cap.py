"""Soft-capped scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swaa.policies.scores.base import ScoreMod
from swaa.policies.scores.registry import register_score


@register_score
@dataclass(frozen=True, repr=False)
class SoftCap(ScoreMod):
    """Scores stay between ``-cap`` and ``cap``: ``cap * tanh(score / cap)``, nearly the score itself where it is small.

    Paper: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", arXiv 2408.00118.

    Attributes:
        cap: > 0, in units of a score after scaling.
    """

    cap: float

    def __post_init__(self) -> None:
        self.require_number("cap", above=0)

    def modify(self, score: Any, q: Any, k: Any, head: Any) -> Any:
        return self.cap * (score / self.cap).tanh()

    @classmethod
    def examples(cls) -> Sequence[SoftCap]:
        return cls(50.0), cls(2.0)

"""Attention sinks: the first tokens stay visible to all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy


@register_policy
@dataclass(frozen=True, repr=False)
class SinkTokens(Predicate):
    """The first ``num_tokens`` tokens of a sequence stay visible to all: visible iff ``k < num_tokens``.

    Padding never counts, and each packed document has sinks of its own. Not the learned sink logits of GPT-OSS.

    Args:
        num_tokens: how many tokens are kept, at least 1.

    Raises:
        UserError: ``num_tokens`` is not an int >= 1.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453); "keep first k"
    in SWAA (arXiv 2512.10411).
    """

    num_tokens: int

    def __post_init__(self) -> None:
        self.require_int("num_tokens", at_least=1)

    def visible(self, q: Index, k: Index) -> Index:
        return k < self.num_tokens

    def implies(self, other: Predicate) -> bool:
        return isinstance(other, SinkTokens) and self.num_tokens <= other.num_tokens

    @classmethod
    def examples(cls) -> Sequence[SinkTokens]:
        return (cls(1), cls(4), cls(100))

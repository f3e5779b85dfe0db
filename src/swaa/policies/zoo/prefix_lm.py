"""Prefix language models: the tokens of a prefix see each other in both directions, all others are causal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from swaa.policies.base import AttentionPolicy, Index, Predicate
from swaa.policies.boolean import EVERYWHERE, Formula, literal
from swaa.policies.registry import register_pattern, register_policy
from swaa.policies.zoo.full_attention import FullAttention
from swaa.policies.zoo.sink_tokens import SinkTokens
from swaa.policies.zoo.sliding_window import SlidingWindow


@register_policy
@dataclass(frozen=True, repr=False)
class BidirectionalPrefix(Predicate):
    """The first ``num_tokens`` tokens of a prompt see each other, later ones too: visible iff
    ``q < num_tokens and k < num_tokens``.

    A query of the prompt sees ahead up to the end of its own prompt and no further; queries that decode see no later
    key. Other tokens see nothing by this policy: unite it with one that says what they see. ``~`` of it, and
    ``BidirectionalPrefix(n) & FullAttention()``, are causal.

    Args:
        num_tokens: the length of the prefix, at least 2 (a single token has nothing to see ahead).

    Raises:
        UserError: ``num_tokens`` is not an int >= 2.

    Source: Dong et al., "Unified Language Model Pre-training" (UniLM, arXiv 1905.03197); Raffel et al., T5 (arXiv
    1910.10683, section 3.2.1, "prefix LM").
    """

    looks_ahead: ClassVar[bool] = True

    num_tokens: int

    def __post_init__(self) -> None:
        self.require_int("num_tokens", at_least=2)

    def visible(self, q: Index, k: Index) -> Index:
        return (q < self.num_tokens) & (k < self.num_tokens)

    def implies(self, other: Predicate) -> bool:
        match other:
            case BidirectionalPrefix(size) | SinkTokens(size) | SlidingWindow(size):
                return self.num_tokens <= size
        return isinstance(other, BidirectionalPrompt)

    @classmethod
    def examples(cls) -> Sequence[BidirectionalPrefix]:
        return (cls(2), cls(8), cls(300))


@register_policy
@dataclass(frozen=True, repr=False)
class BidirectionalPrompt(Predicate):
    """Full attention, and all tokens of the prompt see each other: visible iff ``k <= q or k is in the prompt of q``,
    for ``q`` of the prompt; queries that decode are causal.

    Source: as :class:`BidirectionalPrefix`; the prefix is the whole prompt.
    """

    looks_ahead: ClassVar[bool] = True

    def visible(self, q: Index, k: Index) -> Index:
        return k >= 0

    @property
    def formula(self) -> Formula:
        return EVERYWHERE | literal(self)

    @classmethod
    def examples(cls) -> Sequence[BidirectionalPrompt]:
        return (cls(),)


@register_pattern(examples=[(), (8,), (300,)])
def PrefixLM(num_tokens: int | None = None) -> AttentionPolicy:
    """Causal everywhere, and bidirectional in a prefix: comes to ``FullAttention() | BidirectionalPrefix(num_tokens)``.

    Args:
        num_tokens: the length of the prefix; None for the whole prompt, as T5 and UniLM have it, which comes to
            ``BidirectionalPrompt()``.

    Raises:
        UserError: ``num_tokens`` is neither None nor an int >= 2.

    Source: as :class:`BidirectionalPrefix`.
    """
    return BidirectionalPrompt() if num_tokens is None else FullAttention() | BidirectionalPrefix(num_tokens)

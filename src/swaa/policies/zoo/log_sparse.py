"""Exponential distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy

_POWERS = 31  # distances up to 2**30, as positions stay below 2**31


@register_policy
@dataclass(frozen=True, repr=False)
class LogSparse(Predicate):
    """Each query sees itself and the tokens 1, 2, 4, 8, … before it: visible iff
    ``q - k == 0 or q - k is a power of two``.

    A query sees about ``log2(q)`` tokens, and within ``log2(q) + 1`` layers hears of every earlier one. Add a sliding
    window for the paper's local attention.

    Source: Li et al., "Enhancing the Locality and Breaking the Memory Bottleneck of Transformer on Time Series
    Forecasting" (LogSparse Transformer, arXiv 1907.00235).
    """

    def visible(self, q: Index, k: Index) -> Index:
        seen = q == k
        for exponent in range(_POWERS):
            seen = seen | (q - k == 2**exponent)
        return seen

    @classmethod
    def examples(cls) -> Sequence[LogSparse]:
        return (cls(),)

"""A bound policy evaluated on whatever its operands are: index tensors or intervals."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from swaa.compiler.interval import Interval, Verdict
from swaa.policies.bound import HeadPolicy
from swaa.policies.boolean import Formula

Truth = Tensor | Verdict


def evaluate(formula: Formula, q: Tensor | Interval, k: Tensor | Interval) -> Any:
    """The truth of the formula for queries ``q`` and keys ``k``; a plain bool where it is constant."""
    union: Any = False
    for term in formula.terms:
        truth: Any = True
        for predicate, asserted in term:
            value: Any = predicate.visible(q, k)  # type: ignore[arg-type]  # tensors carry more than Index asks for
            value = value if asserted else ~value
            truth = value if truth is True else truth & value
        union = truth if union is False else union | truth
    return union


def evaluate_phases(head: HeadPolicy, q: Any, k: Any, decodes: Any) -> Any:
    """The truth of a head's policy, with ``decodes`` (bool tensor or verdict) choosing the phase of each query."""
    prefill = evaluate(head.prefill, q, k)
    if not head.by_phase:
        return prefill
    decode = evaluate(head.decode, q, k)
    # constants are folded: a kernel without dead operations, and sharper verdicts
    chosen = decodes if decode is True else False if decode is False else decodes & decode
    other = ~decodes if prefill is True else False if prefill is False else ~decodes & prefill
    return other if chosen is False else chosen if other is False else chosen | other



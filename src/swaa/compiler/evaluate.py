"""A bound policy evaluated on whatever its operands are: index tensors or intervals."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from swaa.compiler.interval import Interval, Verdict
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


def evaluate_phases(prefill: Formula, decode: Formula | None, q: Any, k: Any, decodes: Any) -> Any:
    """The truth of a policy by phase, with ``decodes`` (bool tensor or verdict) telling the phase of each query.

    ``decode`` is None where both phases see the same (not compared here: the parameters may be tensors).
    """
    early = evaluate(prefill, q, k)
    if decode is None:
        return early
    late = evaluate(decode, q, k)
    # constants are folded: a kernel without dead operations, and sharper verdicts
    chosen = decodes if late is True else False if late is False else decodes & late
    other = ~decodes if early is True else False if early is False else ~decodes & early
    return other if chosen is False else chosen if other is False else chosen | other

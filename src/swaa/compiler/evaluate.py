"""A bound policy evaluated on whatever its operands are: index tensors or intervals."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from swaa.compiler.interval import Interval, Verdict
from swaa.errors import UserError
from swaa.policies.base import Predicate
from swaa.policies.boolean import Formula
from swaa.policies.bound import LayerPolicy


def evaluate(formula: Formula, q: Tensor | Interval, k: Tensor | Interval) -> Any:
    """The truth of the formula for queries ``q`` and keys ``k``; a plain bool where it is constant.

    Raises:
        UserError: a predicate returns something else than truth values.
    """
    union: Any = False
    for term in formula.terms:
        truth: Any = True
        for predicate, asserted in term:
            value = _truth(predicate, q, k)
            # a bool apart: ~True is -2
            value = value if asserted else not value if isinstance(value, bool) else ~value
            truth = value if truth is True else truth & value
        union = truth if union is False else union | truth
    return union


def evaluate_ahead(beyond: Formula, q: Any, k: Any, limits: Any) -> Any:
    """The truth of what is seen ahead (``Formula.beyond``), with ``limits`` telling how far each query may look.

    It does not ask for ``k > q``: what is seen ahead is seen of earlier keys, too (see :class:`Formula`). That keeps
    the blocks on the diagonal from being undecided.
    """
    return evaluate(beyond, q, k) & (k < limits)


def _truth(predicate: Predicate, q: Any, k: Any) -> Any:
    """What the predicate returns, checked: of numbers, ``~`` and ``&`` would quietly take the bits."""
    if predicate.by_content and isinstance(q, Interval):
        known = q >= k
        return Verdict(torch.ones_like(known.may), torch.zeros_like(known.must))  # it depends
    value: Any = predicate.visible(q, k)
    if isinstance(value, (bool, Verdict)) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return value
    kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    owner = type(predicate).__name__
    raise UserError(f"{owner}.visible: expected truth values, got {kind}. Return a comparison, such as q - k < 8.")


def check_predicates(layer: LayerPolicy) -> None:
    """Refuse a layer whose predicates fail on index tensors, before anything is built from them.

    Raises:
        UserError: names the predicate and what it raised.
    """
    for _, head in layer.groups:
        for predicate in (*head.prefill.atoms, *head.decode.atoms):
            _check_predicate(predicate)


@lru_cache(maxsize=1024)
def _check_predicate(predicate: Predicate) -> None:
    few = torch.arange(3)
    try:
        _truth(predicate, few.unsqueeze(-1), few)
    except UserError:
        raise
    except Exception as error:  # whatever the author's code raises is the author's to mend
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise UserError(
            f"{type(predicate).__name__}.visible: fails on index tensors ({reason}). "
            f"Use operators only: + - * // %, abs, comparisons, & | ^ ~; no if, and, or, min and max."
        ) from error


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

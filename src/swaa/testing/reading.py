"""The check's own reading of a predicate: ``visible`` called for one query and one key at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from swaa.policies import Predicate
from swaa.testing.integers import FOREIGN, KIND, OVERFLOW, Bounded, Refused, Truth, Whole

Oracle = Callable[[Any, int, int], bool]
"""An author's loop oracle: ``oracle(policy, q, k)`` over plain ints, for one predicate."""


def sees(predicate: Predicate, q: int, k: int) -> bool:
    """May the query at ``q`` see the key at ``k``, by the predicate alone?

    An operation that the strict numbers do not know (a table lookup, a function of torch) is read once more with
    tensors of a single number each, so that nothing can depend on where a token stands among others.

    Raises:
        Refused: the predicate does what no predicate may.
    """
    try:
        value: Any = predicate.visible(Whole(q), Whole(k))  # type: ignore[arg-type]  # an Index but for its hash
    except Refused as refused:
        if refused.reason != FOREIGN:
            raise
        value = predicate.visible(torch.tensor(q), torch.tensor(k))  # type: ignore[arg-type]
    if isinstance(value, Truth):
        return value.value
    if isinstance(value, bool):
        return value
    if isinstance(value, Tensor) and value.dtype == torch.bool and value.numel() == 1:
        return bool(value)
    kind = "a number" if isinstance(value, Whole) else type(value).__name__
    raise Refused(KIND, f"it returns {kind} instead of a comparison")


def overflow(predicate: Predicate, q: int, k: int) -> Refused | None:
    """Why this pair takes larger numbers than intervals count exactly, if it does."""
    try:
        predicate.visible(Bounded(q), Bounded(k))  # type: ignore[arg-type]
    except Refused as refused:
        return refused if refused.reason == OVERFLOW else None
    return None


class Reader:
    """Tables of what predicates show, each pair read once."""

    def __init__(self) -> None:
        self._tables: dict[Predicate, Tensor] = {}

    def table(self, predicate: Predicate, length: int) -> Tensor:
        """bool [length, length], queries down: what the predicate shows to positions below ``length``."""
        known = self._tables.get(predicate)
        if known is None or len(known) < length:
            known = torch.tensor([[self.pair(predicate, q, k) for k in range(length)] for q in range(length)])
            self._tables[predicate] = known
        return known[:length, :length]

    @staticmethod
    def pair(predicate: Predicate, q: int, k: int) -> bool:
        """Is the pair visible? Only what looks ahead shows a later key."""
        return (k <= q or predicate.looks_ahead) and sees(predicate, q, k)

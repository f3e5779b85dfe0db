"""The normal form beneath every policy: which formula holds for which layers, phases and heads.

``NormalForm`` splits the layers into sets that behave alike; a ``Behaviour`` gives each phase a split of the heads;
each set of heads has one :class:`~swaa.policies.boolean.Formula`. Nested scopes and the compositor both end here, so
two policies that mean the same are the same value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from swaa.policies.boolean import EVERYWHERE, Formula
from swaa.policies.selector import EVERYTHING, NOTHING, IndexSet

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")


class _Ordered(Protocol):
    def __hash__(self) -> int: ...


V = TypeVar("V", bound=_Ordered)


@dataclass(frozen=True)
class Split(Generic[V]):
    """A partition of all indices, one cell per distinct value, sorted. Canonical because its index sets are."""

    cells: tuple[tuple[IndexSet, V], ...]

    @classmethod
    def constant(cls, value: V) -> Split[V]:
        return cls(((EVERYTHING, value),))

    def combine(self, other: Split[V], op: Callable[[V, V], V]) -> Split[V]:
        """The split whose value at every index is ``op`` of the two values there."""
        merged: dict[V, IndexSet] = {}
        for here, value in self.cells:
            for there, other_value in other.cells:
                both = here & there
                if both != NOTHING:
                    result = op(value, other_value)
                    merged[result] = merged.get(result, NOTHING) | both
        return Split._of(merged)

    def override(self, where: IndexSet, other: Split[V]) -> Split[V]:
        """This split where ``where`` holds, ``other`` elsewhere."""
        merged: dict[V, IndexSet] = {}
        for split, place in ((self, where), (other, ~where)):
            for cell, value in split.cells:
                part = cell & place
                if part != NOTHING:
                    merged[value] = merged.get(value, NOTHING) | part
        return Split._of(merged)

    @classmethod
    def _of(cls, merged: dict[V, IndexSet]) -> Split[V]:
        cells = [(where, value) for value, where in merged.items()]
        return cls(tuple(sorted(cells, key=lambda cell: cell[0].sort_key)))


Heads = Split[Formula]


@dataclass(frozen=True)
class Behaviour:
    """What the heads of a layer see while prefilling and while decoding."""

    prefill: Heads
    decode: Heads

    def combine(self, other: Behaviour, op: Callable[[Formula, Formula], Formula]) -> Behaviour:
        return Behaviour(self.prefill.combine(other.prefill, op), self.decode.combine(other.decode, op))


NormalForm = Split[Behaviour]


def uniform(formula: Formula) -> NormalForm:
    """The normal form of a formula that holds in every layer, phase and head. Queries that decode never look ahead."""
    return Split.constant(Behaviour(Split.constant(formula), Split.constant(formula.causal)))


def causal(heads: Heads) -> Heads:
    """What the heads see of earlier keys."""
    return heads.combine(heads, lambda formula, _: formula.causal)


FULL = uniform(EVERYWHERE)


def pointwise(left: NormalForm, right: NormalForm, op: Callable[[Formula, Formula], Formula]) -> NormalForm:
    """``op`` applied at every layer, phase and head."""
    return left.combine(right, lambda a, b: a.combine(b, op))


def scoped(
    inside: NormalForm,
    outside: NormalForm,
    *,
    layers: IndexSet = EVERYTHING,
    phase: Phase | None = None,
    heads: IndexSet = EVERYTHING,
) -> NormalForm:
    """``inside`` where layer, phase and head are all chosen, ``outside`` elsewhere."""

    def behave(chosen: Behaviour, other: Behaviour) -> Behaviour:
        parts = [
            getattr(chosen, name).override(heads, getattr(other, name))
            if phase in (None, name)
            else getattr(other, name)
            for name in PHASES
        ]
        return Behaviour(*parts)

    return inside.combine(outside, behave).override(layers, outside)

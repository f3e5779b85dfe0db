"""What can be said of a policy that chooses by content before queries and keys are there.

A formula with choices by content is split by what they say (Shannon's expansion): with every choice fixed to true or
false it is a formula of positions alone, its *cofactor*, which all readings of the compiler know. What any cofactor
shows is *possible*; what all of them show is *certain*. A query's own block is chosen always, so that is known, too.

Source: C. E. Shannon, "The Synthesis of Two-Terminal Switching Circuits" (1949).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from swaa.errors import UserError
from swaa.policies.base import Index, Predicate
from swaa.policies.boolean import EVERYWHERE, NOWHERE, Formula, literal
from swaa.policies.bound import HeadPolicy, LayerPolicy
from swaa.policies.content import ContentPolicy
from swaa.policies.piecewise import PHASES, Phase

MOST_CHOICES = 3
"""A layer may have this many different choices by content: each one doubles the masks that are computed."""

Truth = Mapping[Predicate, Formula]


@dataclass(frozen=True, repr=False)
class OwnBlock(Predicate):
    """A query sees the keys of its own block: what every choice by content holds. Never in a policy of a user's."""

    block_size: int

    def visible(self, q: Index, k: Index) -> Index:
        return q // self.block_size == k // self.block_size

    @classmethod
    def examples(cls) -> Sequence[OwnBlock]:
        return (cls(8),)


def choices(layer: LayerPolicy | HeadPolicy) -> tuple[ContentPolicy, ...]:
    """The different choices by content, sorted.

    Raises:
        UserError: they are more than :data:`MOST_CHOICES`.
    """
    heads = [layer] if isinstance(layer, HeadPolicy) else [head for _, head in layer.groups]
    formulas = [formula for head in heads for formula in (head.prefill, head.decode)]
    found = {atom for formula in formulas for atom in formula.atoms if isinstance(atom, ContentPolicy)}
    if len(found) > MOST_CHOICES:
        raise UserError(
            f"policy: expected at most {MOST_CHOICES} different choices by content in one layer, got {len(found)}. "
            f"Give some heads the same choice, or write the combination as one ContentPolicy of your own."
        )
    return tuple(sorted(found, key=lambda atom: atom.sort_key))


def cofactors(layer: LayerPolicy) -> Iterator[tuple[tuple[bool, ...], LayerPolicy]]:
    """For each outcome of the layer's :func:`choices`, the policy that is left: one of positions alone."""
    atoms = choices(layer)
    for outcome in itertools.product((True, False), repeat=len(atoms)):
        yield outcome, cofactor(layer, outcome)


@lru_cache(maxsize=1024)
def cofactor(layer: LayerPolicy, outcome: tuple[bool, ...]) -> LayerPolicy:
    """The layer's policy where each of its :func:`choices` says what ``outcome`` says."""
    fixed: Truth = {atom: EVERYWHERE if value else NOWHERE for atom, value in zip(choices(layer), outcome, strict=True)}
    return _each_formula(layer, lambda formula: _with_truth(formula, fixed))


@lru_cache(maxsize=1024)
def in_phase(layer: LayerPolicy, phase: Phase) -> LayerPolicy:
    """The layer's policy as queries of one phase see it, which need not choose where those of the other phase do."""
    return _each_head(layer, lambda head: HeadPolicy(head.formula(phase), head.formula(phase).causal))


def phases_of(layer: LayerPolicy, choice: ContentPolicy) -> tuple[Phase, ...]:
    """The phases in which some head goes by the choice."""
    return tuple(phase for phase in PHASES if any(choice in head.formula(phase).atoms for _, head in layer.groups))


def shows_nothing(layer: LayerPolicy) -> bool:
    """Does no head ever see a key?"""
    return all(head.prefill == NOWHERE == head.decode for _, head in layer.groups)


@lru_cache(maxsize=1024)
def possible(layer: LayerPolicy) -> LayerPolicy:
    """What the layer shows for some queries and keys; no choice shows more. Itself where it chooses nothing."""
    if not layer.by_content:
        return layer
    return _each_formula(layer, lambda formula: _over_outcomes(formula, Formula.__or__))


@lru_cache(maxsize=1024)
def certain(layer: LayerPolicy) -> LayerPolicy:
    """What the layer shows for all queries and keys; no choice shows less. Itself where it chooses nothing."""
    if not layer.by_content:
        return layer
    return _each_formula(layer, lambda formula: _over_outcomes(formula, Formula.__and__))


def _over_outcomes(formula: Formula, join: Callable[[Formula, Formula], Formula]) -> Formula:
    for atom in formula.atoms:
        if isinstance(atom, ContentPolicy):
            chosen = _with_truth(formula, {atom: EVERYWHERE})
            left_out = _with_truth(formula, {atom: NOWHERE})
            own = literal(OwnBlock(atom.block_size))
            # inside the own block the choice says yes; elsewhere either may be
            elsewhere = join(chosen, left_out)
            formula = dataclasses.replace(((own & chosen) | (~own & elsewhere)).causal, ahead=formula.ahead)
    return formula


def _with_truth(formula: Formula, truth: Truth) -> Formula:
    """The formula with other ones in the place of some predicates."""
    union = NOWHERE
    for term in formula.terms:
        part = EVERYWHERE
        for atom, asserted in term:
            value = truth.get(atom, literal(atom)).causal
            part = part & (value if asserted else ~value)
        union = union | part
    return dataclasses.replace(union.causal, ahead=formula.ahead)  # no choice looks ahead


def _each_formula(layer: LayerPolicy, change: Callable[[Formula], Formula]) -> LayerPolicy:
    """The layer with changed formulas; heads that come to see the same are one group."""
    return _each_head(layer, lambda head: HeadPolicy(change(head.prefill), change(head.decode)))


def _each_head(layer: LayerPolicy, change: Callable[[HeadPolicy], HeadPolicy]) -> LayerPolicy:
    merged: dict[HeadPolicy, tuple[int, ...]] = {}
    for heads, head in layer.groups:
        changed = change(head)
        merged[changed] = tuple(sorted((*merged.get(changed, ()), *heads)))
    return dataclasses.replace(layer, groups=tuple((heads, head) for head, heads in merged.items()))

"""A policy bound to a model's size: what each layer's heads see in each phase, as plain values.

This is what the compiler reads. Layers that behave alike get equal :class:`LayerPolicy` values, and so share masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from swaa.policies.base import AttentionPolicy, Predicate
from swaa.policies.boolean import EVERYWHERE, Formula
from swaa.policies.describe import formula_to_python
from swaa.policies.piecewise import FULL, Behaviour, Heads, Phase

_FULL = FULL.cells[0][1]


@dataclass(frozen=True)
class PhasePolicy:
    """What the query heads of one layer see in one phase: formulas, each with the heads it holds for."""

    groups: tuple[tuple[tuple[int, ...], Formula], ...]
    num_heads: int

    @property
    def by_head(self) -> bool:
        """Do heads differ?"""
        return len(self.groups) > 1

    @property
    def is_full(self) -> bool:
        """Does every head see everything?"""
        return not self.by_head and self.groups[0][1] == EVERYWHERE

    def formula(self, head: int) -> Formula:
        """The formula of one query head."""
        return next(formula for heads, formula in self.groups if head in heads)

    @property
    def atoms(self) -> tuple[Predicate, ...]:
        """The distinct predicates of all heads."""
        return tuple(dict.fromkeys(atom for _, formula in self.groups for atom in formula.atoms))

    def __str__(self) -> str:
        if not self.by_head:
            return formula_to_python(self.groups[0][1])
        parts = [f"heads {', '.join(map(str, heads))}: {formula_to_python(formula)}" for heads, formula in self.groups]
        return "; ".join(parts)


@dataclass(frozen=True)
class LayerPolicy:
    """The effective policy of one layer."""

    prefill: PhasePolicy
    decode: PhasePolicy

    @property
    def by_phase(self) -> bool:
        """Do the phases differ?"""
        return self.prefill != self.decode

    @property
    def by_head(self) -> bool:
        """Do heads differ in either phase?"""
        return self.prefill.by_head or self.decode.by_head

    @property
    def is_full(self) -> bool:
        """Is the layer plain causal attention throughout?"""
        return self.prefill.is_full and self.decode.is_full

    @property
    def num_heads(self) -> int:
        """Query heads of the layer."""
        return self.prefill.num_heads

    def phase(self, phase: Phase) -> PhasePolicy:
        """The policy of one phase."""
        return self.prefill if phase == "prefill" else self.decode

    @cached_property
    def atoms(self) -> tuple[Predicate, ...]:
        """The distinct predicates of all heads and phases."""
        return tuple(dict.fromkeys((*self.prefill.atoms, *self.decode.atoms)))


@dataclass(frozen=True)
class BoundPolicy:
    """A policy on a model with ``len(layers)`` layers."""

    policy: AttentionPolicy
    layers: tuple[LayerPolicy, ...]

    @property
    def distinct(self) -> dict[LayerPolicy, tuple[int, ...]]:
        """Each distinct layer policy with the layers that have it, in order of first appearance."""
        groups: dict[LayerPolicy, list[int]] = {}
        for index, layer in enumerate(self.layers):
            groups.setdefault(layer, []).append(index)
        return {layer: tuple(indices) for layer, indices in groups.items()}


@lru_cache(maxsize=1024)
def bind(policy: AttentionPolicy, num_layers: int, num_heads: int) -> BoundPolicy:
    """Resolve the policy for every layer and query head of a model.

    Raises:
        UserError: a layer or head that the policy names does not exist in this model.
    """
    layers: dict[int, LayerPolicy] = {}
    for where, behaviour in policy.normal_form.cells:
        resolved = _layer(behaviour, num_heads)
        # a default that nothing falls to is harmless only where it is full attention
        for index in where.indices(num_layers, kind="layer", may_be_empty=behaviour == _FULL):
            layers[index] = resolved
    return BoundPolicy(policy, tuple(layers[index] for index in range(num_layers)))


def _layer(behaviour: Behaviour, num_heads: int) -> LayerPolicy:
    return LayerPolicy(_phase(behaviour.prefill, num_heads), _phase(behaviour.decode, num_heads))


def _phase(heads: Heads, num_heads: int) -> PhasePolicy:
    cells = [
        (where.indices(num_heads, kind="head", may_be_empty=formula == EVERYWHERE), formula)
        for where, formula in heads.cells
    ]
    return PhasePolicy(tuple((chosen, formula) for chosen, formula in cells if chosen), num_heads)

"""A policy bound to a model's size: what each layer's heads see in each phase, as plain values.

This is what the compiler reads. Layers that behave alike get equal :class:`LayerPolicy` values, and so share masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from swaa.policies.base import AttentionPolicy
from swaa.policies.boolean import EVERYWHERE, Formula
from swaa.policies.describe import formula_to_python
from swaa.policies.piecewise import FULL, Behaviour, Heads, Phase

_FULL_BEHAVIOUR = FULL.cells[0][1]


@dataclass(frozen=True)
class HeadPolicy:
    """What a query head sees while prefilling and while decoding."""

    prefill: Formula
    decode: Formula

    @property
    def by_phase(self) -> bool:
        """Do the phases differ?"""
        return self.prefill != self.decode

    @property
    def formulas(self) -> tuple[Formula, Formula | None]:
        """What is visible of earlier keys: the prefill formula, and the decode formula or None where it is the same."""
        return self.prefill.causal, self.decode if self.prefill.causal != self.decode else None

    @property
    def looks_ahead(self) -> bool:
        """Do queries of the prompt see later keys of the prompt?"""
        return bool(self.prefill.ahead)

    @property
    def is_full(self) -> bool:
        """Is it plain causal attention throughout?"""
        return self.prefill == EVERYWHERE == self.decode

    @property
    def by_content(self) -> bool:
        """Does what it shows depend on more than positions, in any phase?"""
        return self.prefill.by_content or self.decode.by_content

    def formula(self, phase: Phase) -> Formula:
        """The formula of one phase."""
        return self.prefill if phase == "prefill" else self.decode


@dataclass(frozen=True)
class LayerPolicy:
    """The effective policy of one layer: a partition of its query heads, each part with its :class:`HeadPolicy`."""

    groups: tuple[tuple[tuple[int, ...], HeadPolicy], ...]
    num_heads: int

    @property
    def by_head(self) -> bool:
        """Do heads differ?"""
        return len(self.groups) > 1

    @property
    def by_phase(self) -> bool:
        """Do the phases differ, for any head?"""
        return any(head.by_phase for _, head in self.groups)

    @property
    def looks_ahead(self) -> bool:
        """Do queries of the prompt see later keys of the prompt, for any head?"""
        return any(head.looks_ahead for _, head in self.groups)

    @property
    def is_full(self) -> bool:
        """Is the layer plain causal attention throughout?"""
        return all(head.is_full for _, head in self.groups)

    @cached_property
    def by_content(self) -> bool:
        """Does what any head sees depend on more than positions?"""
        return any(head.by_content for _, head in self.groups)

    def describe(self, phase: Phase) -> str:
        """The policy of one phase as Python, by head where heads differ."""
        heads_of: dict[Formula, list[int]] = {}
        for heads, head in self.groups:
            heads_of.setdefault(head.formula(phase), []).extend(heads)
        if len(heads_of) == 1:
            return formula_to_python(next(iter(heads_of)))
        parts = [f"heads {','.join(map(str, sorted(heads)))}: {formula_to_python(f)}" for f, heads in heads_of.items()]
        return "; ".join(parts)


@dataclass(frozen=True)
class BoundPolicy:
    """A policy on a model with ``len(layers)`` layers."""

    policy: AttentionPolicy
    layers: tuple[LayerPolicy, ...]

    @cached_property
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
        # a default that nothing falls to is harmless only where it is full attention
        chosen = where.indices(num_layers, kind="layer", may_be_empty=behaviour == _FULL_BEHAVIOUR)
        resolved = _layer(behaviour, num_heads)
        layers.update(dict.fromkeys(chosen, resolved))
    return BoundPolicy(policy, tuple(layers[index] for index in range(num_layers)))


def _layer(behaviour: Behaviour, num_heads: int) -> LayerPolicy:
    prefill, decode = _by_head(behaviour.prefill, num_heads), _by_head(behaviour.decode, num_heads)
    groups: dict[HeadPolicy, list[int]] = {}
    for head in range(num_heads):
        groups.setdefault(HeadPolicy(prefill[head], decode[head]), []).append(head)
    return LayerPolicy(tuple((tuple(heads), policy) for policy, heads in groups.items()), num_heads)


def _by_head(split: Heads, num_heads: int) -> dict[int, Formula]:
    return {
        head: formula
        for where, formula in split.cells
        for head in where.indices(num_heads, kind="head", may_be_empty=formula == EVERYWHERE)
    }

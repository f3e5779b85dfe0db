"""Score modifications bound to a model's size: what each layer's heads apply, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from swaa.errors import UserError
from swaa.policies.scores.base import Mods, ScoreMod, Scores
from swaa.policies.scores.cache_positions import CachePositions
from swaa.policies.scores.sink_logits import SinkLogits
from swaa.policies.selector import NOTHING, IndexSet

Groups = tuple[tuple[tuple[int, ...], Mods], ...]


@dataclass(frozen=True)
class LayerScores:
    """The effective score modifications of one layer, or of some of its heads. Equal layers are equal values.

    Attributes:
        groups: a partition of the heads, each part with what it applies, first to last.
        heads: the number that each head has in the model; 0, 1, 2, … save for a part of a layer.
        model_heads: query heads of a layer of the model.
    """

    groups: Groups
    heads: tuple[int, ...]
    model_heads: int

    @cached_property
    def changes(self) -> Groups:
        """The groups without positions and sinks, which are no change of a score."""
        return _regrouped(
            {
                head: tuple(mod for mod in mods if not isinstance(mod, CachePositions | SinkLogits))
                for heads, mods in self.groups
                for head in heads
            }
        )

    @property
    def changes_scores(self) -> bool:
        """Does any head do more than take a sink in, or count positions in another way?"""
        return any(mods for _, mods in self.changes)

    @property
    def positions(self) -> CachePositions | None:
        """How positions are counted, the same for all heads; None for those of the text."""
        return next((mod for mod in self.groups[0][1] if isinstance(mod, CachePositions)), None)

    @property
    def is_nothing(self) -> bool:
        """Is every score left as it is, without a sink?"""
        return not any(mods for _, mods in self.groups)

    @cached_property
    def sinks(self) -> tuple[tuple[float, ...], ...]:
        """For each head, its sink logits; those that are learned with the values that they begin with."""
        return self._sinks(lambda _: True)

    @cached_property
    def fixed_sinks(self) -> tuple[tuple[float, ...], ...]:
        """For each head, its sink logits that are constants."""
        return self._sinks(lambda sink: not sink.learned)

    @cached_property
    def learned_sinks(self) -> tuple[tuple[float, ...], ...]:
        """For each head, what its learned sink logit begins with: one value, or none."""
        return self._sinks(lambda sink: sink.learned)

    @property
    def learns(self) -> bool:
        """Is any of the sink logits learned?"""
        return any(self.learned_sinks)

    def of_heads(self, chosen: tuple[int, ...]) -> LayerScores:
        """What some of these heads apply, counted anew from 0."""
        mods_of = {head: mods for heads, mods in self.groups for head in heads}
        groups = _regrouped({place: mods_of[head] for place, head in enumerate(chosen)})
        return LayerScores(groups, tuple(self.heads[head] for head in chosen), self.model_heads)

    def bound(self, mods: Mods) -> Mods:
        """The modifications with what they work out from the number of heads."""
        return tuple(_bound(mod, self.model_heads) for mod in mods)

    def describe(self) -> str:
        """As Python, by head where heads differ."""
        if len(self.groups) == 1:
            return _sum(self.groups[0][1])
        return "; ".join(f"heads {','.join(map(str, heads))}: {_sum(mods)}" for heads, mods in self.groups)

    def _sinks(self, wanted: Callable[[SinkLogits], bool]) -> tuple[tuple[float, ...], ...]:
        found: dict[int, tuple[float, ...]] = {}
        for heads, mods in self.groups:
            sinks = [mod for mod in self.bound(mods) if isinstance(mod, SinkLogits) and wanted(mod)]
            for head in heads:
                found[head] = tuple(sink.of_head(self.heads[head]) for sink in sinks)
        return tuple(found[head] for head in range(len(self.heads)))


@lru_cache(maxsize=1024)
def bind_scores(scores: Scores, num_layers: int, num_heads: int) -> tuple[LayerScores, ...]:
    """Resolve the modifications for every layer and query head of a model.

    Raises:
        UserError: a layer or head that they name does not exist in this model; a table of values has not one for each
            head; two learned sink logits share a head; heads of a layer count positions differently.
    """
    _check_places(scores, num_layers, num_heads)
    layers: dict[int, LayerScores] = {}
    for where, split in scores.form.cells:
        mods_of: dict[int, Mods] = {}
        for heads, mods in split.cells:
            mods_of.update(dict.fromkeys(heads.indices(num_heads, kind="head", may_be_empty=True), mods))
        layer = LayerScores(_regrouped(mods_of), tuple(range(num_heads)), num_heads)
        for head, learned in enumerate(layer.learned_sinks):
            if len(learned) > 1:
                raise UserError(
                    f"SinkLogits: head {head} has {len(learned)} learned sink logits, of which only the sum could be "
                    f"learned. Keep one of them."
                )
        _check_positions(layer)
        for _, mods in layer.groups:
            layer.bound(mods)  # refuses tables of the wrong length
        layers.update(dict.fromkeys(where.indices(num_layers, kind="layer", may_be_empty=True), layer))
    return tuple(layers[index] for index in range(num_layers))


def _check_positions(layer: LayerScores) -> None:
    """Refuse positions that are not one way of counting for all heads: heads share their keys."""
    counted = {tuple(mod for mod in mods if isinstance(mod, CachePositions)) for _, mods in layer.groups}
    if len(counted) > 1 or any(len(ways) > 1 for ways in counted):
        ways = ", ".join(sorted({repr(mod) for mods in counted for mod in mods}))
        raise UserError(
            f"CachePositions: expected one way of counting for all heads of a layer, got {ways} on some of them. "
            f"Leave out .on_heads, and keep one."
        )


def _check_places(scores: Scores, num_layers: int, num_heads: int) -> None:
    """Refuse a modification that holds nowhere in this model."""
    places: dict[ScoreMod, tuple[IndexSet, IndexSet]] = {}
    for layers, split in scores.form.cells:
        for heads, mods in split.cells:
            for mod in mods:
                before = places.get(mod, (NOTHING, NOTHING))
                places[mod] = (before[0] | layers, before[1] | heads)
    for layers, heads in places.values():
        layers.indices(num_layers, kind="layer")
        heads.indices(num_heads, kind="head")


@lru_cache(maxsize=1024)
def _bound(mod: ScoreMod, num_heads: int) -> ScoreMod:
    return mod.for_heads(num_heads)


def _regrouped(mods_of: dict[int, Mods]) -> Groups:
    """Heads with equal modifications together, in order of first appearance."""
    groups: dict[Mods, list[int]] = {}
    for head in sorted(mods_of):
        groups.setdefault(mods_of[head], []).append(head)
    return tuple((tuple(heads), mods) for mods, heads in groups.items())


def _sum(mods: Mods) -> str:
    return " + ".join(map(repr, mods)) or "unchanged"

"""Scores as a sum of scoped modifications: the one source of their printed Python and of their YAML form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swaa.policies.scores.base import ScoreMod, Scores
from swaa.policies.selector import EVERYTHING, NOTHING, IndexSet

Summand = tuple[ScoreMod, IndexSet, IndexSet]
"""A modification, and the layers and heads that it holds in."""


def summands(scores: Scores) -> Iterator[Summand]:
    """Modifications whose sum is ``scores``. Equal scores have equal summands.

    One is written once for all places that have it next; first those that no other place has to wait for.
    """
    left = {(layers, heads): list(mods) for layers, split in scores.form.cells for heads, mods in split.cells if mods}
    while left:
        following = list(dict.fromkeys(mods[0] for mods in left.values()))
        later = {mod for mods in left.values() for mod in mods[1:]}
        mod = next((mod for mod in following if mod not in later), following[0])
        yield from ((mod, *place) for place in _rectangles([where for where, mods in left.items() if mods[0] == mod]))
        left = {where: mods[1:] if mods[0] == mod else mods for where, mods in left.items()}
        left = {where: mods for where, mods in left.items() if mods}


def _rectangles(places: list[tuple[IndexSet, IndexSet]]) -> list[tuple[IndexSet, IndexSet]]:
    """The same places, those with equal heads as one; no two of them overlap."""
    heads_of: dict[IndexSet, IndexSet] = {}
    for layers, heads in places:
        heads_of[layers] = heads_of.get(layers, NOTHING) | heads
    layers_of: dict[IndexSet, IndexSet] = {}
    for layers, heads in heads_of.items():
        layers_of[heads] = layers_of.get(heads, NOTHING) | layers
    return [(layers, heads) for heads, layers in layers_of.items()]


def scores_to_python(scores: Scores) -> str:
    """Python that makes the scores, given ``from swaa import *``."""
    parts = []
    for mod, layers, heads in summands(scores):
        text = repr(mod)
        text += "" if layers == EVERYTHING else f".on_layers({layers.to_python()!r})"
        text += "" if heads == EVERYTHING else f".on_heads({heads.to_python()!r})"
        parts.append(text)
    return " + ".join(parts)


def scores_to_list(scores: Scores) -> list[dict[str, Any]]:
    """The scores as dicts, lists, strings and numbers: for YAML, JSON and hashes. Equal scores, equal lists.

    Each entry has the class as ``score``, the fields that differ from their defaults, and ``layers`` and ``heads``
    where it is scoped. What comes first is applied first.
    """
    entries = []
    for mod, layers, heads in summands(scores):
        entry: dict[str, Any] = {"score": type(mod).__name__}
        for name, value in mod.parameters().items():
            if value != mod.__dataclass_fields__[name].default:
                entry[name] = list(value) if isinstance(value, tuple) else value
        if layers != EVERYTHING:
            entry["layers"] = layers.to_python()
        if heads != EVERYTHING:
            entry["heads"] = heads.to_python()
        entries.append(entry)
    return entries

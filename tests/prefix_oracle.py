"""What is seen ahead, as plain loops: the part of :mod:`oracle` for policies that look ahead. Imports no swaa.

The set of pairs that a policy shows has two halves. The causal one is :func:`oracle.sees`. Ahead (k > q), an atom shows
what :data:`AHEAD` says, others nothing; a union shows what either part does, an intersection what all do, a complement
nothing, and full attention, which stands wherever a scope does not hold, nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import oracle
from oracle import (
    Atom,
    Complement,
    Contiguous,
    Intersection,
    Model,
    Packed,
    Padded,
    Recipe,
    Scene,
    Scope,
    Slot,
    Stack,
    Union,
)

FAR = 10**9

AHEAD: dict[str, Callable[..., bool]] = {
    "BidirectionalPrefix": lambda q, k, count: max(q, k) < count,
    "BidirectionalPrompt": lambda q, k: True,
    "Near": lambda q, k, reach: k <= q + reach,
}


def sees_ahead(recipe: Recipe, model: Model, layer: int, head: int, q: int, k: int) -> bool:
    """May a query of the prompt at position q see the later key at k, if k is in its prompt?"""

    def of(part: Recipe) -> bool:
        return sees_ahead(part, model, layer, head, q, k)

    match recipe:
        case Atom(name, args):
            return name in AHEAD and AHEAD[name](q, k, *args)
        case Union(parts):
            return any(map(of, parts))
        case Intersection(parts):
            return all(map(of, parts))
        case Complement():
            return False
        case Scope(inside, place, otherwise):
            if oracle.applies(place, model, layer, head, "prefill"):
                return of(inside)
            return otherwise is not None and of(otherwise)
        case Stack(rules, default):
            for place, part in rules:
                if oracle.applies(place, model, layer, head, "prefill"):
                    return of(part)
            return of(default)
    raise AssertionError(recipe)


@dataclass(frozen=True)
class Prompts:
    """Where the prompts of one sample end, by document."""

    told: int | tuple[int, ...] | None
    tokens: int = FAR
    """Tokens that have come: none is seen that has not."""

    def end(self, document: int) -> int:
        told = self.told[document] if isinstance(self.told, tuple) else self.told
        return self.tokens if told is None else min(told, self.tokens)


def prompts(scene: Scene) -> list[Prompts]:
    """For every sample of :func:`oracle.slots`."""
    samples = len(oracle.slots(scene))
    match scene:
        case Contiguous(queries, _, offset, _, told, _):
            each = told if isinstance(told, tuple) else (told,) * samples
            return [Prompts(one, offset + queries) for one in each]
        case Padded(_, _, _, _, _, told, _) | Packed(_, told, _):
            return [Prompts(one) for one in (told if isinstance(told, tuple) else (told,) * samples)]
    return [Prompts(0)] * samples  # phases that are said query by query tell no prompt's end


def mask(recipe: Recipe, scene: Scene, model: Model, layer: int) -> oracle.Mask:
    """Which query sees which key, earlier and later."""

    def ahead(head: int, query: Slot, key: Slot, of: Prompts) -> bool:
        if query.position is None or key.position is None or query.document != key.document:
            return False
        if query.phase == "decode" or not query.position < key.position < of.end(query.document):
            return False
        return sees_ahead(recipe, model, layer, head, query.position, key.position)

    causal = oracle.mask(recipe, scene, model, layer)
    return [
        [
            [
                [seen or ahead(h, query, key, of) for seen, key in zip(row, keys, strict=True)]
                for row, query in zip(rows, queries, strict=True)
            ]
            for h, rows in enumerate(heads)
        ]
        for heads, (queries, keys), of in zip(causal, oracle.slots(scene), prompts(scene), strict=True)
    ]

"""What a composition means, read literally from its constructors: none of the library's algebra, none of its scopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swaa.policies import FullAttention, Predicate, parse_policy
from swaa.testing.reading import Reader

_EVERYTHING = FullAttention()
Selector = int | str | Sequence[int | str]


@dataclass(frozen=True)
class Either:
    """Visible where one of the parts is."""

    parts: tuple[Meaning, ...]


@dataclass(frozen=True)
class Both:
    """Visible where all parts are."""

    parts: tuple[Meaning, ...]


@dataclass(frozen=True)
class Not:
    """Visible where the part is not (and causality lets it)."""

    part: Meaning


@dataclass(frozen=True)
class At:
    """``inside`` where layer, head and phase are the chosen ones, ``otherwise`` elsewhere."""

    inside: Meaning
    layers: Any = None
    heads: Any = None
    phase: str | None = None
    otherwise: Meaning = _EVERYTHING


Meaning = Predicate | Either | Both | Not | At


@dataclass(frozen=True)
class Sizes:
    """Layers and query heads of the model that a policy is read for."""

    layers: int = 1
    heads: int = 1


@dataclass(frozen=True)
class Place:
    """One head of one layer in one phase."""

    layer: int
    head: int
    phase: str
    sizes: Sizes


def chosen(selector: Any, size: int) -> set[int]:
    """The indices that a selector names in a model of this size, by Python's own indexing."""
    everything = range(size)
    if isinstance(selector, int):
        return {everything[selector]} if -size <= selector < size else set()
    if isinstance(selector, str):
        found = set(everything)
        for part in selector.split("&"):
            numbers = [int(number) if number.strip() else None for number in part.split(":")]
            found &= chosen(numbers[0], size) if len(numbers) == 1 else set(everything[slice(*numbers)])
        return found
    return {index for item in selector for index in chosen(item, size)}


def table(meaning: Meaning, place: Place, length: int, reader: Reader) -> Tensor:
    """bool [length, length]: what the head sees at this place; ahead of a query only what looks ahead."""
    match meaning:
        case Either(parts):
            return torch.stack([table(part, place, length, reader) for part in parts]).any(0)
        case Both(parts):
            return torch.stack([table(part, place, length, reader) for part in parts]).all(0)
        case Not(part):
            return ~table(part, place, length, reader) & torch.ones(length, length, dtype=torch.bool).tril()
        case At(inside, layers, heads, phase, otherwise):
            holds = (
                (layers is None or place.layer in chosen(layers, place.sizes.layers))
                and (heads is None or place.head in chosen(heads, place.sizes.heads))
                and phase in (None, place.phase)
            )
            return table(inside if holds else otherwise, place, length, reader)
        case _:
            shown = reader.table(meaning, length)
            return shown if place.phase == "prefill" else shown.tril()


def from_dict(spec: Mapping[str, Any]) -> Meaning:
    """The meaning of a policy's dict form, which is the policy as its author would write it."""
    if "union" in spec:
        return Either(tuple(from_dict(part) for part in spec["union"]))
    if "intersection" in spec:
        return Both(tuple(from_dict(part) for part in spec["intersection"]))
    if "complement" in spec:
        return Not(from_dict(spec["complement"]))
    if "scope" in spec:
        otherwise = from_dict(spec["otherwise"]) if "otherwise" in spec else _EVERYTHING
        return _at(from_dict(spec["scope"]), spec, otherwise)
    if "stack" in spec:
        *rules, default = spec["stack"]
        rest = from_dict(default["rule"])
        for rule in reversed(rules):
            rest = _at(from_dict(rule["rule"]), rule, rest)
        return rest
    leaf = parse_policy(spec)
    assert isinstance(leaf, Predicate), spec
    return leaf


def _at(inside: Meaning, where: Mapping[str, Any], otherwise: Meaning) -> At:
    return At(inside, where.get("layers"), where.get("heads"), where.get("phase"), otherwise)


def predicates(meaning: Meaning) -> tuple[Predicate, ...]:
    """The predicates that it is made of, each once."""
    match meaning:
        case Either(parts) | Both(parts):
            found = [predicate for part in parts for predicate in predicates(part)]
        case Not(part):
            found = list(predicates(part))
        case At():
            found = [*predicates(meaning.inside), *predicates(meaning.otherwise)]
        case _:
            found = [meaning]
    return tuple(dict.fromkeys(found))


def rewritten(meaning: Meaning, **changes: Any) -> Meaning:
    """The same with every scope changed: what a mistaken reading would make of it."""
    match meaning:
        case Either(parts):
            return Either(tuple(rewritten(part, **changes) for part in parts))
        case Both(parts):
            return Both(tuple(rewritten(part, **changes) for part in parts))
        case Not(part):
            return Not(rewritten(part, **changes))
        case At():
            inside, otherwise = rewritten(meaning.inside, **changes), rewritten(meaning.otherwise, **changes)
            new = {name: change(meaning) if callable(change) else change for name, change in changes.items()}
            return replace(meaning, **({"inside": inside, "otherwise": otherwise} | new))
        case _:
            return meaning

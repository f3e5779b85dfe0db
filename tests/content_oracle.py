"""What a choice of blocks by content means, in loops over ints, lists and floats. Nothing here imports swaa.

Block ``b`` of a document holds its tokens at positions ``b * size`` to ``b * size + size - 1``. A query sees its own
block, and the ``number`` earlier ones whose mean key has the largest product with it; of equal ones the earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

import oracle
from oracle import Atom, Complement, Intersection, Mask, Model, Recipe, Scope, Slot, Stack, Union

NAME = "TopBlocks"
EVERYTHING, NOTHING = Atom("FullAttention"), Complement(Atom("FullAttention"))
Vector = list[float]


def block_means(keys: Sequence[Slot], vectors: Sequence[Vector], size: int) -> dict[tuple[int, int], list[Vector]]:
    """The keys of each block of each document, and behind them, where the block is whole, their mean."""
    members: dict[tuple[int, int], list[Vector]] = {}
    for key, vector in zip(keys, vectors, strict=True):
        if key.position is not None:
            members.setdefault((key.document, key.position // size), []).append(vector)
    for block in members.values():
        if len(block) == size:
            block.append([sum(values) / size for values in zip(*block, strict=True)])
    return members


def top_blocks(
    query: Slot, vector: Vector, means: dict[tuple[int, int], list[Vector]], size: int, number: int
) -> set[int]:
    """The blocks of its own document that a query chooses, its own block among them."""
    assert query.position is not None
    own = query.position // size
    scored = []
    for block in range(own):
        *members, mean = means[query.document, block]
        assert len(members) == size
        scored.append((-sum(a * b for a, b in zip(vector, mean, strict=True)), block))
    return {own} | {block for _, block in sorted(scored)[:number]}


def atoms(recipe: Recipe) -> Iterator[tuple[int, ...]]:
    """The parameters of every choice by content in a recipe."""
    match recipe:
        case Atom(name, args):
            if name == NAME:
                yield args
        case Union(parts) | Intersection(parts):
            for part in parts:
                yield from atoms(part)
        case Complement(part):
            yield from atoms(part)
        case Scope(inside, _, otherwise):
            yield from atoms(inside)
            yield from () if otherwise is None else atoms(otherwise)
        case Stack(rules, default):
            for _, part in rules:
                yield from atoms(part)
            yield from atoms(default)


def resolved(recipe: Recipe, truth: dict[tuple[int, ...], bool]) -> Recipe:
    """The recipe for one pair, for which it is known what every choice by content says."""

    def of(part: Recipe) -> Recipe:
        return resolved(part, truth)

    match recipe:
        case Atom(name, args):
            return recipe if name != NAME else EVERYTHING if truth[args] else NOTHING
        case Union(parts):
            return Union(tuple(map(of, parts)))
        case Intersection(parts):
            return Intersection(tuple(map(of, parts)))
        case Complement(part):
            return Complement(of(part))
        case Scope(inside, place, otherwise):
            return Scope(of(inside), place, None if otherwise is None else of(otherwise))
        case Stack(rules, default):
            return Stack(tuple((place, of(part)) for place, part in rules), of(default))
    raise AssertionError(recipe)


def mask(recipe: Recipe, scene: oracle.Scene, model: Model, layer: int, query_BHQD: Tensor, key_BGKD: Tensor) -> Mask:
    """Which query sees which key, for these queries and keys."""
    samples = oracle.slots(scene)
    group = query_BHQD.shape[1] // key_BGKD.shape[1]
    wanted = set(atoms(recipe))
    result: Mask = []
    for b in range(len(query_BHQD)):
        queries, keys = samples[b if len(samples) > 1 else 0]
        result.append([])
        for head in range(model.heads):
            vectors = key_BGKD[b, head // group].tolist()
            means = {args: block_means(keys, vectors, args[0]) for args in wanted}
            rows = []
            for slot, query in enumerate(queries):
                if query.position is None:
                    rows.append([False] * len(keys))
                    continue
                vector = query_BHQD[b, head, slot].tolist()
                blocks = {args: top_blocks(query, vector, means[args], *args) for args in wanted}
                rows.append([_sees(recipe, model, layer, head, query, key, blocks) for key in keys])
            result[-1].append(rows)
    return result


def _sees(
    recipe: Recipe,
    model: Model,
    layer: int,
    head: int,
    query: Slot,
    key: Slot,
    blocks: dict[tuple[int, ...], set[int]],
) -> bool:
    if key.position is None or query.position is None or key.document != query.document:
        return False
    if key.position > query.position:
        return False
    truth = {args: key.position // args[0] in chosen for args, chosen in blocks.items()}
    return oracle.sees(resolved(recipe, truth), model, layer, head, query.phase, query.position, key.position)

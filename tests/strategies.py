"""Random policies and layouts: hypothesis strategies for the oracle's recipes and scenes, and swaa's side of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import event, reject
from hypothesis import strategies as st

import oracle
import swaa
from oracle import (
    Atom,
    Complement,
    Contiguous,
    Intersection,
    Model,
    Packed,
    Padded,
    Place,
    Scope,
    Stack,
    Turns,
    Union,
)
from swaa.compiler.layout import TokenLayout
from swaa.policies import AttentionPolicy, Index, LayerPolicy, Predicate, bind

# ------------------------------------------------------------------- predicates that exercise every operation


class _OfTests(Predicate):
    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


@dataclass(frozen=True, repr=False)
class Chunked(_OfTests):
    size: int

    def visible(self, q: Index, k: Index) -> Index:
        return q // self.size == k // self.size


@dataclass(frozen=True, repr=False)
class Dilated(_OfTests):
    step: int

    def visible(self, q: Index, k: Index) -> Index:
        return (q - k) % self.step == 0


@dataclass(frozen=True, repr=False)
class Striped(_OfTests):
    period: int
    width: int

    def visible(self, q: Index, k: Index) -> Index:
        return k % self.period < self.width


@dataclass(frozen=True, repr=False)
class Corner(_OfTests):
    first: int
    last: int

    def visible(self, q: Index, k: Index) -> Index:
        return (q < self.first) ^ (self.last > k)


@dataclass(frozen=True, repr=False)
class Slanted(_OfTests):
    reach: int

    def visible(self, q: Index, k: Index) -> Index:
        return abs(-q + 2 * k) <= self.reach


OF_TESTS = (Chunked, Dilated, Striped, Corner, Slanted)
CLASSES = {kind.__name__: kind for kind in (swaa.FullAttention, swaa.SlidingWindow, swaa.SinkTokens, *OF_TESTS)}

# -------------------------------------------------------------------------------------------- from data to swaa


def build(recipe: oracle.Recipe) -> AttentionPolicy:
    """The policy of a recipe, through swaa's public names."""
    match recipe:
        case Atom(name, args):
            return CLASSES[name](*args)
        case Union(parts):
            result = build(parts[0])
            for part in parts[1:]:
                result = result | build(part)
            return result
        case Intersection(parts):
            result = build(parts[0])
            for part in parts[1:]:
                result = result & build(part)
            return result
        case Complement(part):
            return ~build(part)
        case Scope(inside, place, otherwise):
            result, rest = build(inside), None if otherwise is None else build(otherwise)
            if place.layers is not None:
                result = result.on_layers(place.layers, otherwise=rest)
            if place.heads is not None:
                result = result.on_heads(place.heads, otherwise=rest)
            if place.phase is not None:
                result = result.in_phase(place.phase, otherwise=rest)
            return result
        case Stack(rules, default):
            listed = [swaa.rule(build(part), **vars(place)) for place, part in rules]
            return swaa.stack(*listed, swaa.rule(build(default)))
    raise AssertionError(recipe)


def bound_layer(recipe: oracle.Recipe, model: Model, layer: int) -> LayerPolicy:
    """The recipe's policy in one layer. A policy that leaves a part unused is refused by design: drawn anew."""
    try:
        return bind(build(recipe), model.layers, model.heads).layers[layer]
    except swaa.UserError as error:
        if "chooses no" not in str(error):
            raise
        event("refused: a part that no layer or head falls to")
        reject()


def layout_of(scene: oracle.Scene) -> TokenLayout:
    """The layout of a scene, through swaa's constructors."""
    if isinstance(scene, Turns):
        layout = layout_of(scene.scene).with_decodes(torch.tensor(scene.decodes))
        return layout.pad_to(layout.query_length + scene.extra[0], layout.key_length + scene.extra[1])
    prompts = scene.prompts
    if isinstance(prompts, tuple):
        columns = max((len(row) for row in prompts if isinstance(row, tuple)), default=0)
        rows = [(*row, *[0] * (columns - len(row))) if isinstance(row, tuple) else row for row in prompts]
        prompts = torch.tensor(rows)
    match scene:
        case Contiguous():
            layout = TokenLayout.contiguous(
                scene.queries, scene.keys, offset=scene.offset, key_offset=scene.key_offset, prompt_lengths=prompts
            )
        case Padded():
            layout = TokenLayout.padded(
                torch.tensor(scene.real),
                scene.queries,
                scene.keys,
                offset=scene.offset,
                key_offset=scene.key_offset,
                prompt_lengths=prompts,
            )
        case Packed():
            positions = torch.tensor([[i for length in row for i in range(length)] for row in scene.documents])
            layout = TokenLayout.packed(positions, prompt_lengths=prompts)
    return layout.pad_to(layout.query_length + scene.extra[0], layout.key_length + scene.extra[1])


# ---------------------------------------------------------------------------------------------------- drawing

_SMALL = st.integers(1, 12)
ZOO_ATOMS = st.one_of(
    st.builds(Atom, st.just("FullAttention")),
    st.builds(Atom, st.just("SlidingWindow"), st.tuples(_SMALL)),
    st.builds(Atom, st.just("SinkTokens"), st.tuples(_SMALL)),
)
ALL_ATOMS = st.one_of(
    ZOO_ATOMS,
    st.builds(Atom, st.sampled_from(("Chunked", "Dilated")), st.tuples(_SMALL)),
    st.builds(Atom, st.just("Striped"), st.tuples(_SMALL, st.integers(0, 6))),
    st.builds(Atom, st.just("Corner"), st.tuples(st.integers(0, 20), st.integers(0, 20))),
    st.builds(Atom, st.just("Slanted"), st.tuples(st.integers(0, 9))),
)
PHASES = st.sampled_from(("prefill", "decode"))


# hypothesis checks each new strategy object, which costs more than drawing from it: so all are kept.
@functools.cache
def _or_none(least: int, most: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(least, most)


@functools.cache
@st.composite
def slices(draw: st.DrawFn, size: int) -> str:
    """A slice as text, with bounds that exist at this size."""
    bound = _or_none(-size, size)
    start, stop, step = draw(bound), draw(bound), draw(_or_none(1, 4))
    text = f"{'' if start is None else start}:{'' if stop is None else stop}"
    return text if step is None else f"{text}:{step}"


@functools.cache
def any_selectors(size: int) -> st.SearchStrategy[oracle.Selector]:
    """Ints, slices, intersections of these, and lists; some choose nothing at this size."""
    one = st.integers(-size, size - 1)
    term = st.one_of(one, slices(size), st.lists(slices(size) | one.map(str), min_size=2, max_size=3).map(" & ".join))
    return st.one_of(term, st.lists(term, min_size=1, max_size=3).map(tuple))


@functools.cache
def selectors(size: int) -> st.SearchStrategy[oracle.Selector]:
    """Those that choose something at this size."""
    return any_selectors(size).filter(lambda selector: oracle.chosen(selector, size))


_SCOPED = st.sampled_from([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 1, 1)])


@functools.cache
@st.composite
def places(draw: st.DrawFn, model: Model) -> Place:
    """At least one of layers, phase and heads."""
    layers, phase, heads = draw(_SCOPED)
    return Place(
        draw(selectors(model.layers)) if layers else None,
        draw(PHASES) if phase else None,
        draw(selectors(model.heads)) if heads else None,
    )


@functools.cache
def recipes(
    model: Model, atoms: st.SearchStrategy[Atom] = ALL_ATOMS, max_leaves: int = 6
) -> st.SearchStrategy[oracle.Recipe]:
    """Policies put together in every way that the algebra has."""

    def compose(inner: st.SearchStrategy[oracle.Recipe]) -> st.SearchStrategy[oracle.Recipe]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        rules = st.lists(st.tuples(places(model), inner), min_size=1, max_size=3).map(tuple)
        return st.one_of(
            st.builds(Union, several),
            st.builds(Intersection, several),
            st.builds(Complement, inner),
            st.builds(Scope, inner, places(model), st.none() | inner),
            st.builds(Stack, rules, inner),
        )

    return st.recursive(atoms, compose, max_leaves=max_leaves)


@functools.cache
def _prompts(batch: int, longest: int) -> st.SearchStrategy[int | tuple[int, ...] | None]:
    length = st.integers(0, longest)
    return st.one_of(st.none(), length, st.lists(length, min_size=batch, max_size=batch).map(tuple))


@functools.cache
@st.composite
def contiguous(draw: st.DrawFn, longest: int) -> Contiguous:
    """Prefill, a chunk of one, cached decode, or keys that begin late (an evicted cache's tail)."""
    queries = draw(st.integers(1, longest))
    offset = draw(st.sampled_from((0, 0, 1, 5, 13)))
    key_offset = draw(st.integers(0, offset)) if draw(st.booleans()) else 0
    keys = draw(st.one_of(st.just(offset + queries - key_offset), st.integers(1, longest)))
    prompts = draw(_prompts(draw(st.integers(1, 3)), offset + queries))
    return Contiguous(queries, keys, offset, key_offset, prompts)


@functools.cache
@st.composite
def padded(draw: st.DrawFn, longest: int) -> Padded:
    """Left, right, both or no padding, mixed in one batch, now and then with holes; whole, a chunk, or one query."""
    length = draw(st.integers(1, longest))
    batch = draw(st.integers(1, 3))
    rows = []
    for _ in range(batch):
        left = draw(st.integers(0, length))
        right = draw(st.integers(0, length - left))
        kind = draw(st.sampled_from(("left", "right", "both", "none", "holes")))
        if kind == "holes":
            rows.append(tuple(draw(st.lists(st.booleans(), min_size=length, max_size=length))))
            continue
        left, right = left * (kind in ("left", "both")), right * (kind in ("right", "both"))
        rows.append(tuple(left <= i < length - right for i in range(length)))
    prompts = draw(_prompts(batch, length))
    if draw(st.booleans()):
        return Padded(tuple(rows), prompts=prompts)
    queries = draw(st.integers(1, length))
    if draw(st.booleans()):  # the last slots: a cached chunk
        return Padded(tuple(rows), queries, prompts=prompts)
    keys = draw(st.integers(1, length + 4))  # a static cache is longer than the tokens so far
    offset, key_offset = draw(st.integers(0, length - queries)), draw(st.integers(0, length // 2))
    return Padded(tuple(rows), queries, keys, offset, key_offset, prompts)


@functools.cache
@st.composite
def packed(draw: st.DrawFn, longest: int) -> Packed:
    """Rows of documents, with prompt lengths for none, all, each row or each document."""
    length = draw(st.integers(1, longest))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        ends = sorted({*draw(st.lists(st.integers(1, length), max_size=3)), length})
        rows.append(tuple(end - start for start, end in zip([0, *ends], ends, strict=False)))
    if draw(st.booleans()):
        return Packed(tuple(rows), draw(_prompts(len(rows), length)))
    return Packed(tuple(rows), tuple(tuple(draw(st.integers(0, size)) for size in row) for row in rows))


@functools.cache
def _any_scene(longest: int, *more: st.SearchStrategy[Turns]) -> st.SearchStrategy[oracle.Scene]:
    return st.one_of(contiguous(longest), padded(longest), packed(longest), *more)


@functools.cache
@st.composite
def turns(draw: st.DrawFn, longest: int) -> Turns:
    """Any of these scenes, with phases that change wherever they like, alike in all samples or not."""
    scene = replace(draw(_any_scene(longest)), prompts=None)
    samples = oracle.slots(scene)
    length = len(samples[0][0])
    rows = []
    for _ in range(draw(st.sampled_from((1, len(samples) if len(samples) > 1 else 3)))):
        changes, phase = draw(st.sets(st.integers(0, length - 1), max_size=6)), False
        row = []
        for slot in range(length):
            phase ^= slot in changes
            row.append(phase)
        rows.append(tuple(row))
    return Turns(scene, tuple(rows))


@functools.cache
@st.composite
def scenes(draw: st.DrawFn, longest: int = 22) -> oracle.Scene:
    """Token layouts of all kinds; one in four with empty slots added behind, as bucketed lengths have them."""
    scene = draw(_any_scene(longest, turns(longest)))
    if draw(st.integers(0, 3)):
        return scene
    extra = (draw(st.integers(0, 5)), draw(st.integers(0, 5)))
    return type(scene)(**{**vars(scene), "extra": extra})


BLOCK_SIZES = st.sampled_from(((4, 4), (8, 8), (16, 16), (4, 8), (16, 4), (6, 10)))


@dataclass(frozen=True)
class Case:
    """One layer of a random policy on a random layout."""

    recipe: oracle.Recipe
    scene: oracle.Scene
    model: Model
    layer: int
    kv_heads: int
    block_size: tuple[int, int]
    seed: int

    def tensors(self, head_dim: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [B, H, Q, D], keys and values [B, G, K, D]; two samples where the layout is one for all."""
        samples = oracle.slots(self.scene)
        batch = len(samples) if len(samples) > 1 else 1 + self.seed % 2
        queries, keys = (len(side) for side in samples[0])
        random = torch.Generator().manual_seed(self.seed)

        def draw(heads: int, length: int) -> torch.Tensor:
            return torch.randn(batch, heads, length, head_dim, generator=random)

        return draw(self.model.heads, queries), draw(self.kv_heads, keys), draw(self.kv_heads, keys)


@st.composite
def cases(draw: st.DrawFn, atoms: st.SearchStrategy[Atom] = ALL_ATOMS, longest: int = 22) -> Case:
    """A composition, a layout, and one of the model's layers."""
    model = Model(draw(st.integers(1, 6)), draw(st.sampled_from((1, 2, 4))))
    return Case(
        draw(recipes(model, atoms)),
        draw(scenes(longest)),
        model,
        draw(st.integers(0, model.layers - 1)),
        draw(st.sampled_from([kv for kv in (1, 2, 4) if model.heads % kv == 0])),
        draw(BLOCK_SIZES),
        draw(st.integers(0, 1 << 16)),
    )

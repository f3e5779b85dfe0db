"""The independent reference: policies, layouts, masks and attention as plain loops over ints.

Nothing here imports swaa. A test draws a *recipe* (how a policy is put together) and a *scene* (how tokens are laid
out) as plain data, builds the real thing from them through swaa's public names (``strategies.py``), and compares it
with what these loops say of the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# ---------------------------------------------------------------------------------------------------- recipes

Selector = int | str | tuple[int | str, ...] | None


@dataclass(frozen=True)
class Atom:
    """One predicate by name, with its parameters."""

    name: str
    args: tuple[int, ...] = ()


@dataclass(frozen=True)
class Union:
    parts: tuple[Recipe, ...]


@dataclass(frozen=True)
class Intersection:
    parts: tuple[Recipe, ...]


@dataclass(frozen=True)
class Complement:
    part: Recipe


@dataclass(frozen=True)
class Place:
    """Layers, phase and heads; None stands for all."""

    layers: Selector = None
    phase: str | None = None
    heads: Selector = None


@dataclass(frozen=True)
class Scope:
    """``inside`` at the place; elsewhere ``otherwise``, or full attention."""

    inside: Recipe
    place: Place
    otherwise: Recipe | None = None


@dataclass(frozen=True)
class Stack:
    """First match wins, then the default."""

    rules: tuple[tuple[Place, Recipe], ...]
    default: Recipe


Recipe = Atom | Union | Intersection | Complement | Scope | Stack

# What each predicate means, for a key that is not after the query. The zoo first, then those of strategies.py.
ATOMS: dict[str, Callable[..., bool]] = {
    "FullAttention": lambda q, k: True,
    "SlidingWindow": lambda q, k, size: k in range(q - size + 1, q + 1),
    "SinkTokens": lambda q, k, count: k in range(count),
    "BidirectionalPrefix": lambda q, k, count: {q, k} <= set(range(count)),
    "BidirectionalPrompt": lambda q, k: True,
    "Chunked": lambda q, k, size: any(q in chunk and k in chunk for chunk in _chunks(q, size)),
    "Dilated": lambda q, k, step: k in range(q, -1, -step),
    "Striped": lambda q, k, period, width: k - period * (k // period) < width,
    "Corner": lambda q, k, first, last: (q < first) != (k < last),
    "Slanted": lambda q, k, reach: -reach <= 2 * k - q <= reach,
}


def _chunks(last: int, size: int) -> Iterator[range]:
    for start in range(0, last + 1, size):
        yield range(start, start + size)


def chosen(selector: Selector, size: int) -> set[int]:
    """The indices of a model with ``size`` layers that a selector names, by Python's own indexing of a list."""
    everything = list(range(size))
    if selector is None:
        return set(everything)
    if isinstance(selector, tuple):
        return {index for item in selector for index in chosen(item, size)}
    if isinstance(selector, int):
        return {everything[selector]} if -size <= selector < size else set()
    if "," in selector:
        return chosen(tuple(selector.split(",")), size)
    found = set(everything)
    for part in selector.split("&"):
        if ":" in part:
            found &= set(everything[slice(*(int(number) if number.strip() else None for number in part.split(":")))])
        else:
            found &= chosen(int(part), size)
    return found


@dataclass(frozen=True)
class Model:
    """The sizes that selectors refer to."""

    layers: int
    heads: int


def applies(place: Place, model: Model, layer: int, head: int, phase: str) -> bool:
    """Does the place hold for this layer, head and phase?"""
    return (
        layer in chosen(place.layers, model.layers)
        and head in chosen(place.heads, model.heads)
        and place.phase in (None, phase)
    )


def sees(recipe: Recipe, model: Model, layer: int, head: int, phase: str, q: int, k: int) -> bool:
    """May the query at logical position q see the key at k? The recipe read literally, from the outside in."""

    def of(part: Recipe) -> bool:
        return sees(part, model, layer, head, phase, q, k)

    if k > q:
        return False
    match recipe:
        case Atom(name, args):
            return ATOMS[name](q, k, *args)
        case Union(parts):
            return any(of(part) for part in parts)
        case Intersection(parts):
            return all(of(part) for part in parts)
        case Complement(part):
            return not of(part)
        case Scope(inside, place, otherwise):
            if applies(place, model, layer, head, phase):
                return of(inside)
            return True if otherwise is None else of(otherwise)
        case Stack(rules, default):
            for place, part in rules:
                if applies(place, model, layer, head, phase):
                    return of(part)
            return of(default)
    raise AssertionError(recipe)


# ----------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Slot:
    """One slot of the tensors: its token's logical position (None: no token), document and, of a query, phase."""

    position: int | None
    document: int = 0
    phase: str = "prefill"


@dataclass(frozen=True)
class Contiguous:
    """No padding. ``prompts`` holds one prompt length for all, one per sample, or is None (all is prefill)."""

    queries: int
    keys: int
    offset: int = 0
    key_offset: int = 0
    prompts: int | tuple[int, ...] | None = None
    extra: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Padded:
    """``real[b][s]`` tells where sample b has a token; queries and keys are runs of these slots."""

    real: tuple[tuple[bool, ...], ...]
    queries: int | None = None
    keys: int | None = None
    offset: int | None = None
    key_offset: int = 0
    prompts: int | tuple[int, ...] | None = None
    extra: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Packed:
    """``documents[b]`` lists the lengths of the documents of row b; prompts may be given for each of them."""

    documents: tuple[tuple[int, ...], ...]
    prompts: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    extra: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Turns:
    """A scene without prompts; ``decodes`` tells the phase of each query slot, one row for all samples or one each."""

    scene: Contiguous | Padded | Packed
    decodes: tuple[tuple[bool, ...], ...]
    extra: tuple[int, int] = (0, 0)


Scene = Contiguous | Padded | Packed | Turns


def slots(scene: Scene) -> list[tuple[list[Slot], list[Slot]]]:
    """The query and key slots of every sample."""
    samples = list(_samples(scene))
    empty_q, empty_k = [Slot(None)] * scene.extra[0], [Slot(None)] * scene.extra[1]
    return [(queries + empty_q, keys + empty_k) for queries, keys in samples]


def _samples(scene: Scene) -> Iterator[tuple[list[Slot], list[Slot]]]:
    match scene:
        case Contiguous(queries, keys, offset, key_offset, prompts, _):
            for prompt in prompts if isinstance(prompts, tuple) else (prompts,):
                yield (
                    [Slot(i, 0, _phase(i, prompt)) for i in range(offset, offset + queries)],
                    [Slot(i) for i in range(key_offset, key_offset + keys)],
                )
        case Padded(real, queries, keys, offset, key_offset, prompts, _):
            for b, row in enumerate(real):
                prompt = prompts[b] if isinstance(prompts, tuple) else prompts
                line, seen = [], 0
                for is_token in row:
                    line.append(Slot(seen, 0, _phase(seen, prompt)) if is_token else Slot(None))
                    seen += is_token
                last = len(row) if keys is None else key_offset + keys
                first = offset if offset is not None else len(row) - (len(row) if queries is None else queries)
                count = len(row) if queries is None else queries
                line += [Slot(None)] * (max(first + count, last) - len(row))
                yield line[first : first + count], line[key_offset:last]
        case Packed(documents, prompts, _):
            for b, row in enumerate(documents):
                line = []
                for d, length in enumerate(row):
                    prompt = prompts[b] if isinstance(prompts, tuple) else prompts
                    prompt = prompt[d] if isinstance(prompt, tuple) else prompt
                    line += [Slot(i, d, _phase(i, prompt)) for i in range(length)]
                yield line, line
        case Turns(inner, decodes, _):
            samples = list(_samples(inner))
            for b in range(max(len(samples), len(decodes))):
                queries, keys = samples[b if len(samples) > 1 else 0]
                phases = ["decode" if flag else "prefill" for flag in decodes[b if len(decodes) > 1 else 0]]
                yield [Slot(q.position, q.document, phase) for q, phase in zip(queries, phases, strict=True)], keys


def _phase(position: int, prompt: int | None) -> str:
    return "decode" if prompt is not None and position >= prompt else "prefill"


# --------------------------------------------------------------------------------- masks, blocks and attention

Mask = list[list[list[list[bool]]]]  # [sample][head][query][key]


def mask(recipe: Recipe, scene: Scene, model: Model, layer: int) -> Mask:
    """Which query sees which key."""
    known: dict[tuple[int, str, int, int], bool] = {}

    def visible(head: int, query: Slot, key: Slot) -> bool:
        if query.position is None or key.position is None or query.document != key.document:
            return False
        case = (head, query.phase, query.position, key.position)
        if case not in known:
            known[case] = sees(recipe, model, layer, *case)
        return known[case]

    return [
        [[[visible(head, query, key) for key in keys] for query in queries] for head in range(model.heads)]
        for queries, keys in slots(scene)
    ]


def blocks(rows: list[list[bool]], height: int, width: int) -> Iterator[tuple[int, int, bool, bool]]:
    """For each block of one mask: *(row, column, is a pair visible, is it whole and every pair visible)*."""
    for top in range(0, len(rows), height):
        for left in range(0, len(rows[0]), width):
            inside = [value for row in rows[top : top + height] for value in row[left : left + width]]
            yield top // height, left // width, any(inside), all(inside) and len(inside) == height * width


def attention(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    mask_BHQK: Mask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Sequence[float] | None = None,
) -> Tensor:
    """One row at a time, over its visible keys only: no masking, so nothing to mask wrongly. Differentiable."""
    batch, heads, queries, size = query_BHQD.shape
    group = heads // key_BGKD.shape[1]
    scale = size**-0.5 if scale is None else scale
    out = []
    for b in range(batch):
        mask_HQK = mask_BHQK[b if len(mask_BHQK) > 1 else 0]
        for h in range(heads):
            keys_KD, values_KD = key_BGKD[b, h // group], value_BGKD[b, h // group]
            for q in range(queries):
                seen = [k for k, visible in enumerate(mask_HQK[h][q]) if visible]
                if not seen:
                    out.append(torch.zeros_like(values_KD[0]))
                    continue
                scores = (keys_KD[seen] @ query_BHQD[b, h, q]) * scale
                if softcap is not None:
                    scores = torch.tanh(scores / softcap) * softcap
                weights = torch.exp(scores - scores.max().detach())
                total = weights.sum()
                if sink_logits is not None:
                    total = total + torch.exp(torch.tensor(sink_logits[h]) - scores.max().detach())
                out.append((weights / total) @ values_KD[seen])
    return torch.stack(out).view(batch, heads, queries, -1)


# -------------------------------------------------------------------------------------------------- retention


def is_live(
    recipe: Recipe,
    model: Model,
    layer: int,
    head: int,
    key: int,
    next_position: int,
    prompt: int | None,
    horizon: int,
) -> bool:
    """Does some query from ``next_position`` up to ``horizon`` see the key?"""
    return any(
        sees(recipe, model, layer, head, _phase(q, 0 if prompt is None else prompt), q, key)
        for q in range(next_position, horizon)
    )

"""Which keys a cache must still hold, by loops over ints, and what a cache of policy layers does hold.

Nothing here asks swaa which keys are live: a composition's ``meaning`` is tried on every later query, one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf.reference import SIX, At, Composition, Mutation
from swaa import FullAttention, SinkTokens, SlidingWindow, rule, stack

HORIZON, LAST = 40, 100
"""So many later queries are tried at least, up to position ``LAST``; every window of the compositions is at most 7."""

HEADS = 4
"""Query heads of the models in :mod:`hf.zoo`."""


def _layers_differ(at: At) -> bool:
    if at.layer == 0:
        return at.decodes or at.window(5) or at.sinks(1)
    return at.window(3) or at.sinks(2) if at.layer == 1 else at.window(6)


def _decode_windows(at: At) -> bool:
    return at.window(7) or at.sinks(1) if at.head >= 2 else not at.decodes or at.window(4)


LAYERS_DIFFER = Composition(
    "fa_decode_in_one_of_three_windows",
    stack(
        rule(FullAttention(), phase="decode", layers=0),
        rule(SlidingWindow(5) | SinkTokens(1), layers=0),
        rule(SlidingWindow(3) | SinkTokens(2), layers=1),
        rule(SlidingWindow(6)),
    ),
    _layers_differ,
    by_phase=True,
)
DECODE_WINDOWS = Composition(
    "decode_window_in_half_the_heads",
    stack(
        rule(SlidingWindow(7) | SinkTokens(1), heads="2:"),
        rule(SlidingWindow(4), phase="decode"),
        rule(FullAttention()),
    ),
    _decode_windows,
    by_phase=True,
)
EIGHT = (*SIX, LAYERS_DIFFER, DECODE_WINDOWS)
BY_NAME = {composition.name: composition for composition in EIGHT}


def sees(composition: Composition, layer: int, heads: tuple[int, ...], q: int, k: int, prompt: int) -> bool:
    """Does the query at position q of one of these heads see the key?"""
    return k <= q and any(composition.meaning(At(q, k, layer, head, q >= prompt, Mutation())) for head in heads)


@cache
def last_query(composition: Composition, layer: int, heads: tuple[int, ...], key: int, prompt: int) -> int:
    """The last position whose query sees the key in one of these heads."""
    return max(q for q in range(key, LAST) if q == key or sees(composition, layer, heads, q, key, prompt))


@cache
def live(composition: Composition, layer: int, heads: tuple[int, ...], following: int, prompt: int) -> tuple[int, ...]:
    """The positions before ``following`` that some query from there on sees, in one of these heads."""
    assert max(following, prompt) + HORIZON <= LAST
    return tuple(key for key in range(following) if last_query(composition, layer, heads, key, prompt) >= following)


def keeps_all(composition: Composition, layer: int, heads: tuple[int, ...]) -> bool:
    """Is every token seen for ever?"""
    return live(composition, layer, heads, 60, 10) == tuple(range(60))


SPARE = 20
"""Empty slots that a layer may have ready where every token needs one."""


def heads_of(kv_head: int, kv_heads: int) -> tuple[int, ...]:
    """The query heads that read this KV head."""
    per_group = HEADS // kv_heads
    return tuple(range(kv_head * per_group, (kv_head + 1) * per_group))


@dataclass(frozen=True)
class Held:
    """One KV head of one layer of a cache, as it is stored."""

    positions: Tensor  # int64 [B, C], -1 where a slot holds nothing
    keys: Tensor  # [B, C, D]
    values: Tensor  # [B, C, D]

    @property
    def capacity(self) -> int:
        return self.positions.shape[-1]

    def of_row(self, row: int) -> list[int]:
        """The positions held for one sample, in order."""
        return sorted(position for position in self.positions[row].tolist() if position >= 0)


def held(cache: Any) -> list[list[Held]]:
    """By layer and KV head, what a cache holds; its parts are checked on the way."""
    layers = []
    for layer in cache.layers:
        of_head: dict[int, Held] = {}
        for part in layer.parts:
            batch, heads, capacity, _ = part.keys.shape
            assert part.values.shape[:3] == (batch, heads, capacity)
            assert heads == len(part.kv_heads)
            assert part.positions.shape in ((batch, capacity), (1, capacity))
            assert part.positions.dtype == torch.int64
            assert part.positions.device.type == "cpu"
            assert int(part.positions.min() if capacity else -1) >= -1
            positions = part.positions.expand(batch, -1)
            for index, kv_head in enumerate(part.kv_heads):
                assert kv_head not in of_head, "two parts hold the same head"
                of_head[kv_head] = Held(positions, part.keys[:, index], part.values[:, index])
        assert sorted(of_head) == list(range(len(of_head))), "some head is in no part"
        layers.append([of_head[kv_head] for kv_head in sorted(of_head)])
    return layers


def storage_bytes(cache: Any) -> int:
    """Bytes of the memory behind a cache's keys and values, however little of it they show."""
    tensors = [
        tensor
        for layer in cache.layers
        for part in getattr(layer, "parts", [layer])
        for tensor in (part.keys, part.values)
        if tensor is not None
    ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())

"""Masks that a model brings along (a native window, native chunks), as predicates that a policy is intersected with.

A policy restricts the attention that the model was trained with; where that is itself a window, both hold. These
predicates are the model's, not the user's, so they are not in the registry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from swaa.policies import HeadPolicy, LayerPolicy, Predicate, SlidingWindow
from swaa.policies.base import Index
from swaa.policies.boolean import literal


@dataclass(frozen=True, repr=False)
class NativeChunk(Predicate):
    """A query sees the tokens of its own chunk: visible iff ``q // chunk_size == k // chunk_size`` (Llama 4)."""

    chunk_size: int

    def __post_init__(self) -> None:
        self.require_int("chunk_size", at_least=1)

    def visible(self, q: Index, k: Index) -> Index:
        return q // self.chunk_size == k // self.chunk_size

    @classmethod
    def examples(cls) -> Sequence[NativeChunk]:
        return (cls(4),)


@lru_cache(maxsize=1024)
def restrict(layer: LayerPolicy, native: Predicate | None) -> LayerPolicy:
    """The layer's policy, intersected with what the model shows natively."""
    if native is None:
        return layer
    also = literal(native)
    merged: dict[HeadPolicy, tuple[int, ...]] = {}
    for heads, head in layer.groups:
        both = HeadPolicy(head.prefill & also, head.decode & also)
        merged[both] = tuple(sorted((*merged.get(both, ()), *heads)))
    groups = tuple((heads, head) for head, heads in merged.items())
    return dataclasses.replace(layer, groups=groups)


def native_predicate(window: int | None, chunk: int | None) -> Predicate | None:
    """The predicate of a native window or chunk size, in tokens; None or 0 (so Qwen2-MoE's config) stand for none."""
    if chunk:
        return NativeChunk(chunk)
    return SlidingWindow(window) if window else None

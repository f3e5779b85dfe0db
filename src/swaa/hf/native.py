"""Masks that a model brings along (a native window, native chunks), as predicates that a policy is intersected with.

A policy restricts the attention that the model was trained with; where that is itself a window, both hold.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

from swaa.errors import UserError
from swaa.policies import ChunkedAttention, HeadPolicy, LayerPolicy, Predicate, SlidingWindow
from swaa.policies.boolean import literal


@lru_cache(maxsize=1024)
def restrict(layer: LayerPolicy, native: Predicate | None) -> LayerPolicy:
    """The layer's policy, intersected with what the model shows natively."""
    if native is None:
        return layer
    if layer.looks_ahead:
        raise UserError(
            f"{layer.describe('prefill')}: the policy looks ahead, and a layer of the model has a causal window or "
            f"chunks of its own ({native!r}), which would hide what lies ahead. Use a model of full attention, or "
            f"leave these layers out with on_layers."
        )
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
        return ChunkedAttention(chunk)
    return SlidingWindow(window) if window else None

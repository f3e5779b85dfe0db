"""Splitting a layer by key-value heads: those of a slice keep the same keys, for as long as any query needs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from swaa.policies.bound import HeadPolicy, LayerPolicy


@dataclass(frozen=True)
class HeadSlice:
    """Key-value heads whose query heads, together, follow the same policies.

    Attributes:
        kv_heads: indices of the key-value heads, ascending.
        query_heads: indices of the query heads that read them, ascending.
        policy: what these query heads see, counted anew from 0.
    """

    kv_heads: tuple[int, ...]
    query_heads: tuple[int, ...]
    policy: LayerPolicy


@lru_cache(maxsize=1024)
def slices_of(layer: LayerPolicy, num_kv_heads: int) -> tuple[HeadSlice, ...]:
    """The slices of a layer with grouped queries; one where heads do not differ.

    A key-value head must keep what any query head of its group may see, so it goes by the *set* of their policies.
    """
    per_group = layer.num_heads // num_kv_heads
    policy_of = {head: policy for heads, policy in layer.groups for head in heads}
    kv_heads_of: dict[frozenset[HeadPolicy], list[int]] = {}
    for kv_head in range(num_kv_heads):
        readers = range(kv_head * per_group, (kv_head + 1) * per_group)
        kv_heads_of.setdefault(frozenset(policy_of[head] for head in readers), []).append(kv_head)
    return tuple(_slice(tuple(kv_heads), per_group, policy_of) for kv_heads in kv_heads_of.values())


def _slice(kv_heads: tuple[int, ...], per_group: int, policy_of: dict[int, HeadPolicy]) -> HeadSlice:
    query_heads = tuple(kv_head * per_group + i for kv_head in kv_heads for i in range(per_group))
    groups: dict[HeadPolicy, list[int]] = {}
    for index, head in enumerate(query_heads):
        groups.setdefault(policy_of[head], []).append(index)
    renumbered = tuple((tuple(heads), policy) for policy, heads in groups.items())
    return HeadSlice(kv_heads, query_heads, LayerPolicy(renumbered, len(query_heads)))

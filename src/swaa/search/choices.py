"""A choice: the units of a model that keep full attention, while a restricted policy, the base, holds on the others.

A unit is a decoder layer, known by its index, or a query head, known by ``(layer, head)``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from swaa.policies import AttentionPolicy, FullAttention

Unit = int | tuple[int, int]
Choice = frozenset[Unit]


def policy_of(
    base: AttentionPolicy, chosen: Collection[Unit], *, num_layers: int | None = None, num_heads: int | None = None
) -> AttentionPolicy:
    """``base``, with full attention on the chosen units: ``FullAttention().on_layers(chosen, otherwise=base)``.

    Args:
        base: the restricted policy.
        chosen: the units.
        num_layers: of the model. Without it, a choice that leaves ``base`` no layer is one that no model takes.
        num_heads: of the model; likewise for the heads of a layer.
    """
    heads: dict[int, set[int]] = {}
    for unit in chosen:
        if isinstance(unit, tuple):
            heads.setdefault(unit[0], set()).add(unit[1])
    whole = {unit for unit in chosen if isinstance(unit, int)}
    whole |= {layer for layer in heads if len(heads[layer]) == num_heads}
    parts = sorted(heads.keys() - whole)
    # where no layer is left to the base, full attention is the default, which may stand for no layer at all
    policy = FullAttention() if len(whole) + len(parts) == num_layers else base
    for layer in parts:
        mixed = FullAttention().on_heads(sorted(heads[layer]), otherwise=base)
        policy = mixed.on_layers([layer], otherwise=policy)
    return FullAttention().on_layers(sorted(whole), otherwise=policy) if whole else policy


def layer_of(unit: Unit) -> int:
    """The layer that a unit is, or is in."""
    return unit if isinstance(unit, int) else unit[0]


def first_difference(one: Collection[Unit], other: Collection[Unit]) -> int | None:
    """The first layer on which two choices differ; None where they are one. Below it, hidden states are equal."""
    return min((layer_of(unit) for unit in set(one) ^ set(other)), default=None)


def in_order(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """Units by layer, then by head."""
    return tuple(sorted(units, key=lambda unit: unit if isinstance(unit, tuple) else (unit, -1)))


def spread(size: int, count: int) -> tuple[int, ...]:
    """Places of ``count`` of ``size`` units, evenly spaced: every n-th from the second on, where these are so many.

    So the patterns of the paper (arXiv 2512.10411) come out, whose layers are 1, 3, 5 … and 1, 5, 9 …: of 30 layers, 15
    are ``1::2`` and 8 are ``1::4``, every fourth. Where no n gives the count, each stands in the middle of its share.
    """
    if not count:
        return ()
    for step in range(1, size + 1):
        places = tuple(range(min(1, step - 1), size, step))
        if len(places) == count:
            return places
    return tuple((2 * place + 1) * size // (2 * count) for place in range(count))

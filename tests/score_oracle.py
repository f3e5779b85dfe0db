"""The independent reference of score modifications: row by row, over the keys that a query sees.

Like ``oracle.py`` this imports nothing of swaa. A sum of modifications is a tuple of :class:`Part`, the first of which
is applied first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oracle import Mask, Model, Scene, Selector, chosen, slots


@dataclass(frozen=True)
class Part:
    """One modification by name, its parameters, and where it holds (None: everywhere)."""

    name: str
    args: tuple[Any, ...] = ()
    layers: Selector = None
    heads: Selector = None


def slopes(heads: int) -> list[float]:
    """ALiBi's, as its authors compute them: a geometric row, or two of them put together."""
    if math.log2(heads).is_integer():
        first = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [first * first**i for i in range(heads)]
    nearest = 2 ** math.floor(math.log2(heads))
    return slopes(nearest) + slopes(2 * nearest)[0::2][: heads - nearest]


def _of_head(value: Any, head: int) -> float:
    return value[head] if isinstance(value, tuple) else value


# (scores of one row, q, positions of its keys, head, heads, *args) -> scores
CHANGES: dict[str, Callable[..., Tensor]] = {
    "ALiBi": lambda s, q, k, h, n, own=None: s - (own or slopes(n))[h] * (q - k),
    "SoftCap": lambda s, q, k, h, n, cap: cap * torch.tanh(s / cap),
    "Uneven": lambda s, q, k, h, n, gain, period: (
        s * s.new_tensor([gain if int(i) % period == 0 else 1 for i in k]) + 0.1 * (q % 3) + (q - k).double().sqrt()
    ),
}


def change(parts: Sequence[Part], scores: Tensor, q: int, k: Tensor, layer: int, head: int, model: Model) -> Tensor:
    """The new scores of one row."""
    for part in parts:
        holds = layer in chosen(part.layers, model.layers) and head in chosen(part.heads, model.heads)
        if part.name in CHANGES and holds:
            scores = CHANGES[part.name](scores, q, k, head, model.heads, *part.args).to(scores.dtype)
    return scores


def sinks(parts: Sequence[Part], layer: int, head: int, model: Model) -> list[float]:
    """The sink logits of a head."""
    return [
        _of_head(part.args[0] if part.args else 0.0, head)
        for part in parts
        if part.name == "SinkLogits"
        and layer in chosen(part.layers, model.layers)
        and head in chosen(part.heads, model.heads)
    ]


def attention(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    mask_BHQK: Mask,
    scene: Scene,
    parts: Sequence[Part],
    model: Model,
    layer: int,
    *,
    softcap: float | None = None,
    own_sinks_H: Tensor | None = None,
) -> Tensor:
    """Row by row, over its visible keys only. Differentiable."""
    batch, heads, queries, size = query_BHQD.shape
    group = heads // key_BGKD.shape[1]
    samples = slots(scene)
    out = []
    for b in range(batch):
        query_slots, key_slots = samples[b if len(samples) > 1 else 0]
        for h in range(heads):
            for q in range(queries):
                row = mask_BHQK[b if len(mask_BHQK) > 1 else 0][h][q]
                seen = [k for k, visible in enumerate(row) if visible]
                if not seen:
                    out.append(torch.zeros_like(value_BGKD[b, 0, 0]))
                    continue
                scores = key_BGKD[b, h // group, seen] @ query_BHQD[b, h, q] / math.sqrt(size)
                if softcap is not None:
                    scores = torch.tanh(scores / softcap) * softcap
                positions, at = [key_slots[k].position for k in seen], query_slots[q].position
                assert at is not None
                scores = change(parts, scores, at, torch.tensor(positions), layer, h, model)
                extra = [scores.new_tensor(logit) for logit in sinks(parts, layer, h, model)]
                if own_sinks_H is not None:
                    extra.append(own_sinks_H[h])
                scores = torch.cat([scores, torch.stack(extra)]) if extra else scores
                weights = torch.softmax(scores, 0)[: len(seen)]
                out.append(weights @ value_BGKD[b, h // group, seen])
    return torch.stack(out).view(batch, heads, queries, -1)

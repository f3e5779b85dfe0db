"""Gates and attention mass a second time: whole matrices, masks by loops, slopes from finite differences in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from search.probe_oracle import SINKS, WINDOW
from swaa.search.calibration import Item

NAME = "gate_oracle"
_gates: list[list[float]] = []
_prompt: list[float] = []


@contextmanager
def gated(model: nn.Module, gates: Sequence[Sequence[float]], prompt: float) -> Iterator[None]:
    """Inside the block every head gives ``g * full + (1 - g) * base``; gates[layer][head]."""
    before = model.config._attn_implementation  # type: ignore[union-attr]
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    _gates[:], _prompt[:] = [list(row) for row in gates], [prompt]
    try:
        yield
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    heads, length, size = query.shape[1:]
    groups = heads // key.shape[1]
    key, value = key[0].repeat_interleave(groups, 0), value[0].repeat_interleave(groups, 0)  # [H, K, D]
    gate = torch.tensor(_gates[module.layer_idx], dtype=query.dtype)[:, None]  # type: ignore[index]
    out = torch.zeros(1, length, heads, size, dtype=query.dtype)
    for q in range(length):
        scores = (key[:, : q + 1] * query[0, :, q, None]).sum(-1) * size**-0.5  # [H, K]
        near = torch.tensor([q >= _prompt[0] or q - k < WINDOW or k < SINKS for k in range(q + 1)])
        full = (scores.softmax(1)[..., None] * value[:, : q + 1]).sum(1)
        base = (scores.masked_fill(~near, float("-inf")).softmax(1)[..., None] * value[:, : q + 1]).sum(1)
        out[0, q] = gate * full + (1 - gate) * base
    return out, None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def nll(model: nn.Module, item: Item, gates: Sequence[Sequence[float]], phases: bool) -> float:
    """Mean answer NLL of a float64 model with these gates."""
    ids = [*item.ids, *item.answer_ids[:-1]]
    with gated(model, gates, len(item.ids) if phases else float("inf")), torch.no_grad():
        rows = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    start = len(item.ids) - 1
    return -sum(float(rows[start + n, token]) for n, token in enumerate(item.answer_ids)) / len(item.answer_ids)


def slope(model: nn.Module, item: Item, at: float, which: Sequence[tuple[int, int]], *, phases: bool = True) -> float:
    """d NLL / d gate, where the gates of these (layer, head) move together; ``phases``: answers see everything."""
    step = 1e-4
    config: Any = model.config
    found = []
    for sign in (1, -1):
        gates = [[at] * config.num_attention_heads for _ in range(config.num_hidden_layers)]
        for layer, head in which:
            gates[layer][head] += sign * step
        found.append(nll(model, item, gates, phases))
    return (found[0] - found[1]) / (2 * step)


def lazy_ratio(weights_HQK: Tensor, num_sinks: int, recent: int, last: int) -> float:
    """Of one layer's whole attention matrix: the mass on sinks and recent keys at the last queries."""
    heads, length, _ = weights_HQK.shape
    queries = range(max(0, length - last), length)
    total = 0.0
    for head in range(heads):
        for q in queries:
            for k in range(q + 1):
                if k < num_sinks or q - k < recent:
                    total += float(weights_HQK[head, q, k])
    return total / (heads * len(queries))

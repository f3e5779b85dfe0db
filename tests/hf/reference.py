"""Attention under a policy a second time, by an independent path: no cache, no padding, no swaa.

A :class:`Composition` pairs a policy with its meaning, written again as a Python function of ints. Under
``reference(model, meaning)`` the model runs on an attention function of this file: the mask is built by loops, one
pair at a time, and the softmax is spelled out in float32. Everything that the model itself adds (native windows and
chunks, softcap, learned sinks) is done here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from swaa import AttentionPolicy, FullAttention, SinkTokens, SlidingWindow, every, rule, stack

NAME = "loop_reference"


class At(NamedTuple):  # of which the loops make hundreds of thousands
    """One pair of a query and a key, and where it stands. Positions are counted in one row without padding."""

    q: int
    k: int
    layer: int
    head: int
    decodes: bool
    off: Mutation

    def window(self, size: int) -> bool:
        return self.q - self.k < size + self.off.window

    def sinks(self, number: int) -> bool:
        return self.k + self.off.padding < number


@dataclass(frozen=True)
class Mutation:
    """What is wrong on purpose with a reference: a window or a prompt too long, or padding counted as tokens."""

    window: int = 0
    prompt: int = 0
    padding: int = 0


Meaning = Callable[[At], bool]


@dataclass(frozen=True)
class Composition:
    """A policy, and what it means."""

    name: str
    policy: AttentionPolicy
    meaning: Meaning
    by_phase: bool = False

    def __str__(self) -> str:
        return self.name


FULL = Composition("full", FullAttention(), lambda at: True)

SIX = (
    Composition("naive", SlidingWindow(5), lambda at: at.window(5)),
    Composition("sinks", SlidingWindow(4) | SinkTokens(2), lambda at: at.window(4) or at.sinks(2)),
    Composition(
        "fa_decode", SlidingWindow(4).in_phase("prefill"), lambda at: at.decodes or at.window(4), by_phase=True
    ),
    Composition(
        "half_layers", SlidingWindow(3).on_layers(every(2, start=1)), lambda at: at.layer % 2 == 0 or at.window(3)
    ),
    Composition(
        "sinks_fa_decode_half_layers",
        (SlidingWindow(3) | SinkTokens(2)).in_phase("prefill").on_layers(every(2, start=0)),
        lambda at: at.decodes or at.layer % 2 == 1 or at.window(3) or at.sinks(2),
        by_phase=True,
    ),
    Composition(
        "by_heads",
        stack(rule(SlidingWindow(2), heads=[0, -1]), rule(SlidingWindow(6) | SinkTokens(1))),
        lambda at: at.window(2) if at.head in (0, 3) else at.window(6) or at.sinks(1),
    ),
)
"""The compositions that issue 2 asks for, on models of 4 heads."""


@dataclass
class _Setting:
    meaning: Meaning = FULL.meaning
    prompt: int = 1 << 30
    documents: tuple[int, ...] = ()
    decodes: tuple[bool, ...] = ()
    native: dict[int, Meaning] = field(default_factory=dict)
    mutation: Mutation = field(default_factory=Mutation)


_setting = _Setting()


@contextmanager
def reference(
    model: nn.Module,
    meaning: Meaning,
    *,
    prompt: int = 1 << 30,
    decodes: tuple[bool, ...] = (),
    native: dict[int, Meaning] | None = None,
    mutation: Mutation = Mutation(),  # frozen
) -> Iterator[None]:
    """Inside the block the model runs on this file's attention. Give it rows without padding and no cache.

    Args:
        meaning: the policy.
        prompt: tokens of the row that are the prompt.
        decodes: the phase of each token, where it changes more than once; then ``prompt`` is left out.
        native: by layer, what the model's own mask shows.
        mutation: what to get wrong.
    """
    global _setting
    assert _setting == _Setting(), "references do not nest"
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _setting = _Setting(meaning, prompt, (), decodes, native or {}, mutation)
    try:
        yield
    finally:
        _setting = _Setting()
        model.set_attn_implementation(before)


def loop_mask(layer: int, heads: int, length: int) -> Tensor:
    """bool [H, Q, K]: the mask of one layer, one pair at a time."""
    setting = _setting
    decodes = setting.decodes or tuple(q >= setting.prompt + setting.mutation.prompt for q in range(length))
    return _loop_mask(layer, heads, decodes[:length], setting.meaning, setting.native.get(layer), setting.mutation)


@cache  # models of one shape ask for the same ones; nobody writes into them
def _loop_mask(
    layer: int, heads: int, decodes: tuple[bool, ...], meaning: Meaning, own: Meaning | None, mutation: Mutation
) -> Tensor:
    mask = torch.zeros(heads, len(decodes), len(decodes), dtype=torch.bool)
    for head in range(heads):
        for q in range(len(decodes)):
            for k in range(q + 1):
                at = At(q, k, layer, head, decodes[q], mutation)
                mask[head, q, k] = meaning(at) and (own is None or own(at))
    return mask


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    assert attention_mask is None
    assert query.shape[2] == key.shape[2], "without a cache"
    assert dropout == 0.0
    mask = loop_mask(module.layer_idx, query.shape[1], query.shape[2])  # type: ignore[arg-type]
    per_group = query.shape[1] // key.shape[1]
    rows = []
    for row in range(len(query)):
        outputs = []
        for head in range(query.shape[1]):
            scores = query[row, head].float() @ key[row, head // per_group].float().T
            scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            scores = scores.masked_fill(~mask[head], float("-inf"))
            if s_aux is not None:
                scores = torch.cat([scores, s_aux[head].float().expand(len(scores), 1)], -1)
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            weights = weights / weights.sum(-1, keepdim=True)
            outputs.append((weights[:, : key.shape[2]] @ value[row, head // per_group].float()).to(value.dtype))
        rows.append(torch.stack(outputs, 1))
    return torch.stack(rows), None  # [B, Q, H, D]


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)

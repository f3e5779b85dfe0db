"""Each architecture, under each composition: an evicting cache generates what a full cache with the same mask does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.key_oracle import EIGHT, SPARE, heads_of, keeps_all, live
from hf.reference import Composition
from hf.zoo import ARCHITECTURES, BY_TYPE, Architecture
from swaa import SinkTokens, SlidingWindow
from swaa.hf import held_bytes

LENGTHS = (16, 11, 8)
"""Tokens of the prompts: all longer than any window."""
NEW = 8
"""Tokens of the answers: one more than the longest window, so that tokens of the answer are let go of too."""
CASES = [
    pytest.param(architecture, composition, id=f"{architecture}-{composition}")
    for architecture in ARCHITECTURES
    for composition in EIGHT
    if not (architecture.drops_kwargs and composition.by_phase)
]


@cache
def model_of(model_type: str) -> PreTrainedModel:
    return BY_TYPE[model_type].build()


@dataclass(frozen=True)
class Generated:
    tokens: Tensor  # [B, NEW]
    logits: Tensor  # [B, NEW, V]
    cache: Cache


def generate(architecture: Architecture, composition: Composition, *, evict: bool) -> Generated:
    """Greedy tokens of the left-padded batch; from generate()'s own cache, or from one that keeps everything."""
    model = model_of(architecture.model_type)
    given: dict[str, Any] = {} if evict else {"past_key_values": DynamicCache()}
    with swaa.apply_policy(model, composition.policy, evict=evict), torch.no_grad():
        out = model.generate(
            **padded(rows_of(*LENGTHS)),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **given,
        )
    return Generated(out.sequences[:, -NEW:], torch.stack(out.logits, 1), out.past_key_values)


@dataclass(frozen=True)
class Sizes:
    """Slots of all KV heads together, at the end of generation: the last token is never fed."""

    least: int
    most: int
    full: int


@cache
def sizes(composition: Composition, layers: int, kv_heads: int) -> Sizes:
    """What an evicting cache must hold: what is live, and hardly more. DeepSeek caches one latent for all heads."""
    least = most = 0
    for layer in range(layers):
        for kv_head in range(kv_heads):
            heads = heads_of(kv_head, kv_heads)
            needed = max(len(live(composition, layer, heads, length + NEW - 1, length)) for length in LENGTHS)
            least += needed
            most += needed + (SPARE if keeps_all(composition, layer, heads) else 1)
    return Sizes(least, most, layers * kv_heads * (max(LENGTHS) + NEW - 1))


def test_the_lists_are_long_enough() -> None:
    assert len([architecture for architecture in ARCHITECTURES if not architecture.drops_kwargs]) >= 24
    assert len(EIGHT) == 8


@pytest.mark.parametrize(("architecture", "composition"), CASES)
def test_evicting_changes_the_memory_and_nothing_else(architecture: Architecture, composition: Composition) -> None:
    full, evicting = (generate(architecture, composition, evict=evict) for evict in (False, True))
    assert evicting.tokens.tolist() == full.tokens.tolist()
    torch.testing.assert_close(evicting.logits, full.logits, **CLOSE)
    if architecture.drops_kwargs:  # may keep everything
        return
    expected = sizes(composition, len(full.cache.layers), full.cache.layers[0].keys.shape[1])
    parts = [part for layer in evicting.cache.layers for part in layer.parts]
    slots = sum(part.keys.shape[1] * part.keys.shape[2] for part in parts)
    assert slots <= expected.most
    assert held_bytes(evicting.cache) * expected.full == held_bytes(full.cache) * slots
    if not architecture.native:  # a native window may evict more
        assert slots >= expected.least


@pytest.mark.parametrize("composition", EIGHT, ids=str)
def test_what_the_sizes_should_be_is_no_empty_question(composition: Composition) -> None:
    """All but the compositions with FA decode wherever they restrict hold at most 0.85 of the keys."""
    expected = sizes(composition, 3, 2)
    if composition.name in ("fa_decode", "sinks_fa_decode_half_layers"):
        assert expected.least == expected.full
    else:
        assert expected.least < 0.85 * expected.full


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("diffllama"),  # attends twice a layer
        Architecture(
            "minimax", {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 3}
        ),
        Architecture("lfm2", {"layer_types": ["conv", "full_attention", "full_attention"]}),
    ],
    ids=str,
)
def test_models_with_ways_of_their_own(architecture: Architecture) -> None:
    """They may keep everything; what they do without eviction they must do with it."""
    model = architecture.build()
    tokens = []
    for evict in (False, True):
        with swaa.apply_policy(model, (SlidingWindow(4) | SinkTokens(1)).on_layers([1, 2]), evict=evict):
            out = model.generate(**padded(rows_of(*LENGTHS)), max_new_tokens=NEW, do_sample=False)
        tokens.append(out[:, -NEW:].tolist())
    assert tokens[0] == tokens[1]

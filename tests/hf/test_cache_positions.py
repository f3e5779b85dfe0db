"""Positions of a cache on models, against StreamingLLM taken literally: a cache for each query, its slots counted."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

import swaa
from hf.batches import CLOSE, padded
from hf.zoo import BY_TYPE
from swaa import CachePositions, SinkTokens, SlidingWindow
from swaa.hf.rotation import TURNABLE

NAME = "streaming_taken_literally"
SINKS, RECENT, LENGTH = 2, 5, 16
POLICY, SCORES = SlidingWindow(RECENT) | SinkTokens(SINKS), CachePositions(SINKS, RECENT)

_decoder: PreTrainedModel | None = None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Vectors come unrotated, as every token is said to stand at 0. Each query gets a cache, rotated by its slots."""
    assert _decoder is not None
    batch, heads, length, size = query.shape
    rotate = sys.modules[type(_decoder).__module__].apply_rotary_pos_emb  # type: ignore[attr-defined]
    out = torch.empty(batch, length, heads, size)
    for b in range(batch):
        for q in range(length):
            cache = list(range(q + 1)) if q < SINKS + RECENT else [*range(SINKS), *range(q - RECENT + 1, q + 1)]
            slots = torch.arange(len(cache))[None]
            cos, sin = _decoder.rotary_emb(key, slots)  # type: ignore[operator]
            alone = query[b : b + 1, :, q : q + 1].expand(-1, -1, len(cache), -1)
            scaled = _decoder.rotary_emb.attention_scaling  # what stands at 0 has it already
            turned, keys = rotate(alone, key[b : b + 1, :, cache], cos / scaled, sin / scaled)
            for h in range(heads):
                group = h // (heads // key.shape[1])
                scores = keys[0, group] @ turned[0, h, -1] * (size**-0.5 if scaling is None else scaling)
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[b, q, h] = torch.softmax(scores, 0) @ value[b, group, cache]
    return out, None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@contextmanager
def literally(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model runs on this file's attention; for rows without padding, and no cache."""
    global _decoder
    before, _decoder = model.config._attn_implementation, model.get_decoder()
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        _decoder = None
        model.set_attn_implementation(before)


def reference(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with literally(model), torch.no_grad():
        return model(tokens, position_ids=torch.zeros_like(tokens), use_cache=False).logits


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return BY_TYPE["llama"].build()


def tokens_of(model: PreTrainedModel, rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", sorted(TURNABLE & BY_TYPE.keys()))
def test_one_pass_is_what_a_cache_for_each_query_gives(kind: str) -> None:
    model = BY_TYPE[kind].build(**({"sliding_window": 2 * LENGTH} if BY_TYPE[kind].windowed else {}))
    tokens = tokens_of(model)
    expected = reference(model, tokens)
    with swaa.apply_policy(model, POLICY, SCORES), torch.no_grad():
        given = model(tokens).logits
    torch.testing.assert_close(given, expected, **CLOSE)
    with swaa.apply_policy(model, POLICY), torch.no_grad():
        assert not torch.allclose(given, model(tokens).logits, atol=1e-3)


def test_a_rotation_that_scales_too() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    model = BY_TYPE["llama"].build(rope_parameters=yarn)
    assert model.model.rotary_emb.attention_scaling > 1.1
    tokens = tokens_of(model)
    expected = reference(model, tokens)
    with swaa.apply_policy(model, POLICY, SCORES), torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, expected, **CLOSE)


def test_every_type_that_is_said_to_turn_is_tried() -> None:
    assert TURNABLE - BY_TYPE.keys() == set()


@pytest.mark.parametrize("kernel", ["blockwise", "dense"])
def test_kernels_gradients_and_other_modifications(llama: PreTrainedModel, kernel: str) -> None:
    tokens = tokens_of(llama)
    with swaa.apply_policy(llama, POLICY, SCORES, kernel=kernel):
        embedded = llama.get_input_embeddings()(tokens).detach().requires_grad_()
        logits = llama(inputs_embeds=embedded).logits
        logits[:, -1].sum().backward()
        torch.testing.assert_close(logits.detach(), reference_beside(llama, tokens), **CLOSE)
    assert embedded.grad is not None
    assert bool(embedded.grad[:, 0].abs().sum() > 0)  # a sink far away from the last query


def reference_beside(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The reference from an untouched copy, as the model has a policy."""
    plain = BY_TYPE["llama"].build()
    plain.load_state_dict(model.state_dict(), strict=False)
    return reference(plain, tokens)


@pytest.mark.parametrize("evict", [True, False])
def test_generation_with_a_cache_goes_by_the_same_positions(llama: PreTrainedModel, evict: bool) -> None:
    llama = copy.deepcopy(llama)
    llama.generation_config.eos_token_id = None
    tokens = tokens_of(llama)
    grown = tokens
    for _ in range(8):
        grown = torch.cat([grown, reference(llama, grown)[:, -1:].argmax(-1)], 1)
    with swaa.apply_policy(llama, POLICY, SCORES, evict=evict):
        made = llama.generate(tokens, max_new_tokens=8, do_sample=False)
    assert torch.equal(made, grown)


def test_padding_and_chunks_change_nothing(llama: PreTrainedModel) -> None:
    rows = [tokens_of(llama, 1)[0], tokens_of(llama, 1, 11)[0]]
    batch = padded(rows)
    with swaa.apply_policy(llama, POLICY, SCORES), torch.no_grad():
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = llama(**batch, position_ids=positions).logits
        cache = swaa.PolicyCache(llama)
        pieces = [llama(part, past_key_values=cache).logits for part in rows[0][None].split(6, -1)]
    torch.testing.assert_close(logits[:1], reference_beside(llama, rows[0][None]), **CLOSE)
    torch.testing.assert_close(logits[1:, -11:], reference_beside(llama, rows[1][None]), **CLOSE)
    torch.testing.assert_close(torch.cat(pieces, 1), logits[:1], **CLOSE)


def test_scopes_and_saving(llama: PreTrainedModel, tmp_path: Any) -> None:
    tokens = tokens_of(llama)
    with swaa.apply_policy(llama, POLICY, SCORES.on_layers([0])), torch.no_grad():
        some = llama(tokens).logits
    with swaa.apply_policy(llama, POLICY, SCORES), torch.no_grad():
        every = llama(tokens).logits
        llama.save_pretrained(tmp_path)
    assert not torch.allclose(some, every, atol=1e-3)
    from swaa.hf.apply import apply_policy  # the saved spec, applied again

    fresh = type(llama).from_pretrained(tmp_path)
    with (
        apply_policy(fresh, swaa.saved_policy(fresh.config), swaa.hf.spec.saved_scores(fresh.config)),
        torch.no_grad(),
    ):
        torch.testing.assert_close(fresh(tokens).logits, every, **CLOSE)


@pytest.mark.usefixtures("one_process")
def test_a_class_that_fsdp_has_derived_turns_as_its_own_does() -> None:
    model = BY_TYPE["llama"].build()
    tokens = tokens_of(model)
    with swaa.apply_policy(model, POLICY, SCORES), torch.no_grad():
        expected = model(tokens).logits
        fully_shard(model.model, mesh=init_device_mesh("cpu", (1,)))
        torch.testing.assert_close(model(tokens).logits, expected, **CLOSE)


def test_what_cannot_be_turned_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(swaa.UserError, match="CachePositions: expected a model type whose rotation swaa turns back"):
        swaa.apply_policy(BY_TYPE["gpt_neox"].build(), POLICY, SCORES)
    model = copy.deepcopy(llama)
    model.get_decoder().rotary_emb.rope_type = "dynamic"
    with pytest.raises(swaa.UserError, match="got 'dynamic', whose frequencies follow the length of the text"):
        swaa.apply_policy(model, POLICY, SCORES)
    with pytest.raises(swaa.UserError, match="expected one way of counting for all heads of a layer"):
        swaa.apply_policy(llama, POLICY, SCORES.on_heads([0]))
    with pytest.raises(swaa.UserError, match=r"CachePositions.num_sinks: expected an int >= 1 \(tokens\), got 0"):
        CachePositions(0, 4)

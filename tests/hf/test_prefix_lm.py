"""Policies that look ahead on a real model: against eager attention under a mask made by hand, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.zoo import BY_TYPE
from swaa import BidirectionalPrefix, PrefixLM, SlidingWindow, UserError
from swaa.engine.text_nll import token_nll

Meaning = Callable[[int, int, int], bool]
NEW = 6

WHOLE = (PrefixLM(), lambda q, k, prompt: k <= q or max(q, k) < prompt)
SIX = (PrefixLM(6), lambda q, k, prompt: k <= q or max(q, k) < min(6, prompt))
BLOCK = (
    (BidirectionalPrefix(5) | SlidingWindow(3)).in_phase("prefill", otherwise=SlidingWindow(4)),
    lambda q, k, prompt: q - 4 < k <= q if q >= prompt else q - 3 < k <= q or max(q, k) < min(5, prompt),
)
ALL = pytest.mark.parametrize(("policy", "meaning"), [WHOLE, SIX, BLOCK], ids=["whole", "six", "block"])


@cache
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build()


def by_hand(row: Tensor, meaning: Meaning, prompt: int) -> Tensor:
    """[S, V]: logits of one row by transformers' eager attention under a mask of loops."""
    size = len(row)
    seen = [[meaning(q, k, prompt) for k in range(size)] for q in range(size)]
    mask = torch.where(torch.tensor(seen), 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        out = model()(row[None], attention_mask=mask, position_ids=torch.arange(size)[None], use_cache=False)
    return out.logits[0]


def step_by_step(row: Tensor, meaning: Meaning) -> list[int]:
    whole = row
    for _ in range(NEW):
        whole = torch.cat([whole, by_hand(whole, meaning, len(row))[-1:].argmax(-1)])
    return whole[len(row) :].tolist()


@ALL
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_forward_pass(policy: Any, meaning: Meaning, side: str) -> None:
    rows, prompts = rows_of(14, 9, 11), [8, 9, 3]
    batch = padded(rows, side=side)
    with swaa.apply_policy(model(), policy), torch.no_grad():
        out = model()(**batch, use_cache=False, prompt_lengths=torch.tensor(prompts)).logits
    for row, prompt, mask, logits in zip(rows, prompts, batch["attention_mask"].bool(), out, strict=True):
        torch.testing.assert_close(logits[mask], by_hand(row, meaning, prompt), **CLOSE)


@ALL
def test_packed_documents(policy: Any, meaning: Meaning) -> None:
    rows = rows_of(9, 7)
    positions = torch.cat([torch.arange(9), torch.arange(7)])[None]
    with swaa.apply_policy(model(), policy), torch.no_grad():
        told = {"prompt_lengths": torch.tensor([[8, 3]]), "use_cache": False}
        out = model()(torch.cat(rows)[None], position_ids=positions, **told).logits[0]
    torch.testing.assert_close(out[:9], by_hand(rows[0], meaning, 8), **CLOSE)
    torch.testing.assert_close(out[9:], by_hand(rows[1], meaning, 3), **CLOSE)


@ALL
@pytest.mark.parametrize("evict", [True, False])
def test_generation(policy: Any, meaning: Meaning, evict: bool) -> None:
    rows = rows_of(12, 7)
    with swaa.apply_policy(model(), policy, evict=evict):
        out = model().generate(**padded(rows), max_new_tokens=NEW, do_sample=False)
    assert out[:, -NEW:].tolist() == [step_by_step(row, meaning) for row in rows]


def test_a_static_cache() -> None:
    (row,) = rows_of(10)
    policy, meaning = WHOLE
    with swaa.apply_policy(model(), policy):
        cache = StaticCache(config=model().config, max_cache_len=32)
        out = model().generate(row[None], past_key_values=cache, max_new_tokens=NEW, do_sample=False)
    assert out[0, 10:].tolist() == step_by_step(row, meaning)


@ALL
def test_no_answer_leaks_into_its_prompt_or_what_comes_before_it(policy: Any, meaning: Meaning) -> None:
    del meaning
    (row,) = rows_of(12)
    tell = {"use_cache": False, "prompt_lengths": torch.tensor([4])}
    with swaa.apply_policy(model(), policy):
        model().train()
        try:
            embeds = model().get_input_embeddings()(row[None]).detach().requires_grad_()
            for at in range(12):
                (grad,) = torch.autograd.grad(model()(inputs_embeds=embeds, **tell).logits[0, at].sum(), embeds)
                reached = grad[0].abs().sum(-1).nonzero()[:, 0].tolist()
                assert max(reached) <= max(at, 3)
                if at < 4:
                    assert max(reached) == 3, "later tokens of the prompt are seen"
        finally:
            model().eval()


def refused(match: str, policy: Any, *args: Any, **kwargs: Any) -> None:
    with swaa.apply_policy(model(), policy), torch.no_grad(), pytest.raises(UserError, match=match):
        model()(*args, **kwargs)


def test_what_does_not_tell_where_the_prompt_ends_is_refused() -> None:
    ids = rows_of(8)[0][None]
    refused("nothing tells where it ends in a forward pass without a cache", PrefixLM(), ids, use_cache=False)
    refused("in a forward pass with labels: all tokens would be seen", PrefixLM(), ids, labels=ids)
    refused("forward pass with labels", PrefixLM(), ids, None, None, None, None, ids)
    decodes = torch.zeros(1, 8, dtype=torch.bool)
    refused("decode_mask does not tell where a prompt ends", PrefixLM(), ids, decode_mask=decodes, use_cache=False)
    positions = torch.cat([torch.arange(4), torch.arange(4)])[None]
    refused("over packed documents", PrefixLM(), ids, position_ids=positions)
    model().train()
    try:
        refused("in a forward pass in training", PrefixLM(), ids)
    finally:
        model().eval()
    with swaa.apply_policy(model(), PrefixLM()), pytest.raises(UserError, match="predicts tokens of the prompt"):
        token_nll(model(), ids[0])
    with swaa.apply_policy(model(), PrefixLM()), pytest.raises(UserError, match="use_cache=False"):
        model().generate(ids, max_new_tokens=2, use_cache=False)


def in_pieces(policy: Any, row: Tensor, cut: int, prompt: int) -> Tensor:
    with swaa.apply_policy(model(), policy), torch.no_grad():
        cache = swaa.declare_prompt(DynamicCache(), prompt)
        model()(row[None, :cut], past_key_values=cache)
        return model()(row[None, cut:], past_key_values=cache).logits[0]


def test_a_prompt_in_pieces() -> None:
    (row,) = rows_of(12)
    for policy, cut, prompt in ((PrefixLM(), 7, 10), (PrefixLM(6), 5, 10)):
        with pytest.raises(UserError, match=rf"cuts the prompt of {prompt} tokens \(sample 0\) after {cut}, where"):
            in_pieces(policy, row, cut, prompt)
    torch.testing.assert_close(in_pieces(SIX[0], row, 7, 10), by_hand(row, SIX[1], 10)[7:], **CLOSE)
    torch.testing.assert_close(in_pieces(WHOLE[0], row, 10, 10), by_hand(row, WHOLE[1], 10)[10:], **CLOSE)


def test_another_turn_on_the_same_cache() -> None:
    first, second = rows_of(6, 5)
    for policy, fits in ((PrefixLM(), False), (PrefixLM(4), True)):
        with swaa.apply_policy(model(), policy), torch.no_grad():
            cache = model()(first[None], past_key_values=DynamicCache()).past_key_values
            swaa.declare_prompt(cache, 11)
            if fits:
                model()(second[None], past_key_values=cache)
                continue
            with pytest.raises(UserError, match="cuts the prompt of 11 tokens .* after 6, where"):
                model()(second[None], past_key_values=cache)


def test_left_padding_counts_for_nothing_where_a_prompt_is_cut() -> None:
    rows = rows_of(10, 7)
    batch = padded(rows)
    with swaa.apply_policy(model(), PrefixLM(4)), torch.no_grad():
        for cut, fits in ((7, True), (6, False)):
            cache = swaa.declare_prompt(DynamicCache(), torch.tensor([10, 7]))
            piece = {"input_ids": batch["input_ids"][:, :cut], "attention_mask": batch["attention_mask"][:, :cut]}
            if fits:
                model()(**piece, past_key_values=cache)
                continue
            with pytest.raises(UserError, match=r"prompt of 7 tokens \(sample 1\) after 3, where"):
                model()(**piece, past_key_values=cache)


def test_a_native_window_is_refused() -> None:
    mistral = BY_TYPE["mistral"].build()
    ids = rows_of(8)[0][None]
    with swaa.apply_policy(mistral, PrefixLM()), pytest.raises(UserError, match="causal window or chunks of its own"):
        mistral(ids)

"""Listening to attention: what a listener gets, and what the model goes on with."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

import swaa
from hf.zoo import ALTERNATING, BY_TYPE, WINDOW, Architecture
from swaa import AttentionPolicy, FullAttention, SinkTokens, SlidingWindow
from swaa.hf.listening import AttentionCall, listening
from swaa.hf.spec import PolicyOnModel, make_spec

LAYERS, HEADS, SLOTS = 3, 4, 14
PADDING, PROMPTS = (0, 5), (11, 6)
NEAR = SlidingWindow(3) | SinkTokens(1)
HEADED = FullAttention().on_heads([1], otherwise=SlidingWindow(2))
MIXED = FullAttention().on_layers([1], otherwise=NEAR.in_phase("prefill"))
SEVERAL = ("llama", "gemma2", "gemma3_text", "gpt2", "gpt_oss", "cohere2", "llama4_text")


def logits(model: Any) -> Tensor:
    """Of two rows of prompt and answer, the second of them padded."""
    torch.manual_seed(1)
    ids = torch.randint(3, 40, (2, SLOTS))
    mask = torch.stack([torch.arange(SLOTS) >= padding for padding in PADDING]).long()
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, prompt_lengths=torch.tensor(PROMPTS), use_cache=False).logits
    return torch.cat([row[padding:] for row, padding in zip(out, PADDING, strict=True)])


def under(policy: AttentionPolicy) -> PolicyOnModel:
    return PolicyOnModel(make_spec(policy, "dense", evict=False), LAYERS)


@pytest.mark.parametrize("architecture", SEVERAL)
@pytest.mark.parametrize("other", [FullAttention(), MIXED, HEADED], ids=["full", "mixed", "heads"])
def test_a_call_made_again_under_another_policy_is_that_policys(architecture: str, other: AttentionPolicy) -> None:
    model = BY_TYPE[architecture].build()
    with swaa.apply_policy(model, other):
        wanted = logits(model)
    with swaa.apply_policy(model, NEAR):
        plain = logits(model)
        with listening(model, lambda call: call.attend(under(other))):
            torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
        with listening(model, lambda call: call.attend()):
            assert torch.equal(logits(model), plain)
        with listening(model, lambda call: None):
            assert torch.equal(logits(model), plain)
        with listening(model, lambda call: call.attend() * 0):
            assert not torch.allclose(logits(model), plain, atol=1e-2)
        assert torch.equal(logits(model), plain)
    assert not torch.allclose(plain, wanted, atol=1e-2)


@pytest.mark.parametrize("last", [1, 4, SLOTS, SLOTS + 3])
@pytest.mark.parametrize("phases", [True, False], ids=["prefill", "both"])
def test_what_the_last_queries_would_see(last: int, phases: bool) -> None:
    """By loops: the window and sinks of the policy asked for, the model's own window, padding, and the prompt's end."""
    model = Architecture("gemma3_text", ALTERNATING).build()
    asked, seen = (NEAR.in_phase("prefill") if phases else NEAR), dict[int, Tensor]()

    def look(call: AttentionCall) -> None:
        seen[call.layer] = call.visible(asked, last)

    with swaa.apply_policy(model, MIXED), listening(model, look):
        logits(model)
    queries = range(max(0, SLOTS - last), SLOTS)
    for layer in range(LAYERS):
        native = BY_TYPE["gemma3_text"].native.get(layer) is not None
        for row, (padding, prompt) in enumerate(zip(PADDING, PROMPTS, strict=True)):
            wanted = [
                [
                    padding <= k <= q
                    and (q - k < WINDOW or not native)
                    and (q - k < 3 or k == padding or (phases and q >= padding + prompt))
                    for k in range(SLOTS)
                ]
                for q in queries
            ]
            got = seen[layer].expand(2, -1, -1, -1)[row]
            assert all(head.tolist() == wanted for head in got), (layer, row)


def test_a_call_tells_its_scale_and_cap() -> None:
    calls: list[AttentionCall] = []
    for name in ("gemma2", "llama"):
        model: Any = BY_TYPE[name].build()
        with swaa.apply_policy(model, NEAR), listening(model, lambda call: calls.append(call)):
            logits(model)
    gemma, llama = calls[:LAYERS], calls[LAYERS:]
    assert [call.layer for call in calls] == [0, 1, 2, 0, 1, 2]
    config: Any = BY_TYPE["gemma2"].build().config
    assert {(call.scale, call.softcap) for call in gemma} == {
        (config.query_pre_attn_scalar**-0.5, config.attn_logit_softcapping)
    }
    assert config.query_pre_attn_scalar != 8
    assert {(call.scale, call.softcap) for call in llama} == {(8**-0.5, None)}
    assert llama[0].query_BHQD.shape == (2, HEADS, SLOTS, 8)
    assert llama[0].key_BGKD.shape == (2, 2, SLOTS, 8)


def test_listeners_nest_and_leave_no_trace() -> None:
    model: Any = BY_TYPE["llama"].build()
    heard: list[str] = []
    with swaa.apply_policy(model, NEAR):
        implementation = model.config._attn_implementation
        with listening(model, lambda call: heard.append("outer")):
            with contextlib.suppress(KeyboardInterrupt), listening(model, lambda call: heard.append("inner")):
                logits(model)
                raise KeyboardInterrupt
            logits(model)
        assert model.config._attn_implementation == implementation
        logits(model)
    assert heard == ["inner"] * LAYERS + ["outer"] * LAYERS

"""Choices by content on transformers models: prompts, chunks, cached decoding, padding; and the recall they reach."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

import content_oracle
import oracle
import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.zoo import BY_TYPE
from oracle import Atom, Contiguous, Model, Place, Recipe, Scope, Union
from swaa import SinkTokens, SlidingWindow, TopBlocks, UserError
from swaa.cli import main
from swaa.hf.recall import attention_mass

NAME = "content_reference"
NEW = 6
CHOICES: dict[str, tuple[Recipe, swaa.AttentionPolicy]] = {
    "blocks": (Atom("TopBlocks", (3, 1)), TopBlocks(3, 1)),
    "blocks_and_sinks": (
        Union((Atom("TopBlocks", (4, 1)), Atom("SinkTokens", (1,)))),
        TopBlocks(4, 1) | SinkTokens(1),
    ),
    "by_phase_and_head": (
        Scope(Scope(Atom("TopBlocks", (2, 2)), Place(phase="decode")), Place(heads="1:")),
        TopBlocks(2, 2).in_phase("decode").on_heads("1:"),
    ),
    "while_reading": (  # keys go once the prompt has been read, and answers choose nothing
        Scope(Atom("TopBlocks", (3, 1)), Place(phase="prefill"), Atom("SlidingWindow", (4,))),
        TopBlocks(3, 1).in_phase("prefill", otherwise=SlidingWindow(4)),
    ),
}
EACH = pytest.mark.parametrize("choice", CHOICES)


@cache
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build()


@contextmanager
def reference(choice: str, prompt: int, *, fully: bool = False) -> Iterator[list[Tensor]]:
    """The model on loops: no cache, no padding. Yields the masks of the layers; ``fully``: but attends to all keys."""
    recipe, masks = CHOICES[choice][0], []

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        scene = Contiguous(query.shape[2], query.shape[2], prompts=prompt)
        mask = content_oracle.mask(recipe, scene, Model(3, 4), int(module.layer_idx), query, key)  # type: ignore[arg-type]
        masks.append(torch.tensor(mask))
        if fully:
            mask = oracle.mask(Atom("FullAttention"), scene, Model(3, 4), 0)
        return oracle.attention(query, key, value, mask, scale=scaling).transpose(1, 2), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    model().set_attn_implementation(NAME)
    try:
        with torch.no_grad():
            yield masks
    finally:
        model().set_attn_implementation("eager")


def reference_logits(row: Tensor, choice: str, prompt: int) -> Tensor:
    with reference(choice, prompt):
        return model()(row.unsqueeze(0), use_cache=False).logits[0]


def reference_greedy(row: Tensor, choice: str) -> list[int]:
    whole = row
    for _ in range(NEW):
        whole = torch.cat([whole, reference_logits(whole, choice, len(row))[-1:].argmax(-1)])
    return whole[len(row) :].tolist()


@EACH
@pytest.mark.parametrize("kernel", ["auto", "blockwise"])
def test_one_pass_over_a_padded_batch(choice: str, kernel: str) -> None:
    rows = rows_of(17, 9)
    batch = padded(rows)
    lengths = torch.tensor([11, 6])
    with swaa.apply_policy(model(), CHOICES[choice][1], kernel=kernel), torch.no_grad():
        logits = model()(**batch, prompt_lengths=lengths).logits
    for index, row in enumerate(rows):
        expected = reference_logits(row, choice, int(lengths[index]))
        torch.testing.assert_close(logits[index, -len(row) :], expected, **CLOSE)


@EACH
def test_chunks_and_cached_steps_equal_one_pass(choice: str) -> None:
    (row,) = rows_of(19)
    with swaa.apply_policy(model(), CHOICES[choice][1]), torch.no_grad():
        cache = swaa.PolicyCache(model(), prompt_lengths=13)
        parts = [
            model()(part.unsqueeze(0), past_key_values=cache).logits[0] for part in row.split([7, 4, 2, 1, 1, 3, 1])
        ]
    torch.testing.assert_close(torch.cat(parts), reference_logits(row, choice, 13), **CLOSE)


def test_samples_in_either_phase_when_keys_have_gone() -> None:
    """One sample answers, and has freed keys, while another is still choosing blocks of its prompt."""
    rows, prompts = rows_of(19, 19), torch.tensor([4, 16])
    _, policy = CHOICES["while_reading"]
    with swaa.apply_policy(model(), policy), torch.no_grad():
        cache = swaa.PolicyCache(model(), prompt_lengths=prompts)
        parts = [model()(part, past_key_values=cache).logits for part in torch.stack(rows).split([9, 4, 2, 1, 3], 1)]
    for index, row in enumerate(rows):
        expected = reference_logits(row, "while_reading", int(prompts[index]))
        torch.testing.assert_close(torch.cat(parts, 1)[index], expected, **CLOSE)


@EACH
def test_generate_on_a_left_padded_batch(choice: str) -> None:
    rows = rows_of(12, 7)
    with swaa.apply_policy(model(), CHOICES[choice][1]):
        out = model().generate(**padded(rows), max_new_tokens=NEW, do_sample=False)
    assert out[:, -NEW:].tolist() == [reference_greedy(row, choice) for row in rows]


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "qwen3"])
def test_generate_is_the_same_with_and_without_a_cache(kind: str) -> None:
    """Models with soft caps, learned sinks and windows of their own."""
    other, windowed = BY_TYPE[kind].build(), bool(BY_TYPE[kind].windowed)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    batch = padded(rows_of(14, 9))
    for policy in (TopBlocks(3, 1) | SinkTokens(1), TopBlocks(3, 2) & SlidingWindow(12)):
        with swaa.apply_policy(other, policy):
            cached = other.generate(**batch, **options)
            assert torch.equal(cached, other.generate(**batch, **options, use_cache=False))
        with swaa.apply_policy(other, policy, evict=False):
            if windowed:  # transformers' own cache has dropped keys behind the window, which the means need
                with pytest.raises(UserError, match="keys that came before are not there"):
                    other.generate(**batch, **options)
            else:
                assert torch.equal(cached, other.generate(**batch, **options, cache_implementation="static"))


def test_beams_reorder_what_is_held() -> None:
    options: dict[str, Any] = {"max_new_tokens": NEW, "num_beams": 3, "do_sample": False}
    with swaa.apply_policy(model(), TopBlocks(3, 1)):
        beams = model().generate(**padded(rows_of(12, 7)), **options)
        assert torch.equal(beams, model().generate(**padded(rows_of(12, 7)), **options, use_cache=False))


def test_a_cache_keeps_every_key_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    (row,) = rows_of(20)
    policy = (TopBlocks(5, 1) & SlidingWindow(6)).on_layers([0], otherwise=SlidingWindow(6))
    with swaa.apply_policy(model(), policy), torch.no_grad(), caplog.at_level(logging.WARNING):
        cache = swaa.PolicyCache(model())
        for part in row.split([15, 1, 1, 3]):
            model()(part.unsqueeze(0), past_key_values=cache)
    held = [
        sorted(position for position in layer.parts[0].positions[0].tolist() if position >= 0) for layer in cache.layers
    ]
    assert held[0] == list(range(20))
    assert len(held[1]) < 12
    assert "keys cannot be freed: TopBlocks(5, 1) chooses by content" in caplog.text


def test_heads_that_do_not_choose_free_theirs() -> None:
    (row,) = rows_of(20)
    policy = TopBlocks(5, 1).on_heads([2, 3], otherwise=SlidingWindow(4))
    with swaa.apply_policy(model(), policy), torch.no_grad():
        whole = model()(row.unsqueeze(0), use_cache=False).logits[0]
        cache = swaa.PolicyCache(model())
        parts = [model()(part.unsqueeze(0), past_key_values=cache).logits[0] for part in row.split([15, 1, 1, 3])]
    torch.testing.assert_close(torch.cat(parts), whole, **CLOSE)
    window, blocks = cache.layers[0].parts
    assert (window.kv_heads, blocks.kv_heads) == ((0,), (1,))
    assert window.keys.shape[2] < 12
    assert int((blocks.positions >= 0).sum()) == 20


def test_training_reaches_every_weight() -> None:
    (row,) = rows_of(16)
    learner = BY_TYPE["llama"].build().train()
    with swaa.apply_policy(learner, TopBlocks(4, 1)):
        learner(row.unsqueeze(0), labels=row.unsqueeze(0)).loss.backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in learner.model.layers.parameters())


# ------------------------------------------------------------------------------------------------- recall


def true_weights(ids: Tensor) -> list[Tensor]:
    model().set_attn_implementation("eager")
    with torch.no_grad():
        weights = model()(ids, output_attentions=True, use_cache=False).attentions
    assert weights is not None
    return list(weights)


@pytest.mark.parametrize("cells", [1 << 22, 100])
def test_recall_is_the_share_of_the_models_own_weights(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swaa.hf.recall._CELLS", cells)
    ids = torch.stack(rows_of(18, 18))
    policies = [swaa.FullAttention(), "SlidingWindow(5) | SinkTokens(1)", CHOICES["by_phase_and_head"][1]]
    full, window, chosen = attention_mass(model(), ids, policies, prompt_length=9)
    assert full.mass == pytest.approx((1, 1, 1))
    assert full.pairs == (1, 1, 1)
    q, k = torch.arange(18).unsqueeze(-1), torch.arange(18)
    visible = (k <= q) & ((q - k < 5) | (k < 1))
    with reference("by_phase_and_head", 9, fully=True) as masks:
        model()(ids, use_cache=False)
    for layer, weights in enumerate(true_weights(ids)):
        assert window.mass[layer] == pytest.approx(float((weights * visible).sum(-1).mean()), abs=1e-5)
        assert window.pairs[layer] == pytest.approx(int(visible.sum()) / 171)
        assert chosen.mass[layer] == pytest.approx(float((weights * masks[layer]).sum(-1).mean()), abs=1e-5)
        assert chosen.pairs[layer] == pytest.approx(float(masks[layer].sum()) / (2 * 4 * 171))


def test_recall_leaves_the_model_as_it_was_and_refuses_what_is_not_full() -> None:
    (row,) = rows_of(8)
    before = model().config._attn_implementation
    model().model.layers[1].train()
    attention_mass(model(), row.unsqueeze(0), [TopBlocks(2, 1)])
    assert model().config._attn_implementation == before
    assert [model().training, *(layer.training for layer in model().model.layers)] == [False, False, True, False]
    model().eval()
    with swaa.apply_policy(model(), SinkTokens(1)), pytest.raises(UserError, match="without a policy on it"):
        attention_mass(model(), row.unsqueeze(0), [TopBlocks(2, 1)])
    for kind in ("gemma2", "llama4_text"):
        with pytest.raises(UserError, match="a layer has a window or chunks of its own"):
            attention_mass(BY_TYPE[kind].build(), row.unsqueeze(0), [TopBlocks(2, 1)])
    with pytest.raises(UserError, match=r"input_ids: expected int \[B, S\]"):
        attention_mass(model(), row, [TopBlocks(2, 1)])
    with pytest.raises(UserError, match="model: expected a transformers model"):
        attention_mass(nn.Linear(2, 2), row.unsqueeze(0), [])


def test_the_command_measures_the_real_model(smollm2: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recall", "FullAttention()", "TopBlocks(16, 1)", "SlidingWindow(24)", "--tokens", "128"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 100 < told["tokens"] <= 128
    full, blocks, window = told["policies"]
    assert full["mass"] == pytest.approx([1] * 30, abs=1e-4)
    assert all(0.1 < share < 0.99 for share in (*blocks["mass"], *window["mass"]))
    assert main(command) == 0
    assert "attention mass" in capsys.readouterr().out
    assert main(["recall", "TopBlocks(0, 1)"]) == 2
    assert main(["recall", "TopBlocks(1, 1)", "--tokens", "3"]) == 2

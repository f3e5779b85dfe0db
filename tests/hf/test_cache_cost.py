"""What ``swaa explain`` counts is what the cache holds; caches that cannot serve a policy say so."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoConfig, DynamicCache, PreTrainedModel, StaticCache

import swaa
from hf.batches import padded, rows_of
from hf.reference import SIX, Composition
from hf.zoo import llama
from swaa.compiler import estimate_cost
from swaa.hf import held_bytes, model_shape
from swaa.hf.cache import PolicyLayer

SINKS = "SlidingWindow(4) | SinkTokens(2)"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


@pytest.mark.parametrize("length", [1, 3, 5, 29])
@pytest.mark.parametrize("composition", SIX, ids=str)
def test_the_counted_bytes_are_the_held_ones(model: PreTrainedModel, composition: Composition, length: int) -> None:
    (row,) = rows_of(length)
    with torch.no_grad(), swaa.apply_policy(model, composition.policy):
        cache = model(row.unsqueeze(0)).past_key_values
    assert held_bytes(cache) == estimate_cost(composition.policy, model_shape(model), length).kv_bytes


def sliding_config(window: int) -> AutoConfig:
    size = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return AutoConfig.for_model("mistral", sliding_window=window, hidden_size=32, **size)


def test_a_static_cache_with_a_window_of_its_own_is_refused(model: PreTrainedModel) -> None:
    batch = padded(rows_of(20, 15))
    with swaa.apply_policy(model, SINKS), pytest.raises(swaa.UserError, match=r"dropped the first 16 tokens.*Policy"):
        model.generate(**batch, past_key_values=StaticCache(config=sliding_config(5), max_cache_len=64))


def test_a_dynamic_cache_with_a_window_of_its_own_goes_by_the_policy_instead(model: PreTrainedModel) -> None:
    batch, cache = padded(rows_of(20, 15)), DynamicCache(config=sliding_config(5))
    with swaa.apply_policy(model, SINKS):
        made = model.generate(**batch, past_key_values=cache, max_new_tokens=6, do_sample=False)
        assert all(type(layer) is PolicyLayer for layer in cache.layers)
        assert torch.equal(made, model.generate(**batch, max_new_tokens=6, do_sample=False))


def test_a_cache_that_frees_nothing_is_said_to(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    from swaa.hf.forward import _say_that_nothing_is_freed

    _say_that_nothing_is_freed.cache_clear()
    batch = padded(rows_of(20, 15))
    with swaa.apply_policy(model, SINKS), caplog.at_level(logging.WARNING, logger="swaa"):
        options = {"max_new_tokens": 3, "do_sample": False}
        static = [model.generate(**batch, **options, cache_implementation="static") for _ in range(2)]
        assert ["StaticCache keeps every key" in record.message for record in caplog.records] == [True]
        assert torch.equal(static[1], model.generate(**batch, **options))


def test_what_is_no_longer_recorded_is_freed(model: PreTrainedModel) -> None:
    """Several logits of the first forward pass may mean assisted decoding; without a crop they did not."""
    (row,) = rows_of(120)
    with torch.no_grad(), swaa.apply_policy(model, SINKS):
        cache = model(row.unsqueeze(0), logits_to_keep=5, past_key_values=DynamicCache()).past_key_values
        whole = held_bytes(cache)
        for _ in range(2):
            model(row[:1].unsqueeze(0), past_key_values=cache)
        assert held_bytes(cache) < whole / 10


def test_a_cache_needs_a_policy_and_the_policy_that_filled_it(model: PreTrainedModel) -> None:
    (row,) = rows_of(9)
    with pytest.raises(swaa.UserError, match=r"expected a model with a policy.*apply_policy"):
        swaa.PolicyCache(model)
    with torch.no_grad():
        with swaa.apply_policy(model, SINKS):
            cache = swaa.PolicyCache(model)
            model(row.unsqueeze(0), past_key_values=cache)
        with pytest.raises(swaa.UserError, match="given to a model without one"):
            model(row[:1].unsqueeze(0), past_key_values=cache)
        with (
            swaa.apply_policy(model, "SlidingWindow(7)"),
            pytest.raises(swaa.UserError, match="filled under another policy"),
        ):
            model(row[:1].unsqueeze(0), past_key_values=cache)


def test_a_cache_goes_on_outside_of_inference_mode_and_of_autocast(model: PreTrainedModel) -> None:
    (row,) = rows_of(20)
    with swaa.apply_policy(model, SINKS):
        for around in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
            with torch.no_grad():
                expected = swaa.PolicyCache(model)
                cache = swaa.PolicyCache(model)
                model(row.unsqueeze(0), past_key_values=expected)
                with around:
                    model(row.unsqueeze(0), past_key_values=cache)
                for token in rows_of(6)[0]:
                    ours, theirs = (model(token.view(1, 1), past_key_values=c).logits for c in (cache, expected))
                    torch.testing.assert_close(ours, theirs, atol=0.3, rtol=0.1)


def test_rows_whose_prompts_end_apart_are_cropped(model: PreTrainedModel) -> None:
    """Nothing is dropped yet, and the rows differ in their phase alone."""
    ids = torch.stack(rows_of(70, 70))
    with swaa.apply_policy(model, "SlidingWindow(50).in_phase('decode')"), torch.no_grad():
        cache = swaa.PolicyCache(model, prompt_lengths=torch.tensor([30, 40]))
        cache.activate_past_recording()
        model(ids[:, :45], past_key_values=cache)
        cache.crop(-40)
        again = model(ids[:, 5:], past_key_values=cache).logits
        whole = model(ids, use_cache=False, prompt_lengths=torch.tensor([30, 40])).logits
    torch.testing.assert_close(again, whole[:, 5:], atol=3e-4, rtol=1e-3)


def test_plain_weights_load_under_a_policy(model: PreTrainedModel) -> None:
    weights = model.state_dict()
    with swaa.apply_policy(model, SINKS):
        model.load_state_dict(weights)
        assert set(model.state_dict()) - set(weights) == {"policy_is_off_unless_loaded_with_swaa"}
    model.load_state_dict(weights)

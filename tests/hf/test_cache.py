"""Every way of generating from a cache that evicts: the same tokens as from a full cache under the same mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.key_oracle import BY_NAME, DECODE_WINDOWS, EIGHT, LAYERS_DIFFER, held
from hf.reference import Composition, reference
from hf.zoo import BY_TYPE

COMPOSITIONS = pytest.mark.parametrize("composition", EIGHT, ids=str)
LENGTHS = (14, 9, 11)
NEW = 10
SHRINKS = frozenset(BY_NAME) - {"fa_decode", "sinks_fa_decode_half_layers"}
"""The compositions under which some layer need not keep everything."""


@cache
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build()


def new_cache(evict: bool, prompt_lengths: Any = None) -> Cache:
    """An empty cache of the kind, to be called while the policy is on the model."""
    if evict:
        return swaa.PolicyCache(model(), prompt_lengths)
    full = DynamicCache()
    return full if prompt_lengths is None else swaa.declare_prompt(full, prompt_lengths)


def generate(batch: dict[str, Tensor], composition: Composition, evict: bool, **settings: Any) -> tuple[Tensor, Cache]:
    """The new tokens [B, N], and the cache afterwards."""
    with swaa.apply_policy(model(), composition.policy, evict=evict), torch.no_grad():
        if "prompt_lengths" in settings:
            settings["past_key_values"] = new_cache(evict, settings.pop("prompt_lengths"))
        torch.manual_seed(7)
        settings = {"max_new_tokens": NEW, "do_sample": False} | settings
        out = model().generate(**batch, **settings, return_dict_in_generate=True)
    return out.sequences[:, batch["input_ids"].shape[1] :], out.past_key_values


@cache
def one_shot(composition: Composition) -> list[list[int]]:
    """The answers to prompts of ``LENGTHS`` that are read in one pass."""
    return generate(padded(rows_of(*LENGTHS)), composition, True)[0].tolist()


def assert_same(batch: dict[str, Tensor], composition: Composition, **settings: Any) -> tuple[Tensor, Cache]:
    """Generates from both caches; what the evicting one brings is returned."""
    expected, full = generate(batch, composition, False, **settings)
    tokens, evicting = generate(batch, composition, True, **settings)
    assert tokens.tolist() == expected.tolist()
    assert evicting.get_seq_length() == full.get_seq_length()
    if composition.name in SHRINKS:  # all have a layer without FA decode
        slots = [stored.capacity for heads in held(evicting) for stored in heads]
        assert min(slots) < full.get_seq_length() - 1, "nothing was evicted"
    return tokens, evicting


@pytest.mark.parametrize("composition", [LAYERS_DIFFER, DECODE_WINDOWS], ids=str)
def test_the_compositions_of_this_file_mean_what_they_say(composition: Composition) -> None:
    """The full cache that the others are compared with, against loops."""
    rows = rows_of(*LENGTHS)
    tokens, _ = generate(padded(rows), composition, False)
    for row, new in zip(rows, tokens, strict=True):
        with reference(model(), composition.meaning, prompt=len(row)), torch.no_grad():
            logits = model()(torch.cat([row, new[:-1]]).unsqueeze(0), use_cache=False).logits[0]
        assert logits[len(row) - 1 :].argmax(-1).tolist() == new.tolist()


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "several samples": {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 4, "num_return_sequences": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True, "top_k": 0},
    "one token": {"max_new_tokens": 1},
}


@COMPOSITIONS
@pytest.mark.parametrize("way", WAYS)
def test_ways_of_generating(composition: Composition, way: str) -> None:
    assert_same(padded(rows_of(*LENGTHS)), composition, **WAYS[way])


@COMPOSITIONS
@pytest.mark.parametrize("way", ["greedy", "several samples", "beams"])
def test_from_a_cache_with_declared_prompts(composition: Composition, way: str) -> None:
    assert_same(padded(rows_of(*LENGTHS)), composition, prompt_lengths=torch.tensor(LENGTHS), **WAYS[way])


@COMPOSITIONS
@pytest.mark.parametrize("declare", [False, True])
def test_a_single_padded_sample(composition: Composition, declare: bool) -> None:
    settings = {"prompt_lengths": 11} if declare else {}
    assert_same(padded(rows_of(11), extra=3), composition, **settings)


@COMPOSITIONS
def test_a_prompt_declared_as_one_int(composition: Composition) -> None:
    assert_same(padded(rows_of(12, 12)), composition, prompt_lengths=12)


def test_a_declared_prompt_is_not_the_width() -> None:
    """Shorter than what the first forward pass holds: the rest is the beginning of the answer."""
    composition = BY_NAME["sinks_fa_decode_half_layers"]
    batch = padded(rows_of(*LENGTHS))
    assert_same(batch, composition, prompt_lengths=torch.tensor([4, 2, 8]))
    early, _ = generate(batch, composition, True, prompt_lengths=torch.tensor([4, 2, 8]))
    late, _ = generate(batch, composition, True, prompt_lengths=torch.tensor(LENGTHS))
    assert early.tolist() != late.tolist()


@COMPOSITIONS
@pytest.mark.parametrize("size", [1, 2, 5, 13, 14, 50])
def test_chunked_prefill_in_generate(composition: Composition, size: int) -> None:
    """13 leaves a tail of one token; with small chunks the first ones are nothing but padding in some rows."""
    settings = {"prompt_lengths": torch.tensor(LENGTHS), "prefill_chunk_size": size}
    tokens, cache_after = assert_same(padded(rows_of(*LENGTHS)), composition, **settings)
    assert tokens.tolist() == one_shot(composition)
    assert cache_after.get_seq_length() == max(LENGTHS) + NEW - 1


@pytest.mark.parametrize("size", [1, 4, 13])
@pytest.mark.parametrize("name", ["naive", "sinks", "half_layers", "by_heads"])
def test_chunked_prefill_of_a_phase_free_policy_needs_no_declaration(name: str, size: int) -> None:
    assert_same(padded(rows_of(*LENGTHS)), BY_NAME[name], prefill_chunk_size=size)


@COMPOSITIONS
@pytest.mark.parametrize("sizes", [[5, 5, 2], [11, 1], [4, 1, 7], [1] * 12])
def test_chunks_by_hand(composition: Composition, sizes: list[int]) -> None:
    """Logits of every position, against loops."""
    (row,) = rows_of(12)
    with reference(model(), composition.meaning, prompt=9), torch.no_grad():
        expected = model()(row.unsqueeze(0), use_cache=False).logits[0]
    with swaa.apply_policy(model(), composition.policy), torch.no_grad():
        evicting = swaa.PolicyCache(model(), 9)
        logits = torch.cat(
            [model()(part.unsqueeze(0), past_key_values=evicting).logits[0] for part in row.split(sizes)]
        )
    torch.testing.assert_close(logits, expected, **CLOSE)


def repeating(length: int) -> dict[str, Tensor]:
    """A row in which prompt lookup finds drafts."""
    row = rows_of(4)[0].repeat(length)[:length].unsqueeze(0)
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


def same_model() -> PreTrainedModel:
    """Often right."""
    return BY_TYPE["llama"].build()


def another_model() -> PreTrainedModel:
    """Hardly ever right."""
    return BY_TYPE["llama"].build(seed=3, num_hidden_layers=2)


ASSISTANTS: dict[str, Callable[[], PreTrainedModel]] = {"same": same_model, "another": another_model}


def declared_if_needed(composition: Composition, prompt: int, declare: bool) -> dict[str, Any]:
    """Phases need a declared prompt here, whether asked for or not."""
    return {"prompt_lengths": prompt} if declare or composition.by_phase else {}


@COMPOSITIONS
@pytest.mark.parametrize(("drafts", "declare"), [(1, True), (3, False), (9, True), (9, False)])
def test_prompt_lookup(composition: Composition, drafts: int, declare: bool) -> None:
    settings = declared_if_needed(composition, 14, declare)
    assert_same(repeating(14), composition, prompt_lookup_num_tokens=drafts, max_new_tokens=30, **settings)


@COMPOSITIONS
@pytest.mark.parametrize(("assistant", "declare"), [("same", True), ("another", False)])
def test_assisted_decoding(composition: Composition, assistant: str, declare: bool) -> None:
    settings = declared_if_needed(composition, 14, declare)
    assert_same(repeating(14), composition, assistant_model=ASSISTANTS[assistant](), max_new_tokens=24, **settings)


@COMPOSITIONS
@pytest.mark.parametrize("assistant", ASSISTANTS)
def test_an_assistant_with_a_policy_of_its_own(composition: Composition, assistant: str) -> None:
    """It is no concern of the model's tokens, which are its own."""
    helper = ASSISTANTS[assistant]()
    with swaa.apply_policy(helper, BY_NAME["sinks"].policy, evict=False):
        assert_same(repeating(14), composition, assistant_model=helper, max_new_tokens=24, prompt_lengths=14)


@pytest.mark.parametrize("assistant", ASSISTANTS)
def test_an_evicting_assistant_is_right_or_refused(assistant: str) -> None:
    """transformers asks for the assistant's cache to record before it is ours, and plain layers forget that."""
    expected, _ = generate(repeating(14), BY_NAME["sinks"], False, max_new_tokens=24)
    helper = ASSISTANTS[assistant]()
    with swaa.apply_policy(helper, BY_NAME["naive"].policy):
        try:
            tokens, _ = generate(repeating(14), BY_NAME["sinks"], True, max_new_tokens=24, assistant_model=helper)
        except swaa.UserError as refusal:
            assert "evict=False" in str(refusal)  # noqa: PT017
        else:
            assert tokens.tolist() == expected.tolist()


@COMPOSITIONS
def test_sampling_with_an_assistant(composition: Composition) -> None:
    assert_same(repeating(14), composition, assistant_model=same_model(), do_sample=True, top_k=0, prompt_lengths=14)


def several_turns(composition: Composition, evict: bool, own: bool = False, **of_later: Any) -> list[list[list[int]]]:
    """The answers of three turns on one cache, of a batch that is padded on the left."""
    rows = rows_of(9, 5, 7)
    batch = padded(rows)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    answers = []
    with swaa.apply_policy(model(), composition.policy, evict=evict), torch.no_grad():
        lengths = None if own else torch.tensor([9, 5, 7])
        kept: Cache = DynamicCache() if own else new_cache(evict, lengths)
        for turn, said in enumerate((0, 6, 1)):
            if said:
                question = torch.stack(rows_of(said, said, said, seed=turn))
                ids = torch.cat([ids, question], -1)
            mask = torch.cat([mask, mask.new_ones(3, ids.shape[1] - mask.shape[1])], -1)
            settings = of_later if turn else {}
            ids = model().generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=kept,
                max_new_tokens=4,
                do_sample=False,
                **settings,
            )
            answers.append(ids[:, -4:].tolist())
    return answers


@COMPOSITIONS
def test_several_turns(composition: Composition) -> None:
    assert several_turns(composition, True) == several_turns(composition, False)


@pytest.mark.parametrize("name", ["naive", "sinks", "half_layers", "by_heads"])
def test_several_turns_on_a_users_dynamic_cache(name: str) -> None:
    composition = BY_NAME[name]
    assert several_turns(composition, True, own=True) == several_turns(composition, False, own=True)


@COMPOSITIONS
@pytest.mark.parametrize("size", [1, 4])
def test_later_turns_in_chunks(composition: Composition, size: int) -> None:
    if Version(transformers.__version__) < Version("5.23"):  # 5.17 numbers the chunks of every turn from 0
        with pytest.raises(swaa.UserError, match="attention_mask: expected"):
            several_turns(composition, True, prefill_chunk_size=size)
        return
    assert several_turns(composition, True, prefill_chunk_size=size) == several_turns(composition, False)


def ragged_turns(composition: Composition, cache_of: Callable[[], Cache]) -> list[Tensor]:
    """Forward passes whose rows bring different numbers of tokens, so that there is padding in the middle."""
    mask = torch.zeros(3, 0, dtype=torch.long)
    logits = []
    kept = cache_of()
    for turn, (side, lengths) in enumerate([("left", (9, 4, 6)), ("right", (2, 5, 1)), ("left", (3, 1, 2))]):
        batch = padded(rows_of(*lengths, seed=turn), side=side)
        mask = torch.cat([mask, batch["attention_mask"]], -1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -batch["input_ids"].shape[1] :]
        with torch.no_grad():
            out = model()(batch["input_ids"], attention_mask=mask, position_ids=positions, past_key_values=kept)
        logits.append(out.logits[batch["attention_mask"].bool()])
    return logits


@COMPOSITIONS
def test_turns_of_mixed_lengths(composition: Composition) -> None:
    lengths = torch.tensor([9, 4, 6])
    with swaa.apply_policy(model(), composition.policy, evict=False):
        expected = ragged_turns(composition, lambda: swaa.declare_prompt(DynamicCache(), lengths))
    with swaa.apply_policy(model(), composition.policy):
        got = ragged_turns(composition, lambda: swaa.PolicyCache(model(), lengths))
    for turn, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(ours, theirs, **CLOSE, msg=lambda text, turn=turn: f"turn {turn}: {text}")


@COMPOSITIONS
@pytest.mark.parametrize("implementation", ["static", "dynamic", "offloaded"])
def test_cache_implementations(composition: Composition, implementation: str) -> None:
    batch = padded(rows_of(*LENGTHS))
    expected, _ = generate(batch, composition, False)
    if implementation == "offloaded" and not torch.cuda.is_available():
        pytest.skip("transformers offloads from a GPU")
    tokens, _ = generate(batch, composition, True, cache_implementation=implementation)
    assert tokens.tolist() == expected.tolist()


@COMPOSITIONS
def test_a_static_cache_is_left_alone(composition: Composition) -> None:
    batch = padded(rows_of(*LENGTHS))
    expected, _ = generate(batch, composition, False)
    static = StaticCache(config=model().config, max_cache_len=40)
    tokens, after = generate(batch, composition, True, past_key_values=static)
    assert after is static
    assert not any(hasattr(layer, "parts") for layer in after.layers)
    assert tokens.tolist() == expected.tolist()


@COMPOSITIONS
@pytest.mark.parametrize("config", [False, True])
def test_a_users_empty_cache_is_converted_in_place(composition: Composition, config: bool) -> None:
    batch = padded(rows_of(*LENGTHS))
    expected, _ = generate(batch, composition, False)
    own = DynamicCache(config=model().config) if config else DynamicCache()
    tokens, after = generate(batch, composition, True, past_key_values=own)
    assert after is own
    assert tokens.tolist() == expected.tolist()
    held(own)
    assert own.get_seq_length() == max(LENGTHS) + NEW - 1


@COMPOSITIONS
def test_a_cache_that_holds_something_is_left_alone(composition: Composition) -> None:
    """Filled without eviction, gone on with under it: nothing is lost, and nothing is wrong."""
    first, second = rows_of(12, 3)
    results = []
    for evict in (False, True):
        own = swaa.declare_prompt(DynamicCache(), 12)
        with torch.no_grad():
            with swaa.apply_policy(model(), composition.policy, evict=False):
                model()(first.unsqueeze(0), past_key_values=own)
            with swaa.apply_policy(model(), composition.policy, evict=evict):
                results.append(model()(second.unsqueeze(0), past_key_values=own).logits)
        assert own.layers[0].keys.shape[2] == 15
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@COMPOSITIONS
def test_without_eviction_a_cache_is_left_alone(composition: Composition) -> None:
    plain = DynamicCache(config=model().config)
    kinds = [type(layer) for layer in plain.layers]
    with swaa.apply_policy(model(), composition.policy, evict=False), torch.no_grad():
        out = model()(**padded(rows_of(*LENGTHS)), past_key_values=plain)
        own = model()(**padded(rows_of(*LENGTHS)), use_cache=True).past_key_values
    assert out.past_key_values is plain
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in own.layers] == kinds
    assert {layer.keys.shape[2] for layer in (*plain.layers, *own.layers)} == {max(LENGTHS)}


def test_in_training_mode_a_cache_is_left_alone() -> None:
    training = BY_TYPE["llama"].build().train()
    with swaa.apply_policy(training, BY_NAME["naive"].policy):
        kept = training(**padded(rows_of(*LENGTHS)), use_cache=True).past_key_values
    assert {layer.keys.shape[2] for layer in kept.layers} == {max(LENGTHS)}


def test_packed_documents_are_left_alone() -> None:
    row = rows_of(14)[0].unsqueeze(0)
    positions = torch.tensor([[*range(8), *range(6)]])
    with swaa.apply_policy(model(), BY_NAME["naive"].policy), torch.no_grad():
        cached = model()(row, position_ids=positions, use_cache=True)
        expected = model()(row, position_ids=positions, use_cache=False)
    torch.testing.assert_close(cached.logits, expected.logits, **CLOSE)
    assert {layer.keys.shape[2] for layer in cached.past_key_values.layers} == {14}


def step(kept: Cache, mask: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass of [B, Q] more tokens: their logits, and the mask so far."""
    mask = torch.cat([mask, torch.ones_like(tokens)], -1)
    positions = (mask.cumsum(-1) - 1)[:, -tokens.shape[1] :]
    out = model()(tokens, attention_mask=mask, position_ids=positions, past_key_values=kept)
    return out.logits, mask


@COMPOSITIONS
def test_a_copy_goes_its_own_way(composition: Composition) -> None:
    batch = padded(rows_of(*LENGTHS))
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    ways = [torch.stack(rows_of(6, 6, 6, seed=seed)) for seed in (5, 6)]

    def run(evict: bool, copies: bool) -> list[Tensor]:
        logits = []
        with swaa.apply_policy(model(), composition.policy, evict=evict), torch.no_grad():
            kept = [new_cache(evict)]
            model()(**batch, position_ids=positions, past_key_values=kept[0])
            if copies:
                kept.append(copy.deepcopy(kept[0]))
            else:
                kept.append(new_cache(evict))
                model()(**batch, position_ids=positions, past_key_values=kept[1])
            masks = [batch["attention_mask"]] * 2
            for at in range(6):  # in turn, so that shared memory would show
                for which, way in enumerate(ways):
                    got, masks[which] = step(kept[which], masks[which], way[:, at : at + 1])
                    logits.append(got)
        return logits

    for ours, theirs in zip(run(True, copies=True), run(False, copies=False), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@COMPOSITIONS
def test_a_cache_is_used_again_after_a_reset(composition: Composition) -> None:
    first, second = (padded(rows_of(*lengths, seed=seed)) for seed, lengths in ((1, LENGTHS), (2, (8, 12))))
    expected, _ = generate(second, composition, False)
    _, kept = generate(first, composition, True)
    assert kept.get_seq_length()
    kept.reset()
    assert kept.get_seq_length() == 0
    tokens, after = generate(second, composition, True, past_key_values=kept)
    assert after is kept
    assert tokens.tolist() == expected.tolist()


@COMPOSITIONS
def test_gradients_through_a_cache(composition: Composition) -> None:
    """In eval mode a cache evicts with autograd watching, too."""
    first, second = rows_of(12, 3)
    gradients = []
    for evict in (False, True):
        with swaa.apply_policy(model(), composition.policy, evict=evict):
            kept = new_cache(evict, 12)
            model()(first.unsqueeze(0), past_key_values=kept)
            for token in second:
                out = model()(token.view(1, 1), past_key_values=kept)
        weight = model().get_input_embeddings().weight
        (gradient,) = torch.autograd.grad(out.logits.square().sum(), [weight])
        gradients.append(gradient)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("composition", [BY_NAME["sinks"], DECODE_WINDOWS], ids=str)
def test_prefill_in_inference_mode_and_decoding_outside(composition: Composition) -> None:
    (row,) = rows_of(14)
    results = []
    for evict in (False, True):
        with swaa.apply_policy(model(), composition.policy, evict=evict):
            kept = new_cache(evict, 12)
            with torch.inference_mode():
                model()(row[:12].unsqueeze(0), past_key_values=kept)
            with torch.no_grad():
                steps = [model()(token.view(1, 1), past_key_values=kept).logits for token in row[12:]]
        results.append(torch.cat(steps))
    torch.testing.assert_close(results[1], results[0], **CLOSE)

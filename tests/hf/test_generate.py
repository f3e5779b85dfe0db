"""generate() and decoding by hand under a policy: every way of decoding, and the ways that are refused."""

from __future__ import annotations

import logging
import warnings
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.reference import SIX, Composition, reference
from hf.zoo import BY_TYPE

BY_NAME = {composition.name: composition for composition in SIX}
PHASED, PHASE_FREE = BY_NAME["sinks_fa_decode_half_layers"], BY_NAME["sinks"]
BOTH = pytest.mark.parametrize("composition", [PHASED, PHASE_FREE], ids=str)
LENGTHS = (12, 7)
NEW = 8


@cache
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build()


def reference_logits(row: Tensor, composition: Composition, prompt: int) -> Tensor:
    """[T, V], of one row, computed at once."""
    with reference(model(), composition.meaning, prompt=prompt), torch.no_grad():
        return model()(row.unsqueeze(0), use_cache=False).logits[0]


def reference_greedy(row: Tensor, composition: Composition, new: int = NEW, prompt: int | None = None) -> list[int]:
    """Greedy tokens, computed step by step from nothing."""
    whole = row
    for _ in range(new):
        logits = reference_logits(whole, composition, len(row) if prompt is None else prompt)
        whole = torch.cat([whole, logits[-1:].argmax(-1)])
    return whole[len(row) :].tolist()


@BOTH
def test_greedy(composition: Composition) -> None:
    rows = rows_of(*LENGTHS)
    with swaa.apply_policy(model(), composition.policy):
        out = model().generate(**padded(rows), max_new_tokens=NEW, do_sample=False)
    assert out[:, -NEW:].tolist() == [reference_greedy(row, composition) for row in rows]


@BOTH
def test_sampling_equals_sampling_from_the_references_logits(composition: Composition) -> None:
    rows = rows_of(*LENGTHS)
    with swaa.apply_policy(model(), composition.policy):
        torch.manual_seed(7)
        out = model().generate(**padded(rows), max_new_tokens=NEW, do_sample=True, top_k=0, temperature=0.7)
    torch.manual_seed(7)
    whole = rows
    for _ in range(NEW):
        logits = [reference_logits(row, composition, length)[-1] for row, length in zip(whole, LENGTHS, strict=True)]
        drawn = torch.multinomial((torch.stack(logits) / 0.7).softmax(-1), num_samples=1)
        whole = [torch.cat([row, new]) for row, new in zip(whole, drawn, strict=True)]
    assert out[:, -NEW:].tolist() == [row[-NEW:].tolist() for row in whole]


@BOTH
def test_beams(composition: Composition) -> None:
    rows = rows_of(*LENGTHS)
    beams = {"max_new_tokens": NEW, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    with swaa.apply_policy(model(), composition.policy):
        out = model().generate(**padded(rows), **beams)[:, -NEW:]
    expected = []
    for row in rows:
        with reference(model(), composition.meaning, prompt=len(row)):
            expected += model().generate(row.unsqueeze(0), **beams, use_cache=False)[:, -NEW:].tolist()
    assert out.tolist() == expected


@BOTH
def test_beams_over_a_declared_prompt(composition: Composition) -> None:
    rows = rows_of(*LENGTHS)
    beams = {"max_new_tokens": NEW, "num_beams": 3, "do_sample": False}
    with swaa.apply_policy(model(), composition.policy):
        expected = model().generate(**padded(rows), **beams)
        cache = swaa.declare_prompt(DynamicCache(), torch.tensor(LENGTHS))
        out = model().generate(**padded(rows), **beams, past_key_values=cache)
    assert out.tolist() == expected.tolist()


@BOTH
@pytest.mark.parametrize("implementation", ["static", "dynamic"])
def test_cache_implementations(composition: Composition, implementation: str) -> None:
    rows = rows_of(*LENGTHS)
    with swaa.apply_policy(model(), composition.policy):
        out = model().generate(**padded(rows), max_new_tokens=NEW, do_sample=False, cache_implementation=implementation)
    assert out[:, -NEW:].tolist() == [reference_greedy(row, composition) for row in rows]


@BOTH
def test_without_a_cache_every_step_is_a_prompt_of_its_own(composition: Composition) -> None:
    """``use_cache=False`` hides where the prompt ended, so phase policies refuse it by name."""
    rows = rows_of(*LENGTHS)
    with swaa.apply_policy(model(), composition.policy):
        if composition.by_phase:
            with pytest.raises(swaa.UserError, match="use_cache"):
                model().generate(**padded(rows), max_new_tokens=NEW, do_sample=False, use_cache=False)
            return
        out = model().generate(**padded(rows), max_new_tokens=NEW, do_sample=False, use_cache=False)
    assert out[:, -NEW:].tolist() == [reference_greedy(row, composition) for row in rows]


def decode_by_hand(batch: dict[str, Tensor], steps: int, **first: object) -> list[list[int]]:
    """Greedy decoding in the caller's own loop."""
    mask = batch["attention_mask"]
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model()(**batch, position_ids=positions, use_cache=True, **first)
        tokens = [out.logits[:, -1].argmax(-1)]
        for _ in range(steps - 1):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], -1)
            out = model()(
                tokens[-1].unsqueeze(-1),
                attention_mask=mask,
                position_ids=mask.sum(-1, keepdim=True) - 1,
                past_key_values=out.past_key_values,
            )
            tokens.append(out.logits[:, -1].argmax(-1))
    return torch.stack(tokens, 1).tolist()


@BOTH
@pytest.mark.parametrize("cache_type", ["models own", "dynamic", "static"])
def test_a_decode_loop_by_hand(composition: Composition, cache_type: str) -> None:
    rows = rows_of(*LENGTHS)
    first: dict[str, object] = {}
    if cache_type == "dynamic":
        first["past_key_values"] = DynamicCache(config=model().config)
    if cache_type == "static":
        first["past_key_values"] = StaticCache(config=model().config, max_cache_len=40)
    with swaa.apply_policy(model(), composition.policy):
        tokens = decode_by_hand(padded(rows), NEW, **first)
    assert tokens == [reference_greedy(row, composition) for row in rows]


def test_a_decode_loop_over_a_prompt_with_the_beginning_of_the_answer() -> None:
    rows = rows_of(*LENGTHS)
    lengths = torch.tensor([8, 5])
    with swaa.apply_policy(model(), PHASED.policy):
        tokens = decode_by_hand(padded(rows), NEW, prompt_lengths=lengths)
    expected = [reference_greedy(row, PHASED, prompt=int(end)) for row, end in zip(rows, lengths, strict=True)]
    assert tokens == expected
    assert tokens != [reference_greedy(row, PHASED) for row in rows]


WAY_OUT = "Say where: swaa.declare_prompt(cache, prompt_lengths)"


def in_chunks(row: Tensor, cache: DynamicCache, sizes: list[int]) -> Tensor:
    """[T, V]: logits of a row given to a cache in pieces."""
    with torch.no_grad():
        pieces = [model()(part.unsqueeze(0), past_key_values=cache).logits[0] for part in row.split(sizes)]
    return torch.cat(pieces)


@BOTH
@pytest.mark.parametrize("sizes", [[5, 5, 2], [11, 1], [4, 1, 7]])
def test_chunked_prefill(composition: Composition, sizes: list[int]) -> None:
    (row,) = rows_of(12)
    with swaa.apply_policy(model(), composition.policy):
        cache = DynamicCache()
        if composition.by_phase:
            swaa.declare_prompt(cache, 12)
        logits = in_chunks(row, cache, sizes)
    torch.testing.assert_close(logits, reference_logits(row, composition, 12), **CLOSE)


def test_chunked_prefill_without_a_declared_prompt_is_refused() -> None:
    (row,) = rows_of(12)
    with swaa.apply_policy(model(), PHASED.policy):
        with pytest.raises(swaa.UserError, match="chunked prefill, assisted decoding or another turn") as error:
            in_chunks(row, DynamicCache(), [5, 5, 2])
        assert WAY_OUT in str(error.value)
        with pytest.raises(swaa.UserError, match="depends on where the prompt ends"):
            model().generate(row.unsqueeze(0), max_new_tokens=2, prefill_chunk_size=5)


@BOTH
def test_chunked_prefill_in_generate(composition: Composition) -> None:
    rows = rows_of(*LENGTHS)
    with swaa.apply_policy(model(), composition.policy):
        cache = swaa.declare_prompt(DynamicCache(), torch.tensor(LENGTHS))
        out = model().generate(
            **padded(rows), max_new_tokens=NEW, do_sample=False, prefill_chunk_size=11, past_key_values=cache
        )
    assert out[:, -NEW:].tolist() == [reference_greedy(row, composition) for row in rows]


@pytest.mark.parametrize("by", ["declare_prompt", "prompt_lengths"])
def test_a_cache_that_was_reset_forgets_its_prompt(by: str) -> None:
    (row,) = rows_of(12)
    cache = StaticCache(config=model().config, max_cache_len=20)
    given = {"prompt_lengths": torch.tensor([4])} if by == "prompt_lengths" else {}
    if by == "declare_prompt":
        swaa.declare_prompt(cache, 4)
    with swaa.apply_policy(model(), PHASED.policy), torch.no_grad():
        first = model()(row.unsqueeze(0), past_key_values=cache, **given).logits[0]
        cache.reset()
        second = model()(row.unsqueeze(0), past_key_values=cache).logits[0]
        cache.reset()
        with pytest.raises(swaa.UserError, match="assisted decoding"):
            model()(row.unsqueeze(0), past_key_values=cache, logits_to_keep=3)
    torch.testing.assert_close(first, reference_logits(row, PHASED, 4), **CLOSE)
    torch.testing.assert_close(second, reference_logits(row, PHASED, 12), **CLOSE)


@BOTH
def test_several_turns_on_one_cache(composition: Composition) -> None:
    first, second = rows_of(9, 5)
    with swaa.apply_policy(model(), composition.policy):
        cache = DynamicCache()
        if composition.by_phase:
            swaa.declare_prompt(cache, 9)
        one = model().generate(first.unsqueeze(0), max_new_tokens=4, do_sample=False, past_key_values=cache)[0]
        whole = torch.cat([one, second])
        two = model().generate(whole.unsqueeze(0), max_new_tokens=4, do_sample=False, past_key_values=cache)[0]
    assert one[9:].tolist() == reference_greedy(first, composition, 4)
    assert two[len(whole) :].tolist() == reference_greedy(whole, composition, 4, prompt=9)


def test_a_second_turn_without_a_declared_prompt_is_refused() -> None:
    first, second = rows_of(9, 5)
    with swaa.apply_policy(model(), PHASED.policy):
        cache = DynamicCache()
        one = model().generate(first.unsqueeze(0), max_new_tokens=4, do_sample=False, past_key_values=cache)[0]
        whole = torch.cat([one, second]).unsqueeze(0)
        with pytest.raises(swaa.UserError, match="tokens were added to a cache of 12") as error:
            model().generate(whole, max_new_tokens=4, do_sample=False, past_key_values=cache)
    assert WAY_OUT in str(error.value)


def test_a_cache_filled_before_the_policy_is_refused() -> None:
    (row,) = rows_of(9)
    cache = DynamicCache()
    in_chunks(row, cache, [9])
    with (
        swaa.apply_policy(model(), PHASED.policy),
        pytest.raises(swaa.UserError, match="this cache was filled before the policy was applied"),
    ):
        in_chunks(row[:1], cache, [1])


def test_a_cropped_cache_must_be_declared() -> None:
    (row,) = rows_of(12)
    with swaa.apply_policy(model(), PHASED.policy):
        cache = DynamicCache()
        in_chunks(row, cache, [12])
        cache.crop(-4)
        with pytest.raises(swaa.UserError, match="1 tokens were added to a cache of 8 whose prompt had ended"):
            in_chunks(row[:1], cache, [1])
        swaa.declare_prompt(cache, 12)
        logits = in_chunks(row[8:], cache, [1, 3])
    torch.testing.assert_close(logits, reference_logits(row, PHASED, 12)[8:], **CLOSE)


@BOTH
def test_a_mask_for_tokens_still_to_come_is_cut(composition: Composition) -> None:
    """Callers with a static cache hand over one mask of its full length."""
    rows = rows_of(*LENGTHS)
    batch = padded(rows)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    batch["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 5), value=1)
    with swaa.apply_policy(model(), composition.policy), torch.no_grad():
        out = model()(**batch, position_ids=positions, past_key_values=DynamicCache()).logits
    for row, got in zip(rows, out, strict=True):
        expected = reference_logits(row, composition, len(row))
        torch.testing.assert_close(got[-len(row) :], expected, **CLOSE)


def repeating(length: int) -> Tensor:
    """A row in which prompt lookup finds drafts."""
    return rows_of(4)[0].repeat(length)[:length]


DRAFTS = {
    "prompt lookup": lambda: {"prompt_lookup_num_tokens": 3},
    "assistant": lambda: {"assistant_model": BY_TYPE["llama"].build(seed=0, num_hidden_layers=3)},
}


@BOTH
@pytest.mark.parametrize("drafts", DRAFTS)
def test_assisted_decoding(composition: Composition, drafts: str) -> None:
    row = repeating(14)
    with swaa.apply_policy(model(), composition.policy):
        cache = {"past_key_values": swaa.declare_prompt(DynamicCache(), 14)} if composition.by_phase else {}
        out = model().generate(row.unsqueeze(0), max_new_tokens=NEW, do_sample=False, **DRAFTS[drafts](), **cache)
    assert out[0, 14:].tolist() == reference_greedy(row, composition)


@pytest.mark.parametrize("drafts", DRAFTS)
def test_assisted_decoding_without_a_declared_prompt_is_refused(drafts: str) -> None:
    with (
        swaa.apply_policy(model(), PHASED.policy),
        pytest.raises(swaa.UserError, match="assisted decoding") as error,
    ):
        model().generate(repeating(14).unsqueeze(0), max_new_tokens=4, do_sample=False, **DRAFTS[drafts]())
    assert WAY_OUT in str(error.value)


@pytest.mark.parametrize("bad", [torch.tensor([1.5]), torch.tensor([-1]), torch.tensor([[3]])], ids=str)
def test_declaring_a_bad_prompt(bad: Tensor) -> None:
    with pytest.raises(swaa.UserError, match="prompt_lengths: expected ints >= 0, one per sample"):
        swaa.declare_prompt(DynamicCache(), bad)


def test_a_declared_prompt_of_another_batch_is_refused() -> None:
    cache = swaa.declare_prompt(DynamicCache(), torch.tensor([3, 4, 5]))
    with (
        swaa.apply_policy(model(), PHASED.policy),
        pytest.raises(swaa.UserError, match=r"prompt_lengths: expected one int per sample \(2\)"),
    ):
        model()(**padded(rows_of(*LENGTHS)), past_key_values=cache)


def test_a_mask_that_is_too_short_is_refused() -> None:
    ids = torch.stack(rows_of(9, 9))
    with (
        swaa.apply_policy(model(), PHASE_FREE.policy),
        pytest.raises(swaa.UserError, match="attention_mask: expected 9 columns .* got 6. Pass the mask of the whole"),
    ):
        model()(ids, attention_mask=torch.ones(2, 6, dtype=torch.long))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt_oss"])
def test_generate_warns_of_nothing_that_it_does_not_warn_of_without_a_policy(
    model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        own = BY_TYPE[model_type].build()
        caplog.clear()
        with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
            warnings.simplefilter("always")
            if policied:
                swaa.apply_policy(own, PHASED.policy)
            own.generate(**padded(rows_of(*LENGTHS)), max_new_tokens=3, do_sample=False)
        logged = [record.getMessage() for record in caplog.records if not record.name.startswith("swaa")]
        return sorted([str(warning.message) for warning in caught] + logged)

    policied = False
    before = said()
    policied = True
    assert said() == before

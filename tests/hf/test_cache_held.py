"""Which keys an evicting cache holds: exactly the live ones, found by loops; and what it refuses."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.key_oracle import BY_NAME, DECODE_WINDOWS, EIGHT, SPARE, heads_of, held, keeps_all, live, storage_bytes
from hf.reference import FULL, Composition
from hf.zoo import BY_TYPE
from swaa import FullAttention, SinkTokens, SlidingWindow, rule, stack
from swaa.hf import held_bytes

COMPOSITIONS = pytest.mark.parametrize("composition", EIGHT, ids=str)
LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 8
BYTES_A_KEY = 2 * HEAD_DIM * 4
"""Of a key and its value, of one KV head, in float32."""


@cache
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build(max_position_embeddings=4096)


def feed(kept: Cache, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """One forward pass without gradients; ``mask`` covers all slots so far. Returns the logits."""
    positions = None
    if mask is not None:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.no_grad():
        return model()(ids, attention_mask=mask, position_ids=positions, past_key_values=kept).logits


def assert_holds(
    kept: Cache, composition: Composition, following: tuple[int, ...], prompts: tuple[int, ...], slack: int = 0
) -> None:
    """Every KV head holds what is live and, but for ``slack`` slots, nothing else.

    Args:
        following: of each sample, the position of its next token.
        prompts: of each sample, the tokens of its prompt.
    """
    layers = held(kept)
    assert len(layers) == LAYERS
    for index, heads in enumerate(layers):
        assert len(heads) == KV_HEADS
        for kv_head, stored in enumerate(heads):
            needed = [
                list(live(composition, index, heads_of(kv_head, KV_HEADS), after, prompt))
                for after, prompt in zip(following, prompts, strict=True)
            ]
            longest = max(map(len, needed))
            spare = slack
            if slack and keeps_all(composition, index, heads_of(kv_head, KV_HEADS)):
                spare += SPARE  # every token needs a slot: these make the copying rare
            assert longest <= stored.capacity <= longest + spare, (index, kv_head)
            for row, positions in enumerate(needed):
                got = stored.of_row(row)
                assert len(set(got)) == len(got), "a key is held twice"
                assert set(positions) <= set(got), (index, kv_head, row)
                if not slack:
                    assert got == positions, (index, kv_head, row)


@COMPOSITIONS
@pytest.mark.parametrize("lengths", [(16,), (16, 16), (16, 9, 12), (3, 2), (7, 1, 4), (1,)], ids=str)
def test_after_prefill_exactly_the_live_keys_are_held(composition: Composition, lengths: tuple[int, ...]) -> None:
    batch = padded(rows_of(*lengths))
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model())
        feed(kept, batch["input_ids"], batch["attention_mask"])
    assert_holds(kept, composition, lengths, lengths)
    assert (
        held_bytes(kept)
        == storage_bytes(kept)
        == len(lengths) * BYTES_A_KEY * sum(stored.capacity for heads in held(kept) for stored in heads)
    )


@COMPOSITIONS
@pytest.mark.parametrize("how", ["models own", "users own", "generate", "right padding", "declared"])
def test_however_the_cache_came_about(composition: Composition, how: str) -> None:
    lengths = (16, 9, 12)
    batch = padded(rows_of(*lengths), side="right" if how == "right padding" else "left")
    with swaa.apply_policy(model(), composition.policy), torch.no_grad():
        if how == "generate":
            settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "do_sample": False}
            kept = model().generate(**batch, **settings).past_key_values
        elif how == "models own":
            kept = model()(**batch, use_cache=True).past_key_values
        else:
            declared = torch.tensor(lengths) if how == "declared" else None
            kept = DynamicCache() if how == "users own" else swaa.PolicyCache(model(), declared)
            feed(kept, batch["input_ids"], batch["attention_mask"])
    assert_holds(kept, composition, lengths, lengths)


@COMPOSITIONS
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_single_padded_sample(composition: Composition, side: str) -> None:
    batch = padded(rows_of(16), side=side, extra=3)
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model())
        feed(kept, batch["input_ids"], batch["attention_mask"])
    assert_holds(kept, composition, (16,), (16,))


def test_the_figures_of_the_issue() -> None:
    """(window - 1 + sinks) / S of full, on every layer."""
    ids = rows_of(200)[0].unsqueeze(0)
    sizes = []
    for policy in (FullAttention(), SlidingWindow(16) | SinkTokens(3)):
        with swaa.apply_policy(model(), policy):
            kept = swaa.PolicyCache(model())
            feed(kept, ids)
        sizes.append(held_bytes(kept))
        assert kept.get_seq_length() == 200
        assert [kept.get_seq_length(layer) for layer in range(LAYERS)] == [200] * LAYERS
    assert sizes[0] == LAYERS * KV_HEADS * 200 * BYTES_A_KEY
    assert sizes[1] * 200 == sizes[0] * (16 - 1 + 3)


def test_nothing_else_keeps_the_prompts_keys_alive() -> None:
    """No tensor as long as the prompt is left, once its forward pass is over."""
    length = 193  # no other tensor has this size
    with swaa.apply_policy(model(), SlidingWindow(4)):
        kept = swaa.PolicyCache(model())
        feed(kept, rows_of(length)[0].unsqueeze(0))
        gc.collect()
        found = [
            tuple(thing.shape)
            for thing in gc.get_objects()
            if issubclass(type(thing), Tensor) and thing.is_floating_point() and length in thing.shape
        ]
    assert found == []
    assert storage_bytes(kept) == LAYERS * KV_HEADS * 3 * BYTES_A_KEY


@COMPOSITIONS
def test_the_keys_held_are_those_of_their_positions(composition: Composition) -> None:
    """Bit by bit those of a full cache in the first layer, and close to them in the others."""
    lengths = (16, 9, 12)
    batch = padded(rows_of(*lengths))
    stored = {}
    for evict in (False, True):
        with swaa.apply_policy(model(), composition.policy, evict=evict):
            stored[evict] = DynamicCache()
            feed(stored[evict], batch["input_ids"], batch["attention_mask"])
    for index, heads in enumerate(held(stored[True])):
        full = stored[False].layers[index]
        for kv_head, ours in enumerate(heads):
            for row, length in enumerate(lengths):
                for slot, position in enumerate(ours.positions[row].tolist()):
                    if position < 0:
                        continue
                    at = max(lengths) - length + position
                    close = CLOSE if index else {"atol": 0.0, "rtol": 0.0}
                    torch.testing.assert_close(ours.keys[row, slot], full.keys[row, kv_head, at], **close)
                    torch.testing.assert_close(ours.values[row, slot], full.values[row, kv_head, at], **close)


def read_in_chunks(kept: Cache, lengths: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    """Feeds the prompts, and yields how many tokens of each have come in."""
    batch, width = padded(rows_of(*lengths)), max(lengths)
    for start in range(0, width, size):
        stop = min(start + size, width)
        feed(kept, batch["input_ids"][:, start:stop], batch["attention_mask"][:, :stop])
        yield tuple(max(0, length - (width - stop)) for length in lengths)


@COMPOSITIONS
@pytest.mark.parametrize("size", [1, 2, 5, 15, 16])
def test_chunked_prefill_holds_what_is_live(composition: Composition, size: int) -> None:
    lengths = (16, 9, 12)
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model(), torch.tensor(lengths))
        for came in read_in_chunks(kept, lengths, size):
            assert_holds(kept, composition, came, lengths, slack=0 if min(size, 16) == 16 else 16)


@pytest.mark.parametrize("size", [5, 30, 45])
@pytest.mark.parametrize("lengths", [(120,), (120, 70)], ids=str)
@pytest.mark.parametrize("name", ["naive", "sinks", "half_layers", "by_heads"])
def test_chunked_prefill_holds_at_most_a_window_and_a_chunk(name: str, lengths: tuple[int, ...], size: int) -> None:
    composition = BY_NAME[name]
    sliding = [1] if name == "half_layers" else [0, 1, 2]
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model())
        for _ in read_in_chunks(kept, lengths, size):
            layers = held(kept)
            assert max(stored.capacity for layer in sliding for stored in layers[layer]) <= 7 + size
            assert held_bytes(kept) == storage_bytes(kept)


@pytest.mark.parametrize("sizes", [(400,), (390, 10), (390, 1, 9), (300, 100)], ids=str)
def test_a_prompt_that_decoding_does_not_need_is_given_back(sizes: tuple[int, ...]) -> None:
    """Full attention in prefill, a window in decode: at the latest once decoding begins."""
    ids = rows_of(400)[0].unsqueeze(0)
    with swaa.apply_policy(model(), SlidingWindow(4).in_phase("decode")):
        kept = swaa.PolicyCache(model(), 400)
        for part in ids.split(sizes, 1):
            feed(kept, part)
        feed(kept, ids[:, :1])
        assert held_bytes(kept) == storage_bytes(kept) <= LAYERS * KV_HEADS * 4 * BYTES_A_KEY


@COMPOSITIONS
@pytest.mark.parametrize("lengths", [(16,), (16, 9, 12), (2, 1)], ids=str)
def test_while_decoding_the_live_keys_are_held(composition: Composition, lengths: tuple[int, ...]) -> None:
    batch = padded(rows_of(*lengths))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model())
        feed(kept, ids, mask)
        for after in range(1, 20):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], -1)
            feed(kept, torch.full((len(mask), 1), 3 + after), mask)
            following = tuple(length + after for length in lengths)
            assert_holds(kept, composition, following, lengths, slack=1)
            assert held_bytes(kept) == storage_bytes(kept)


@pytest.mark.parametrize("lengths", [(20,), (20, 11)], ids=str)
@pytest.mark.parametrize("name", ["naive", "sinks", "half_layers", "by_heads", DECODE_WINDOWS.name])
def test_sizes_stay_the_same_for_200_tokens(name: str, lengths: tuple[int, ...]) -> None:
    composition = BY_NAME[name]
    batch = padded(rows_of(*lengths))
    mask = batch["attention_mask"]
    sliding = [1] if name == "half_layers" else [0, 1, 2]
    seen: set[tuple[int, ...]] = set()
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model())
        feed(kept, batch["input_ids"], mask)
        for after in range(200):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], -1)
            feed(kept, torch.full((len(mask), 1), 3 + after % 30), mask)
            layers = held(kept)
            seen.add(tuple(stored.capacity for layer in sliding for stored in layers[layer]))
    assert len(seen) == 1
    window_and_sinks = {"naive": (5, 5), "sinks": (6, 6), "half_layers": (3, 3), "by_heads": (7, 7)}
    most = window_and_sinks.get(name, (4, 8))
    assert all(capacity <= most[index % KV_HEADS] for index, capacity in enumerate(seen.pop()))
    assert kept.get_seq_length() == 220
    if name == "half_layers":
        assert held(kept)[0][0].of_row(0) == list(range(220))


# ---------------------------------------------------------------------------------------------- parts by head


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        (stack(rule(SlidingWindow(3), heads=[0, 1]), rule(SlidingWindow(6))), {(0,): 2, (1,): 5}),
        (stack(rule(SlidingWindow(3), heads=[0, 3]), rule(SlidingWindow(6))), {(0, 1): 5}),
        (stack(rule(SlidingWindow(3), heads=[0, 1]), rule(FullAttention())), {(0,): 2, (1,): 16}),
        (stack(rule(SinkTokens(2), heads=[3]), rule(SlidingWindow(4))), {(0,): 3, (1,): 5}),
        (SlidingWindow(4), {(0, 1): 3}),
    ],
    ids=str,
)
def test_heads_that_keep_the_same_share_a_part(policy: Any, parts: dict[tuple[int, ...], int]) -> None:
    with swaa.apply_policy(model(), policy):
        kept = swaa.PolicyCache(model())
        feed(kept, rows_of(16)[0].unsqueeze(0))
    for layer in kept.layers:
        assert {tuple(part.kv_heads): part.keys.shape[2] for part in layer.parts} == parts


def test_full_attention_keeps_everything() -> None:
    batch = padded(rows_of(16, 9))
    with swaa.apply_policy(model(), FullAttention()):
        kept = swaa.PolicyCache(model())
        feed(kept, batch["input_ids"], batch["attention_mask"])
    assert_holds(kept, FULL, (16, 9), (16, 9))


@pytest.mark.parametrize("window", [1, 2])
def test_a_window_of_one_keeps_nothing(window: int) -> None:
    with swaa.apply_policy(model(), SlidingWindow(window)):
        kept = swaa.PolicyCache(model())
        feed(kept, rows_of(9)[0].unsqueeze(0))
        assert held_bytes(kept) == LAYERS * KV_HEADS * (window - 1) * BYTES_A_KEY
        assert kept.get_seq_length() == 9
        logits = feed(kept, torch.tensor([[5, 6]]))
        with torch.no_grad():
            expected = model()(torch.cat([rows_of(9)[0], torch.tensor([5, 6])]).unsqueeze(0), use_cache=False).logits
    torch.testing.assert_close(logits, expected[:, -2:], **CLOSE)


# ------------------------------------------------------------------------------------- recording, cropping


def test_while_recording_nothing_is_dropped_until_the_next_crop() -> None:
    composition = BY_NAME["sinks"]
    row = rows_of(16)[0].unsqueeze(0)
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model())
        feed(kept, row)
        kept.activate_past_recording()
        feed(kept, row[:, :6])
        feed(kept, row[:, 6:7])
        assert held(kept)[0][0].of_row(0) == [0, 1, 13, 14, 15, *range(16, 23)]
        kept.crop(-5)
        assert kept.get_seq_length() == 18
        assert [stored.of_row(0) for heads in held(kept) for stored in heads] == [[0, 1, 15, 16, 17]] * 6
        feed(kept, row[:, :4])
        assert held(kept)[0][0].of_row(0) == [0, 1, 15, 16, 17, *range(18, 22)], "it goes on recording"
        kept.crop(0)
        assert kept.get_seq_length() == 22
        assert [stored.of_row(0) for heads in held(kept) for stored in heads] == [[0, 1, 19, 20, 21]] * 6


def test_recording_asked_for_before_the_prefill() -> None:
    (row,) = rows_of(16)
    with swaa.apply_policy(model(), BY_NAME["sinks"].policy):
        kept = swaa.PolicyCache(model())
        kept.activate_past_recording()
        feed(kept, row.unsqueeze(0))
        assert held(kept)[0][0].of_row(0) == list(range(16))
        kept.crop(-9)
        logits = feed(kept, row[7:].unsqueeze(0))[0]
        with torch.no_grad():
            expected = model()(row.unsqueeze(0), use_cache=False).logits[0, 7:]
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_a_crop_by_a_tensor_counts_as_a_number_does() -> None:
    """transformers 5.17's assisted decoding passes one, and changes of it must not reach the cache's own count."""
    (row,) = rows_of(16)
    with swaa.apply_policy(model(), BY_NAME["sinks"].policy):
        kept = swaa.PolicyCache(model())
        kept.activate_past_recording()
        feed(kept, row.unsqueeze(0))
        kept.crop(torch.tensor(-3))
        assert type(kept.get_seq_length()) is int
        assert kept.get_seq_length() == 13
        feed(kept, row[:2].unsqueeze(0))
        assert kept.get_seq_length() == 15
        assert held(kept)[0][0].of_row(0) == [0, 1, *range(10, 15)]


def test_a_plain_cache_cannot_be_told_to_record_before_it_is_converted() -> None:
    """transformers' layers have no such method and forget the call; going back is refused, not wrong."""
    with swaa.apply_policy(model(), BY_NAME["sinks"].policy):
        kept = DynamicCache(config=model().config)
        kept.activate_past_recording()
        feed(kept, rows_of(16)[0].unsqueeze(0))
        with pytest.raises(swaa.UserError, match=r"swaa.PolicyCache\(model\)|evict=False"):
            kept.crop(-9)


CROPS = {
    # tokens of the prompt -> how many may be dropped, when nothing was recorded
    "naive": {3: 2, 4: 3, 5: 0, 16: 0},
    "sinks": {3: 2, 5: 4, 6: 0, 16: 0},
    "fa_decode": {3: 2, 16: 15},
    "half_layers": {2: 1, 3: 0, 16: 0},
    "by_heads": {6: 5, 7: 0, 16: 0},
    DECODE_WINDOWS.name: {3: 2, 4: 0, 16: 0},
}


@pytest.mark.parametrize(
    ("name", "length", "most"),
    [(name, length, most) for name, of_length in CROPS.items() for length, most in of_length.items()],
)
def test_how_far_back_a_crop_may_reach(name: str, length: int, most: int) -> None:
    """As far as no dropped key comes into sight again. Otherwise it is refused, and changes nothing.

    Going all the way back to the sinks needs nothing that was dropped, and may be refused all the same.
    """
    composition = BY_NAME[name]
    (row,) = rows_of(length)
    for count in range(1, length):
        loses = crop_loses(composition, length, count)
        assert loses == (count > most) or count > most + 1, "the table is wrong"
        with swaa.apply_policy(model(), composition.policy):
            kept = swaa.PolicyCache(model(), length)
            feed(kept, row.unsqueeze(0))
            left = length - count
            if count <= most:
                kept.crop(-count)
            else:
                try:
                    kept.crop(-count)
                except swaa.UserError as refusal:
                    left, reason = length, str(refusal)
            if left == length:
                assert "activate_past_recording" in reason
            assert [kept.get_seq_length(layer) for layer in range(LAYERS)] == [left] * LAYERS
            assert left == length or not loses, "done, though keys are missing"
            whole = torch.cat([row[:left], rows_of(4, seed=9)[0]])
            logits = feed(kept, whole[left:].unsqueeze(0))[0]
            with torch.no_grad():
                prompts = torch.tensor([length])
                expected = model()(whole.unsqueeze(0), use_cache=False, prompt_lengths=prompts).logits[0, left:]
        torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("lengths", [(12,), (12, 7)], ids=str)
@COMPOSITIONS
def test_a_crop_after_decoding_is_right_or_refused(composition: Composition, lengths: tuple[int, ...]) -> None:
    """Decoding leaves a slot to spare, so that now and then the newest token can be taken back without recording."""
    batch = padded(rows_of(*lengths))
    new = torch.stack([row[:7] for row in rows_of(*[7] * len(lengths), seed=2)])
    whole, mask = torch.cat([batch["input_ids"], new], -1), batch["attention_mask"]
    mask = torch.cat([mask, torch.ones_like(new)], -1)
    with swaa.apply_policy(model(), composition.policy):
        for count in range(1, 5):
            kept = swaa.PolicyCache(model(), torch.tensor(lengths))
            feed(kept, whole[:, :12], mask[:, :12])
            for stop in range(13, 18):
                feed(kept, whole[:, stop - 1 : stop], mask[:, :stop])
            try:
                kept.crop(-count)
            except swaa.UserError:
                continue
            logits = feed(kept, whole[:, 17 - count :], mask)
            for row, (length, got) in enumerate(zip(lengths, logits, strict=True)):
                tokens, prompts = whole[row : row + 1, 12 - length :], torch.tensor([length])
                with torch.no_grad():
                    expected = model()(tokens, use_cache=False, prompt_lengths=prompts).logits[0]
                torch.testing.assert_close(got, expected[-len(got) :], **CLOSE)


def crop_loses(composition: Composition, length: int, count: int) -> bool:
    """Is a key needed after ``length - count`` tokens that was not live after ``length``?"""
    return any(
        set(live(composition, layer, heads_of(kv_head, KV_HEADS), length - count, length))
        - set(live(composition, layer, heads_of(kv_head, KV_HEADS), length, length))
        for layer in range(LAYERS)
        for kv_head in range(KV_HEADS)
    )


def test_cropping_everything() -> None:
    with swaa.apply_policy(model(), FullAttention()):
        kept = swaa.PolicyCache(model())
        feed(kept, rows_of(5)[0].unsqueeze(0))
        kept.crop(-5)
        assert kept.get_seq_length() == 0
        logits = feed(swaa.declare_prompt(kept, 4), rows_of(4)[0].unsqueeze(0))
        with torch.no_grad():
            expected = model()(rows_of(4)[0].unsqueeze(0), use_cache=False).logits
    torch.testing.assert_close(logits, expected, **CLOSE)


# -------------------------------------------------------------------------------------------- declared prompts


def test_a_prompt_that_grows_over_dropped_keys_is_refused() -> None:
    """Full attention in prefill, windows in decode: a second turn would need what the first one dropped."""
    composition = DECODE_WINDOWS
    first, second = rows_of(12, 6)
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model(), 12)
        feed(kept, first.unsqueeze(0))
        with pytest.raises(swaa.UserError, match="prompt"):
            feed(swaa.declare_prompt(kept, 18), second.unsqueeze(0))


def test_a_prompt_may_grow_where_nothing_was_dropped() -> None:
    composition = BY_NAME["sinks_fa_decode_half_layers"]
    first, second = rows_of(12, 6)
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model(), 12)
        feed(kept, first.unsqueeze(0))
        logits = feed(swaa.declare_prompt(kept, 18), second.unsqueeze(0))
        with torch.no_grad():
            whole = torch.cat([first, second]).unsqueeze(0)
            expected = model()(whole, use_cache=False).logits[:, 12:]
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_a_prompt_that_shrinks_over_dropped_keys_is_refused() -> None:
    """Decode sees farther than prefill: what it will see depends on where the prompt ends."""
    policy = stack(rule(SlidingWindow(3), phase="prefill"), rule(SlidingWindow(9)))
    (row,) = rows_of(20)
    with swaa.apply_policy(model(), policy):
        kept = swaa.PolicyCache(model(), 40)
        feed(kept, row.unsqueeze(0))
        with pytest.raises(swaa.UserError, match="prompt"):
            feed(swaa.declare_prompt(kept, 20), torch.tensor([[5]]))


def test_a_declared_prompt_of_another_batch_is_refused() -> None:
    with swaa.apply_policy(model(), DECODE_WINDOWS.policy):
        kept = swaa.PolicyCache(model(), torch.tensor([3, 4, 5]))
        batch = padded(rows_of(7, 5))
        with pytest.raises(swaa.UserError, match=r"prompt_lengths: expected one int per sample \(2\)"):
            feed(kept, batch["input_ids"], batch["attention_mask"])


@pytest.mark.parametrize("bad", [torch.tensor([1.5]), -1, torch.tensor([[3]])], ids=str)
def test_bad_prompt_lengths(bad: Any) -> None:
    with (
        swaa.apply_policy(model(), DECODE_WINDOWS.policy),
        pytest.raises(swaa.UserError, match="prompt_lengths: expected ints >= 0, one per sample"),
    ):
        swaa.PolicyCache(model(), bad)


def test_a_cache_for_a_model_without_a_policy_is_refused() -> None:
    with pytest.raises(swaa.UserError, match="apply_policy"):
        swaa.PolicyCache(BY_TYPE["llama"].build())


def test_phases_that_a_first_pass_does_not_show_are_still_refused() -> None:
    (row,) = rows_of(12)
    with swaa.apply_policy(model(), DECODE_WINDOWS.policy):
        kept = swaa.PolicyCache(model())
        feed(kept, row[:5].unsqueeze(0))
        with pytest.raises(swaa.UserError, match="depends on where the prompt ends"):
            feed(kept, row[5:].unsqueeze(0))


def test_a_model_whose_policy_was_removed_refuses_the_cache() -> None:
    (row,) = rows_of(12)
    with swaa.apply_policy(model(), SlidingWindow(4)):
        kept = swaa.PolicyCache(model())
        feed(kept, row.unsqueeze(0))
    with pytest.raises(swaa.UserError, match="made for a policy was given to a model without one"):
        feed(kept, row[:1].unsqueeze(0))


def test_another_policy_refuses_the_cache() -> None:
    (row,) = rows_of(12)
    with swaa.apply_policy(model(), SlidingWindow(4)):
        kept = swaa.PolicyCache(model())
        feed(kept, row.unsqueeze(0))
    with (
        swaa.apply_policy(model(), SlidingWindow(6)),
        pytest.raises(swaa.UserError, match="the cache was filled under another policy"),
    ):
        feed(kept, row[:1].unsqueeze(0))


@pytest.mark.parametrize("before", [0, 8])
def test_a_refused_forward_pass_leaves_the_cache_as_it_was(before: int) -> None:
    """The mask is too short, the caller mends it and tries again."""
    row = rows_of(12)[0].unsqueeze(0)
    too_short = torch.ones(1, 5, dtype=torch.long)
    with swaa.apply_policy(model(), BY_NAME["sinks"].policy), torch.no_grad():
        kept = swaa.PolicyCache(model())
        if before:
            feed(kept, row[:, :before])
        with pytest.raises(swaa.UserError, match="attention_mask: expected"):
            model()(row[:, before:], attention_mask=too_short, past_key_values=kept)
        logits = [feed(kept, row[:, before:]), feed(kept, row[:, :3])]
        expected = model()(torch.cat([row, row[:, :3]], -1), use_cache=False).logits[:, before:]
    torch.testing.assert_close(torch.cat(logits, 1), expected, **CLOSE)
    assert held(kept)[0][0].of_row(0)[:2] == [0, 1]


# --------------------------------------------------------------------------- natively windowed, and other caches


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text", "llama4_text", "gpt_oss"])
def test_native_windows(model_type: str) -> None:
    """A model's own window hides sinks beyond it; what is held never exceeds what the policy shows."""
    own = BY_TYPE[model_type].build()
    batch = padded(rows_of(16, 9))
    policy = SlidingWindow(3) | SinkTokens(2)
    sizes = []
    for evict in (False, True):
        with swaa.apply_policy(own, policy, evict=evict), torch.no_grad():
            sizes.append(held_bytes(own(**batch, past_key_values=DynamicCache()).past_key_values))
    assert 0 < sizes[1] <= sizes[0] * 4 / 16


def test_bytes_of_other_caches() -> None:
    batch = padded(rows_of(16, 9))
    with torch.no_grad():
        dynamic = model()(**batch, past_key_values=DynamicCache()).past_key_values
    assert held_bytes(dynamic) == storage_bytes(dynamic) == 2 * 16 * LAYERS * KV_HEADS * BYTES_A_KEY
    assert held_bytes(DynamicCache()) == 0
    assert held_bytes(DynamicCache(config=model().config)) == 0


# --------------------------------------------------------------------------------------------------------- soak


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("composition", "new"),
    [
        (BY_NAME["sinks"], 300),
        pytest.param(DECODE_WINDOWS, 2000, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_memory_stays_flat(composition: Composition, new: int) -> None:
    """Greedy decoding in the caller's own loop: bytes held never change, and the process hardly grows."""
    sizes, resident = set(), []
    token = rows_of(16)[0].unsqueeze(0)
    with swaa.apply_policy(model(), composition.policy):
        kept = swaa.PolicyCache(model())
        for at in range(new + 1):
            token = feed(kept, token)[:, -1:].argmax(-1)
            if at:
                sizes.add((held_bytes(kept), storage_bytes(kept)))
            if at % 100 == 0:
                gc.collect()
                resident.append(resident_mb())
    assert kept.get_seq_length() == 16 + new
    assert len(sizes) == 1
    per_layer = {"sinks": 2 * 6}.get(composition.name, 4 + 8)
    assert max(sizes.pop()) <= LAYERS * per_layer * BYTES_A_KEY
    assert resident[-1] - resident[1] < 8, resident


def test_a_generation_of_many_tokens_stays_right() -> None:
    """300 greedy tokens of a padded batch, through generate()."""
    batch = padded(rows_of(16, 9))
    tokens = []
    for evict in (False, True):
        with swaa.apply_policy(model(), BY_NAME["sinks"].policy, evict=evict):
            tokens.append(model().generate(**batch, max_new_tokens=300, do_sample=False).tolist())
    assert tokens[0] == tokens[1]

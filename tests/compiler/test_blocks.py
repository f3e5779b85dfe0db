"""Block masks: torch's own lists for the whole zoo, the fallback for what intervals do not know, and their cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

import oracle
from measure import time_and_memory
from oracle import Model
from strategies import Case, Chunked, Corner, Dilated, Slanted, Striped, bound_layer, cases, layout_of
from swaa import FullAttention, Index, Predicate, SinkTokens, SlidingWindow, every
from swaa.compiler import refine
from swaa.compiler.blocks import block_mask
from swaa.compiler.dense import dense_mask
from swaa.compiler.interval import UnknownOperation
from swaa.compiler.kernel import mask_mod
from swaa.compiler.layout import TokenLayout
from swaa.compiler.refine import block_verdicts, count_visible
from swaa.policies import AttentionPolicy, bind

BEST = (SlidingWindow(200) | SinkTokens(10)).in_phase("prefill").on_layers(every(2))
ZOO = [policy for kind in (FullAttention, SlidingWindow, SinkTokens) for policy in kind.examples()]  # all: test_zoo.py
RECIPES = [
    SlidingWindow(200) | SinkTokens(10),
    ~SlidingWindow(200) & ~SinkTokens(10),
    BEST,
    (SlidingWindow(130) | SinkTokens(4)).on_heads("::2"),
    SlidingWindow(64).in_phase("decode", otherwise=SinkTokens(150)),
    ~SinkTokens(300) & ~SlidingWindow(300),
    Dilated(7) | SlidingWindow(5),
    Chunked(100) | SinkTokens(1),
    Striped(150, 20) & ~Corner(90, 130),
    Slanted(60),
]
LENGTHS = (1, 100, 128, 129, 300, 517)
LISTS = (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices"))
Q_LISTS = (("q_num_blocks", "q_indices"), ("full_q_num_blocks", "full_q_indices"))


def lists(mask: BlockMask, names: Sequence[tuple[str, str]] = LISTS) -> list[Any]:
    """The blocks that each row of blocks names; what stands behind the counted ones is no part of the mask."""
    found = []
    for count_name, index_name in names:
        counts, indices = getattr(mask, count_name), getattr(mask, index_name)
        assert counts.dtype == indices.dtype == torch.int32
        rows = indices.flatten(0, -2).tolist()
        listed = [row[:count] for row, count in zip(rows, counts.flatten().tolist(), strict=True)]
        found.append((tuple(counts.shape), listed))
    return found


def torchs(policy: AttentionPolicy, layout: TokenLayout, block_size: tuple[int, int] = (128, 128)) -> BlockMask:
    """The mask that torch builds by evaluating every pair."""
    layer = bind(policy, 2, 4).layers[0]
    return create_block_mask(
        mask_mod(layer, layout),
        B=layout.batch_size if layout.batch_size > 1 else None,
        H=4 if layer.by_head else None,
        Q_LEN=layout.query_length,
        KV_LEN=layout.key_length,
        device="cpu",
        BLOCK_SIZE=block_size,
    )


@pytest.mark.parametrize("policy", ZOO + RECIPES, ids=repr)
def test_the_lists_are_torchs(policy: AttentionPolicy) -> None:
    layer = bind(policy, 2, 4).layers[0]
    for length in LENGTHS:
        layout = TokenLayout.contiguous(length, prompt_lengths=length * 2 // 3)
        mine, theirs = block_mask(layer, layout, with_backward=True), torchs(policy, layout)
        assert mine.shape == theirs.shape
        assert lists(mine) == lists(theirs), length
        assert lists(mine, Q_LISTS) == lists(theirs, Q_LISTS), length


@pytest.mark.parametrize("policy", ZOO + RECIPES, ids=repr)
def test_the_lists_are_torchs_for_every_sample(policy: AttentionPolicy) -> None:
    layer = bind(policy, 2, 4).layers[0]
    slot = torch.arange(300)
    real = torch.stack([slot >= 0, slot >= 140, slot < 170, (slot >= 20) & (slot < 260)])
    prompts = torch.tensor([300, 100, 20, 0])
    documents = torch.cat([torch.arange(130), torch.arange(100), torch.arange(70)]).unsqueeze(0)
    for layout, sizes in (
        (TokenLayout.padded(real, prompt_lengths=prompts), (128, 128)),
        (TokenLayout.padded(real, prompt_lengths=prompts), (64, 32)),
        (TokenLayout.padded(real, 70, prompt_lengths=prompts), (32, 64)),
        (TokenLayout.contiguous(300, prompt_lengths=prompts), (128, 128)),
        (TokenLayout.packed(documents, prompt_lengths=torch.tensor([[50, 100, 0]])), (64, 64)),
        (TokenLayout.contiguous(40, 90, offset=200, key_offset=130), (16, 16)),
    ):
        mine, theirs = block_mask(layer, layout, block_size=sizes), torchs(policy, layout, sizes)
        assert mine.shape == theirs.shape
        assert lists(mine) == lists(theirs), sizes


def test_head_free_policies_have_one_mask_for_all_heads() -> None:
    layout = TokenLayout.contiguous(300)
    free, by_head = (bind(policy, 1, 9).layers[0] for policy in (RECIPES[0], RECIPES[3]))
    assert block_mask(free, layout).shape == (1, 1, 300, 300)
    assert dense_mask(free, layout).shape == (1, 1, 300, 300)
    assert block_mask(by_head, layout).shape == (1, 9, 300, 300)
    assert dense_mask(by_head, layout).shape == (1, 9, 300, 300)


@settings(max_examples=max(20, settings.default.max_examples // 20))
@given(cases())
def test_nothing_changes_when_work_is_done_in_small_pieces(case: Case) -> None:
    """Long contexts are judged some rows, spans and blocks at a time."""
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth = oracle.mask(case.recipe, case.scene, case.model, case.layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine, "_CHUNK", 40)
        patch.setattr(refine, "_TO_THE_END", 40)
        for heads, head in layer.groups:
            verdicts = block_verdicts(head, layout, case.block_size)
            counts = count_visible(head, layout, block_size=case.block_size[0])
            for b in range(len(counts)):
                for m, n, some, whole in oracle.blocks(truth[b][heads[0]], *case.block_size):
                    assert bool(verdicts.visible_BMN[b, m, n]) == some
                    assert bool(verdicts.full_BMN[b, m, n]) == whole
                assert int(counts[b]) == sum(map(sum, truth[b][heads[0]]))


def test_a_mask_of_partial_blocks_only_stays_small() -> None:
    """Each of its 8,256 blocks is undecided down to single positions: 8,192 tokens once took gigabytes."""
    setup = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from strategies import Dilated
from swaa.compiler.layout import TokenLayout
from swaa.compiler.refine import block_verdicts
from swaa.policies import bind

head = bind(Dilated(3), 1, 1).layers[0].groups[0][1]

def partial(length):
    return int(block_verdicts(head, TokenLayout.contiguous(length), (128, 128)).partial_BMN.sum())
"""
    statement = "assert partial(16_384) == 128 * 129 // 2"
    _, megabytes = time_and_memory(setup, statement, warm_up="assert partial(256) == 3")
    assert megabytes < 400


# ------------------------------------------------------------------- what intervals do not know goes to torch


class _Odd(Predicate):
    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


WORDS = torch.arange(1024) // 7  # word number of each token, say


@dataclass(frozen=True, repr=False)
class SameWord(_Odd):
    """Looks tokens up in a table."""

    shift: int

    def visible(self, q: Index, k: Index) -> Index:
        return WORDS[q] == WORDS[k] + self.shift  # type: ignore[index]


@dataclass(frozen=True, repr=False)
class Rooted(_Odd):
    """Calls a torch function that intervals do not know."""

    factor: int

    def visible(self, q: Index, k: Index) -> Index:
        return torch.sqrt((q - k) * 1.0) < self.factor  # type: ignore[operator,arg-type,call-overload]


@dataclass(frozen=True, repr=False)
class Halved(_Odd):
    """Divides."""

    factor: int

    def visible(self, q: Index, k: Index) -> Index:
        return (q - k) / 2 < self.factor  # type: ignore[operator]


@dataclass(frozen=True, repr=False)
class Bitwise(_Odd):
    """Works on the bits of a position."""

    bit: int

    def visible(self, q: Index, k: Index) -> Index:
        return k & self.bit == 0  # type: ignore[operator]


ODD: dict[type[Predicate], Callable[[int, int, int], bool]] = {
    SameWord: lambda q, k, n: q // 7 == k // 7 + n,
    Rooted: lambda q, k, n: (q - k) < n * n,
    Halved: lambda q, k, n: (q - k) < 2 * n,
    Bitwise: lambda q, k, n: k % (2 * n) < n,
}


@pytest.mark.parametrize("kind", ODD)
def test_unknown_operations_fall_back_to_torch(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    policy, loop = kind(4), ODD[kind]
    layout = TokenLayout.contiguous(150)
    layer = bind(policy, 2, 4).layers[0]
    with caplog.at_level(logging.WARNING, "swaa"):
        masks = [block_mask(layer, layout, block_size=32) for _ in range(3)]
    assert len(caplog.records) == 1, "one line for each policy, however many passes"
    assert caplog.messages[0].startswith(f"{policy!r}: ")
    assert caplog.messages[0].endswith(
        "is not known on intervals; its block mask is built by torch's create_block_mask"
    )
    truth = torch.tensor([[k <= q and loop(q, k, 4) for k in range(150)] for q in range(150)])
    expected = create_block_mask(lambda b, h, q, k: truth[q, k], None, None, 150, 150, "cpu", BLOCK_SIZE=32)
    assert lists(masks[0]) == lists(masks[2]) == lists(expected)
    assert torch.equal(dense_mask(layer, layout)[0, 0], truth)
    for reading in (block_verdicts, count_visible):
        with pytest.raises(UnknownOperation):
            reading(layer.groups[0][1], layout, **({"block_size": (32, 32)} if reading is block_verdicts else {}))


def test_a_fallback_keeps_samples_and_heads_apart(caplog: pytest.LogCaptureFixture) -> None:
    policy = Halved(9).on_heads("::2").in_phase("prefill")
    real = torch.arange(100) >= torch.tensor([[0], [40]])
    layout = TokenLayout.padded(real, prompt_lengths=torch.tensor([60, 30]))
    layer = bind(policy, 1, 4).layers[0]
    mask = block_mask(layer, layout, block_size=16)
    truth = dense_mask(layer, layout)
    assert mask.shape == (2, 4, 100, 100)
    expected = create_block_mask(lambda b, h, q, k: truth[b, h, q, k], 2, 4, 100, 100, "cpu", BLOCK_SIZE=16)
    assert lists(mask) == lists(expected)
    assert len(caplog.records) == 1


def test_the_truth_of_a_model_needs_no_layout_to_be_square() -> None:
    """Cached decode: one query, keys from a later slot on."""
    case = oracle.Contiguous(1, 9, offset=20, key_offset=12)
    recipe = oracle.Atom("SlidingWindow", (5,))
    truth = oracle.mask(recipe, case, Model(1, 1), 0)[0][0]
    mask = dense_mask(bind(SlidingWindow(5), 1, 1).layers[0], layout_of(case))
    assert mask[0, 0].tolist() == truth == [[False] * 4 + [True] * 5]

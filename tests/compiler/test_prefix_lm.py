"""Policies that look ahead, read in every way: all readings agree with the loops, and none shows an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

import oracle
import prefix_oracle
from oracle import Contiguous, Model
from prefix_strategies import ATOMS, Near, known
from strategies import Case, bound_layer, build, cases, layout_of, recipes
from swaa import BidirectionalPrefix, FullAttention, PrefixLM, SinkTokens, SlidingWindow
from swaa.compiler import estimate_cost
from swaa.compiler.ahead import looks_across
from swaa.compiler.blocks import block_mask
from swaa.compiler.dense import dense_mask
from swaa.compiler.eviction import KeyTable, Step
from swaa.compiler.kernel import mask_mod
from swaa.compiler.layout import TokenLayout
from swaa.compiler.picture import mask_pictures
from swaa.compiler.program import AttentionProgram
from swaa.compiler.reach import receptive_field
from swaa.compiler.refine import block_verdicts, count_visible
from swaa.compiler.retention import live_keys
from swaa.compiler.runs import hides_nothing
from swaa.compiler.shape import ModelShape
from swaa.policies import bind

TENTH = settings(max_examples=max(25, settings.default.max_examples // 10))
FEW = settings(max_examples=max(20, settings.default.max_examples // 40))


@pytest.fixture(scope="module", autouse=True)
def atoms() -> Iterator[None]:
    with known():
        yield


@TENTH
@given(cases(ATOMS, longest=18))
def test_every_reading_agrees_with_the_loops(case: Case) -> None:
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth_BHQK = prefix_oracle.mask(case.recipe, case.scene, case.model, case.layer)
    expected_BHQK = torch.tensor(truth_BHQK)
    assert torch.equal(dense_mask(layer, layout).expand_as(expected_BHQK), expected_BHQK)

    for heads, head in layer.groups:
        verdicts = block_verdicts(head, layout, case.block_size)
        count_B = count_visible(head, layout, block_size=case.block_size[0])
        for b, truth_HQK in enumerate(truth_BHQK):
            truth_QK = truth_HQK[heads[0]]
            row = b if len(verdicts.visible_BMN) > 1 else 0
            for m, n, some, every in oracle.blocks(truth_QK, *case.block_size):
                assert bool(verdicts.visible_BMN[row, m, n]) == some, (b, m, n)
                assert bool(verdicts.full_BMN[row, m, n]) == every, (b, m, n)
            assert int(count_B[row]) == sum(map(sum, truth_QK))

    # the kernel's reading, and a part of the queries alone
    visible = mask_mod(layer, layout)
    grid = torch.meshgrid(*map(torch.arange, expected_BHQK.shape), indexing="ij")
    assert torch.equal(visible(*grid), expected_BHQK)
    half = slice(layout.query_length // 2, layout.query_length)
    part = dense_mask(layer, layout.queries(half.start, half.stop))
    assert torch.equal(part.expand_as(expected_BHQK[:, :, half]), expected_BHQK[:, :, half])


@FEW
@given(cases(ATOMS, longest=18), st.sampled_from(("auto", "dense", "blockwise")))
def test_attention_is_that_of_the_loops(case: Case, kernel: str) -> None:
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    query, key, value = case.tensors()
    truth = prefix_oracle.mask(case.recipe, case.scene, case.model, case.layer)
    out = AttentionProgram(layout, kernel).attend(layer, query, key, value)
    torch.testing.assert_close(out, oracle.attention(query, key, value, truth), rtol=1e-5, atol=1e-5)


def layer_of(policy: Any) -> Any:
    return bind(policy, 1, 4).layers[0]


@pytest.mark.parametrize(
    "policy",
    [PrefixLM(), PrefixLM(200), BidirectionalPrefix(150) | SlidingWindow(60), PrefixLM(130).on_heads([0, 2])],
    ids=repr,
)
def test_block_masks_are_torchs(policy: Any) -> None:
    slot = torch.arange(300)
    real = torch.stack([slot >= 0, slot >= 140, slot < 170])
    for layout in (
        TokenLayout.contiguous(300, prompt_lengths=210),
        TokenLayout.padded(real, prompt_lengths=torch.tensor([300, 100, 20])),
        TokenLayout.packed(torch.arange(300).remainder(160)[None], prompt_lengths=torch.tensor([[50, 100]])),
    ):
        layer = layer_of(policy)
        mine = block_mask(layer, layout).to_dense()
        theirs = create_block_mask(
            mask_mod(layer, layout), mine.shape[0], mine.shape[1], layout.query_length, layout.key_length, device="cpu"
        )
        assert torch.equal(mine, theirs.to_dense())


def test_causal_kernels_are_not_taken() -> None:
    query = torch.randn(1, 4, 100, 8, generator=torch.Generator().manual_seed(0))
    for layout in (TokenLayout.contiguous(100), TokenLayout.padded(torch.arange(110)[None] >= 10)):
        assert not hides_nothing(layer_of(PrefixLM()), layout)
    out = AttentionProgram(TokenLayout.contiguous(100)).attend(layer_of(PrefixLM()), query, query, query)
    expected = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert hides_nothing(layer_of(PrefixLM(8)), TokenLayout.contiguous(5, offset=40, prompt_lengths=30))


def test_phases_said_query_by_query_let_nobody_look_ahead() -> None:
    layout = TokenLayout.contiguous(6).with_decodes(torch.tensor([[False, False, True, False, False, False]]))
    assert torch.equal(dense_mask(layer_of(PrefixLM()), layout)[0, 0], torch.ones(6, 6, dtype=torch.bool).tril())


@pytest.mark.parametrize("per_document", [True, False])
def test_some_queries_and_more_slots_keep_their_own_ends(per_document: bool) -> None:
    positions = torch.cat([torch.arange(9), torch.arange(6)]).expand(2, -1)
    lengths = torch.tensor([[4, 6], [7, 2]]) if per_document else torch.tensor([4, 2])
    layout = TokenLayout.packed(positions, prompt_lengths=lengths)
    layer = bind(PrefixLM(), 1, 1).layers[0]
    whole = dense_mask(layer, layout)
    assert torch.equal(dense_mask(layer, layout.queries(5, 12)), whole[:, :, 5:12])
    longer = dense_mask(layer, layout.pad_to(20, 18))
    assert torch.equal(longer[:, :, :15, :15], whole)
    assert int(longer.sum()) == int(whole.sum())


def test_queries_laid_out_alike_over_keys_that_are_not() -> None:
    keys = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    layout = TokenLayout(torch.arange(6).unsqueeze(0), keys, torch.zeros(1, 6, dtype=torch.bool), prompt_ends=4)
    layer = bind(PrefixLM(), 1, 1).layers[0]
    samples, queries = torch.arange(2).view(2, 1, 1, 1), torch.arange(6).view(6, 1)
    listed = mask_mod(layer, layout)(samples, torch.tensor(0), queries, torch.arange(6))
    assert torch.equal(listed, dense_mask(layer, layout))


def test_slots_of_a_static_cache_that_are_not_filled_are_never_seen() -> None:
    for prompt in (None, 9, torch.tensor([9])):
        layout = TokenLayout.contiguous(4, 12, prompt_lengths=prompt)
        assert not dense_mask(layer_of(PrefixLM()), layout)[..., 4:].any()


@FEW
@given(recipes(Model(1, 1), ATOMS), st.integers(0, 14), st.integers(0, 14))
def test_a_key_that_a_query_to_come_sees_is_kept(recipe: oracle.Recipe, start: int, prompt: int) -> None:
    model, horizon = Model(1, 1), 40
    live = live_keys(
        bound_layer(recipe, model, 0), torch.arange(start)[None], torch.tensor([start]), torch.tensor([prompt])
    )
    truth = prefix_oracle.mask(recipe, Contiguous(horizon, horizon, prompts=prompt), model, 0)[0][0]
    for key in range(start):
        if any(row[key] for row in truth[start:]):
            assert bool(live[0, 0, key]), key


@FEW
@given(recipes(Model(1, 1), ATOMS), st.integers(0, 14), st.integers(0, 14))
def test_where_a_prompt_may_be_cut(recipe: oracle.Recipe, split: int, end: int) -> None:
    model = Model(1, 1)
    sees = any(prefix_oracle.sees_ahead(recipe, model, 0, 0, q, k) for q in range(split) for k in range(split, end))
    may = bool(looks_across(build(recipe), torch.tensor([split]), torch.tensor([end])))
    assert may or not sees
    if isinstance(recipe, oracle.Atom):
        assert may == sees


def test_over_a_cache_that_drops_keys_the_prompt_ends_where_it_does() -> None:
    table, steps = KeyTable(layer_of(Near(3))), ([-1, 0, 1], [2, 3, 4, 5])
    for positions, first, following in zip(steps, (0, 2), (2, 6), strict=True):
        step = Step(torch.tensor([positions]), torch.tensor([first]), torch.tensor([following]), torch.tensor([4]))
        if first == 0:
            table.start(step)
    table.write(step)
    layout = table.layout(step)
    mask = dense_mask(layer_of(Near(3)), layout)[0, 0]
    seen = [layout.key_positions_BK[0][row].sort().values.tolist() for row in mask]
    assert seen == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]


def test_pictures_cost_and_receptive_field() -> None:
    policy = BidirectionalPrefix(4) | SlidingWindow(2)
    (picture,) = mask_pictures(policy, num_layers=1, num_heads=1, length=7, prompt_length=5, resolution=7)
    rows = ["".join(" " if cell is None else "#" if cell else "." for cell in row) for row in picture["cells"]]
    assert [row.rstrip() for row in rows] == ["####", "####", "####", "####", "...##", "....##", ".....##"]
    shape = ModelShape(1, 2, 1, 8)
    cost = estimate_cost(PrefixLM(4), shape, 6, 3)
    assert cost.layers[0].prefill_pairs == 2 * (21 + 6)
    assert cost.layers[0].decode_pairs == cost.full.decode_pairs
    assert cost.layers[0].kept_keys == 6
    # two layers: the last token sees 9 and 8, these look at most 3 ahead and behind
    near = bind(Near(3) | SlidingWindow(1), 2, 1)
    assert receptive_field(near, 10) == 7
    assert receptive_field(bind(BidirectionalPrefix(8) | SlidingWindow(2), 1, 1), 10) == 2
    assert receptive_field(bind(BidirectionalPrefix(8) | SlidingWindow(3), 2, 1), 10) == 10
    # the last token sees the first, which sees those of the prefix, all later than itself
    assert receptive_field(bind(BidirectionalPrefix(8) | SinkTokens(1), 2, 1), 10) == 9
    assert receptive_field(bind(FullAttention(), 1, 1), 10) == 10

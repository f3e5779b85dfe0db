"""Choices by content: every reading against loops that know nothing of it."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

import content_oracle
import oracle
import strategies
from oracle import Atom, Contiguous, Model, Packed, Padded, Turns, Union
from strategies import Case, bound_layer, layout_of
from swaa import ContentPolicy, SinkTokens, SlidingWindow, TopBlocks, UserError, parse_policy, rule, stack
from swaa.compiler.cofactors import certain, possible
from swaa.compiler.cost import estimate_cost
from swaa.compiler.dense import dense_mask
from swaa.compiler.eviction import KeyTable
from swaa.compiler.explain import explain
from swaa.compiler.layout import TokenLayout
from swaa.compiler.picture import mask_pictures
from swaa.compiler.plan import Job, Kernel, choose_kernel, has_cpp_compiler
from swaa.compiler.program import AttentionProgram
from swaa.compiler.retention import live_keys
from swaa.compiler.selected_blocks import selected_block_mask, selected_mask_mod
from swaa.compiler.selection import Selection
from swaa.compiler.shape import ModelShape
from swaa.policies import bind

strategies.CLASSES.setdefault("TopBlocks", TopBlocks)

FEW = settings(max_examples=max(20, settings.default.max_examples // 30))
CHOICE = st.builds(Atom, st.just("TopBlocks"), st.tuples(st.sampled_from((1, 2, 3, 4, 8)), st.integers(1, 3)))
STATIC = st.one_of(
    st.builds(
        Atom, st.sampled_from(("SlidingWindow", "SinkTokens", "Chunked", "Dilated")), st.tuples(st.integers(1, 9))
    ),
    st.builds(Atom, st.just("FullAttention")),
)


@functools.cache
@st.composite
def whole_scenes(draw: st.DrawFn) -> oracle.Scene:
    """Layouts with every key that came before a query: choices need them all."""
    kind = draw(st.sampled_from(("contiguous", "chunk", "padded", "padded chunk", "packed", "turns")))
    queries, offset = draw(st.integers(1, 18)), draw(st.integers(1, 14))
    prompts = draw(st.none() | st.integers(0, 20))
    if kind == "contiguous":
        return Contiguous(queries, queries + draw(st.integers(0, 3)), prompts=prompts)
    if kind == "chunk":
        return Contiguous(queries, queries + offset, offset, prompts=prompts)
    if kind == "packed":
        return draw(strategies.packed(18))
    if kind == "turns":
        flags = draw(st.lists(st.booleans(), min_size=queries, max_size=queries))
        return Turns(Contiguous(queries, queries + offset, offset), (tuple(flags),))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=18, max_size=18).map(tuple), min_size=1, max_size=3))
    return Padded(tuple(rows), None if kind == "padded" else queries, prompts=prompts)


@functools.cache
@st.composite
def content_cases(draw: st.DrawFn) -> Case:
    """A composition with one to three different choices, on a layout, for some heads."""
    model = Model(draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 4))))
    recipe = draw(strategies.recipes(model, st.one_of(CHOICE, STATIC)))
    assume(1 <= len(set(content_oracle.atoms(recipe))) <= 3)
    scene = draw(whole_scenes())
    if not draw(st.integers(0, 3)):
        scene = replace(scene, extra=(draw(st.integers(0, 5)), draw(st.integers(0, 5))))
    kv_heads = draw(st.sampled_from([kv for kv in (1, 2, 4) if model.heads % kv == 0]))
    layer, seed = draw(st.integers(0, model.layers - 1)), draw(st.integers(0, 1 << 16))
    return Case(recipe, scene, model, layer, kv_heads, draw(strategies.BLOCK_SIZES), seed)


def tensors_of(case: Case) -> list[Tensor]:
    """Whole numbers now and then, so that blocks tie; not in blocks of 3, whose means are rounded."""
    thirds = any(size == 3 for size, _ in content_oracle.atoms(case.recipe))
    return [tensor.round() if case.seed % 3 == 0 and not thirds else tensor for tensor in case.tensors()]


def expected(case: Case, query: Tensor, key: Tensor) -> oracle.Mask:
    return content_oracle.mask(case.recipe, case.scene, case.model, case.layer, query, key)


@FEW
@given(case=content_cases())
def test_all_readings_agree_with_loops(case: Case) -> None:
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    query, key, value = tensors_of(case)
    rows = expected(case, query, key)
    wanted = torch.tensor(rows)
    if layer.by_content:
        selection = Selection.of(layer, layout, query, key)
        assert torch.equal(selection.dense_mask().expand_as(wanted), wanted)
        check_blocks(selection, layout, wanted, case.block_size)
    else:
        event("no choice is left")
        assert torch.equal(dense_mask(layer, layout).expand_as(wanted), wanted)
    assert not possible(layer).by_content
    assert not bool((wanted & ~dense_mask(possible(layer), layout)).any())
    assert not bool((~wanted & dense_mask(certain(layer), layout)).any())
    attended = oracle.attention(query, key, value, rows)
    for kernel in ("auto", "blockwise"):
        got = AttentionProgram(layout, kernel).attend(layer, query, key, value)
        torch.testing.assert_close(got, attended, atol=2e-5, rtol=1e-4)


def check_blocks(selection: Selection, layout: TokenLayout, wanted: Tensor, sizes: tuple[int, int]) -> None:
    """The lists of the block mask are those that torch makes of the same predicate, and of what loops say."""
    batch, heads, queries, keys = wanted.shape
    ours = selected_block_mask(selection, layout, sizes)
    for predicate in (selected_mask_mod(selection, layout), lambda b, h, q, k: wanted[b, h, q, k]):
        theirs = create_block_mask(predicate, batch, heads, queries, keys, device="cpu", BLOCK_SIZE=sizes)
        assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
        assert ours.full_kv_num_blocks is not None
        assert theirs.full_kv_num_blocks is not None
        assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
        assert torch.equal(ours.to_dense(), theirs.to_dense())


def test_a_block_may_be_full_by_two_outcomes_together() -> None:
    """The first query sees keys 0 to 3 by the window, the other three because they choose them."""
    layer = bind(TopBlocks(4, 1) | SlidingWindow(9), 1, 1).layers[0]
    ahead, behind = [1.0, 0.0], [0.0, 1.0]
    key = torch.tensor([ahead] * 4 + [behind] * 8).view(1, 1, 12, 2)
    query = torch.tensor([behind] * 9 + [ahead] * 3).view(1, 1, 12, 2)
    layout = TokenLayout.contiguous(12)
    blocks = selected_block_mask(Selection.of(layer, layout, query, key), layout, (4, 4))
    assert blocks.full_kv_num_blocks is not None
    assert blocks.full_kv_num_blocks.tolist() == [[[0, 1, 2]]]


SCENES = {
    "a prompt": Contiguous(100, 100),
    "a chunk": Contiguous(40, 140, 100),
    "padding": Padded((tuple(i >= 40 for i in range(100)), (True,) * 100)),
    "packed": Packed(((60, 40), (30, 70))),
}
CHOSEN = Union((Atom("TopBlocks", (16, 2)), Atom("SinkTokens", (3,))))


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="torch.compile needs a C++ compiler")
def test_flex_computes_the_same() -> None:
    case = Case(CHOSEN, SCENES["padding"], Model(1, 4), 0, 2, (16, 16), 4)
    layer, layout = bound_layer(case.recipe, case.model, 0), layout_of(case.scene)
    query, key, value = case.tensors(head_dim=16)
    wanted = AttentionProgram(layout, "dense").attend(layer, query, key, value)
    torch._dynamo.reset()
    with torch.no_grad():
        got = AttentionProgram(layout, "flex").attend(layer, query, key, value)
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("scene", SCENES)
def test_long_layouts_on_all_kernels(scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks as long as those that run, and dense masks some queries at a time."""
    monkeypatch.setattr("swaa.compiler.program._DENSE_CELLS", 1 << 14)
    monkeypatch.setattr("swaa.compiler.selection._SCORES", 1 << 10)
    case = Case(CHOSEN, SCENES[scene], Model(1, 2), 0, 1, (16, 16), 5)
    layer, layout = bound_layer(case.recipe, case.model, 0), layout_of(case.scene)
    query, key, value = case.tensors()
    wanted = oracle.attention(query, key, value, expected(case, query, key))
    for kernel in ("auto", "blockwise"):
        got = AttentionProgram(layout, kernel).attend(layer, query, key, value)
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


def test_gradients_flow_through_attention_alone() -> None:
    case = Case(CHOSEN, Contiguous(60, 60), Model(1, 4), 0, 2, (16, 16), 6)
    layer, layout = bound_layer(case.recipe, case.model, 0), layout_of(case.scene)
    query, key, value = (tensor.requires_grad_() for tensor in case.tensors())
    wanted = oracle.attention(query, key, value, expected(case, query.detach(), key.detach()))
    grads = torch.autograd.grad(wanted.square().sum(), (query, key, value))
    for kernel in ("dense", "blockwise"):
        got = AttentionProgram(layout, kernel).attend(layer, query, key, value)
        for ours, theirs in zip(torch.autograd.grad(got.square().sum(), (query, key, value)), grads, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_slots_in_any_order_choose_alike() -> None:
    """A cache may hold its keys in any order, and some slots hold none."""
    random = torch.Generator().manual_seed(1)
    layer = bind((TopBlocks(4, 2) | SinkTokens(1)) & ~SlidingWindow(2), 1, 2).layers[0]
    query, key, value = (torch.randn(1, 2, 40, 8, generator=random) for _ in range(3))
    wanted = AttentionProgram(TokenLayout.contiguous(40)).attend(layer, query, key, value)
    order = torch.randperm(45, generator=random)
    positions = torch.nn.functional.pad(torch.arange(40), (0, 5), value=-1)[order].unsqueeze(0)
    keys, values = (torch.nn.functional.pad(one, (0, 0, 0, 5), value=9.0)[:, :, order] for one in (key, value))
    for kernel in ("dense", "blockwise"):
        layout = TokenLayout(torch.arange(40).unsqueeze(0), positions, torch.zeros(1, 40, dtype=torch.bool))
        got = AttentionProgram(layout, kernel).attend(layer, query, keys, values)
        torch.testing.assert_close(got, wanted)
    last = TokenLayout(torch.tensor([[39]]), positions, torch.zeros(1, 1, dtype=torch.bool))
    step = AttentionProgram(last).attend(layer, query[:, :, -1:], keys, values)
    torch.testing.assert_close(step, wanted[:, :, -1:])


@pytest.mark.parametrize("later", [1, 7, 16])
def test_later_tokens_change_nothing(later: int) -> None:
    """Whatever comes behind a query, it sees what it saw without."""
    random = torch.Generator().manual_seed(2)
    layer = bind(TopBlocks(4, 2) | SinkTokens(1), 1, 2).layers[0]
    query, key, value = (torch.randn(2, 2, 30, 8, generator=random) for _ in range(3))
    before = AttentionProgram(TokenLayout.contiguous(30)).attend(layer, query, key, value)
    for tensor in (query, key, value):
        tensor[:, :, -later:] = 10 * torch.randn(2, 2, later, 8, generator=random)
    after = AttentionProgram(TokenLayout.contiguous(30)).attend(layer, query, key, value)
    assert torch.equal(before[:, :, :-later], after[:, :, :-later])
    assert not torch.allclose(before[:, :, -later:], after[:, :, -later:])


def test_of_equal_blocks_the_earlier_one_is_chosen() -> None:
    layer = bind(TopBlocks(2, 1), 1, 1).layers[0]
    selection = Selection.of(
        layer, TokenLayout.contiguous(1, 7, offset=6), torch.ones(1, 1, 1, 2), torch.ones(1, 1, 7, 2)
    )
    assert selection.dense_mask().tolist() == [[[[True, True, False, False, False, False, True]]]]


def test_autocast_chooses_the_same() -> None:
    """In 16 bits, products of many blocks are equal or change their order."""
    random = torch.Generator().manual_seed(3)
    layer, layout = bind(TopBlocks(1, 3), 1, 2).layers[0], TokenLayout.contiguous(200)
    query, key = torch.randn(2, 1, 2, 200, 8, generator=random)
    with torch.autocast("cpu", torch.bfloat16):
        chosen = Selection.of(layer, layout, query, key).dense_mask()
    assert torch.equal(chosen, Selection.of(layer, layout, query, key).dense_mask())


# ------------------------------------------------------------------------------------ what is known beforehand


def test_nothing_is_freed_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    layer = bind(TopBlocks(11, 1) & SlidingWindow(8), 1, 1).layers[0]
    with caplog.at_level(logging.WARNING):
        live = live_keys(layer, torch.tensor([[0, 5, -1, 90]]), torch.tensor([91]))
        live_keys(layer, torch.tensor([[0]]), torch.tensor([91]))
    assert live.tolist() == [[[True, True, False, True]]]
    assert len(caplog.records) == 1
    assert "keys cannot be freed: TopBlocks(11, 1) chooses by content" in caplog.text
    assert not KeyTable(layer)._may_drop


def test_after_a_prompt_chosen_by_content_keys_may_go() -> None:
    layer = bind(TopBlocks(4, 1).in_phase("prefill", otherwise=SlidingWindow(2)), 1, 1).layers[0]
    keys, prompt = torch.arange(8).unsqueeze(0), torch.tensor([8])
    assert live_keys(layer, keys, torch.tensor([6]), prompt).all()
    assert live_keys(layer, keys, torch.tensor([8]), prompt)[0, 0].nonzero().flatten().tolist() == [7]


SHAPE = ModelShape(2, 4, 2, 8)


@pytest.mark.parametrize(
    ("policy", "exact"),
    [
        ("TopBlocks(8, 2)", True),
        ("TopBlocks(8, 2) | SinkTokens(4)", False),
        ("TopBlocks(8, 2) & SlidingWindow(20)", False),
        ("~TopBlocks(8, 2)", False),
        ("TopBlocks(8, 2) | TopBlocks(4, 1)", False),
    ],
)
def test_costs_are_upper_bounds(policy: str, exact: bool) -> None:
    cost = estimate_cost(parse_policy(policy), SHAPE, 50, 6)
    layer = bind(parse_policy(policy), 2, 4).layers[0]
    random = torch.Generator().manual_seed(3)
    query, key = torch.randn(1, 4, 56, 8, generator=random), torch.randn(1, 2, 56, 8, generator=random)
    mask = Selection.of(layer, TokenLayout.contiguous(56), query, key).dense_mask()
    pairs = int(mask[:, :, :50].sum()), int(mask[:, :, 50:].sum())
    bounds = cost.layers[0].prefill_pairs, cost.layers[0].decode_pairs
    assert all(real <= bound for real, bound in zip(pairs, bounds, strict=True))
    assert (pairs == bounds) == exact
    assert cost.layers[0].kept_keys == 2 * 50


def test_explain_says_so() -> None:
    (layer,) = explain(TopBlocks(8, 2), SHAPE, 100)["layers"]
    assert layer["kv_share"] == 1
    assert layer["notes"][0] == "keys cannot be freed: TopBlocks(8, 2) chooses by content"
    assert "at most" in layer["notes"][1]
    (layer,) = explain(TopBlocks(8, 2).in_phase("prefill", otherwise=SlidingWindow(8)), SHAPE, 100)["layers"]
    assert layer["notes"][0].startswith("keys cannot be freed before the prompt ends")
    assert layer["kv_share"] < 0.1
    answers = (TopBlocks(8, 2) & SlidingWindow(64)).in_phase("decode", otherwise=SlidingWindow(8))
    (layer,) = explain(answers, SHAPE, 1000)["layers"]
    assert "content" not in layer["prefill_kernel"]
    (layer,) = explain(SlidingWindow(8), SHAPE, 100)["layers"]
    assert layer["notes"] == []


def test_a_picture_shades_what_depends_on_content() -> None:
    (picture,) = mask_pictures(
        TopBlocks(2, 1) | SinkTokens(1), num_layers=1, num_heads=1, length=6, prompt_length=6, resolution=6
    )
    assert picture["note"] == "half visible: what TopBlocks(2, 1) chooses by content"
    assert picture["cells"][5] == [1, 0.5, 0.5, 0.5, 1, 1]
    (picture,) = mask_pictures(SinkTokens(1), num_layers=1, num_heads=1, length=6, prompt_length=6, resolution=6)
    assert picture["note"] is None


def test_the_plan_keeps_to_dense_masks_on_cpu() -> None:
    layer = bind(TopBlocks(8, 2), 1, 4).layers[0]
    assert choose_kernel(layer, Job(4096, 4096)).kernel is Kernel.DENSE
    assert choose_kernel(layer, Job(4096, 4096), "blockwise").kernel is Kernel.BLOCKWISE
    assert choose_kernel(layer, Job(4096, 4096, device_type="cuda")).kernel is Kernel.FLEX


def test_policies_are_values() -> None:
    policy = (TopBlocks(64, 8) | SinkTokens(4)).in_phase("prefill").on_heads([0])
    assert parse_policy(repr(policy)) == policy
    assert TopBlocks(8, 2) | TopBlocks(8, 3) == TopBlocks(8, 3)
    assert ~~TopBlocks(8, 2) == TopBlocks(8, 2)
    assert stack(rule(TopBlocks(8, 2), phase="prefill"), rule(SlidingWindow(4))) != policy


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopBlocks(0, 1), r"TopBlocks.block_size: expected an int >= 1 \(tokens\), got 0"),
        (lambda: TopBlocks(8, 0), r"TopBlocks.num_blocks: expected an int >= 1 \(blocks\), got 0"),
        (lambda: TopBlocks(8, 1).visible(1, 0), "depends on queries and keys"),  # type: ignore[arg-type]
        (lambda: parse_policy("TopBlocks(8)"), "num_blocks"),
    ],
)
def test_bad_values(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_readings_of_positions_alone_refuse_by_name() -> None:
    layer = bind(TopBlocks(8, 2), 1, 1).layers[0]
    with pytest.raises(UserError, match=r"TopBlocks\(8, 2\): what it shows depends on queries and keys"):
        dense_mask(layer, TokenLayout.contiguous(4))


def test_missing_keys_are_refused() -> None:
    layer = bind(TopBlocks(4, 1), 1, 1).layers[0]
    tensors = [torch.ones(1, 1, length, 2) for length in (4, 17, 17)]
    with pytest.raises(UserError, match=r"TopBlocks\(4, 1\): chooses blocks by the mean of their keys, and keys"):
        AttentionProgram(TokenLayout.contiguous(4, 17, offset=16, key_offset=3)).attend(layer, *tensors)


def test_more_than_three_choices_are_refused() -> None:
    policy = TopBlocks(1, 1) | TopBlocks(2, 1) | TopBlocks(3, 1) | TopBlocks(4, 1)
    with pytest.raises(UserError, match="at most 3 different choices by content in one layer, got 4"):
        AttentionProgram(TokenLayout.contiguous(4)).attend(bind(policy, 1, 1).layers[0], *[torch.ones(1, 1, 4, 2)] * 3)


@dataclass(frozen=True, repr=False)
class Bad(ContentPolicy):
    """One that answers nonsense."""

    block_size: int
    kind: str

    def select(self, query: Tensor, key_means: Tensor, candidates: Tensor) -> Tensor:
        if self.kind == "scores":
            return query @ key_means.transpose(-1, -2)
        if self.kind == "shape":
            return candidates[..., :1]
        raise RuntimeError("no idea")

    @classmethod
    def examples(cls) -> tuple[Bad, ...]:
        return ()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("scores", r"Bad.select: expected a bool tensor of shape \(1, 1, 9, 3\).* got torch.float32"),
        ("shape", r"Bad.select: expected a bool tensor .* got torch.bool \(1, 1, 9, 1\)"),
        ("raises", r"Bad.select: fails \(RuntimeError: no idea\)"),
    ],
)
def test_bad_answers_are_refused(kind: str, message: str) -> None:
    layer = bind(Bad(4, kind), 1, 1).layers[0]
    with pytest.raises(UserError, match=message):
        AttentionProgram(TokenLayout.contiguous(9)).attend(layer, *[torch.ones(1, 1, 9, 2)] * 3)


@pytest.mark.parametrize("asked", ["prefill", "decode"])
def test_a_phase_that_does_not_choose_asks_nobody(asked: str) -> None:
    layer = bind(Bad(4, "raises").in_phase(asked), 1, 1).layers[0]
    layout = TokenLayout.contiguous(9, prompt_lengths=0 if asked == "prefill" else 9)
    tensors = torch.randn(3, 1, 1, 9, 2, generator=torch.Generator().manual_seed(6))
    given = AttentionProgram(layout).attend(layer, *tensors)
    torch.testing.assert_close(given, torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True))


def test_a_choice_does_not_look_ahead() -> None:
    with pytest.raises(UserError, match="Both: chooses by content and looks ahead.* Leave out looks_ahead"):
        type("Both", (TopBlocks,), {"looks_ahead": True})


@dataclass(frozen=True, repr=False)
class Greedy(Bad):
    """One that asks for everything, later blocks too."""

    kind: str = ""

    def select(self, query: Tensor, key_means: Tensor, candidates: Tensor) -> Tensor:
        return torch.ones_like(candidates)


def test_what_is_chosen_beside_the_candidates_is_dropped() -> None:
    layer = bind(Greedy(4), 1, 1).layers[0]
    layout = TokenLayout.packed(torch.tensor([[*range(9), *range(5)]]))
    mask = Selection.of(layer, layout, torch.ones(1, 1, 14, 2), torch.ones(1, 1, 14, 2)).dense_mask()
    assert torch.equal(mask, dense_mask(bind(parse_policy("FullAttention()"), 1, 1).layers[0], layout))


def test_an_unknown_bound_is_everything() -> None:
    assert Greedy(4).most_blocks is None
    assert estimate_cost(Greedy(4), SHAPE, 20).visible_pair_share == 1

"""Blockwise attention against attention written row by row: values, gradients, score modifications, dropout, memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import oracle
from measure import time_and_memory
from oracle import Atom, Complement, Contiguous, Model, Packed, Padded, Place, Scope, Turns, Union
from strategies import Case, bound_layer, cases, layout_of
from swaa import FullAttention, SinkTokens, SlidingWindow
from swaa.compiler import blockrows
from swaa.compiler.blockrows import BlockRows
from swaa.compiler.blocks import block_mask
from swaa.compiler.blockwise import blockwise_attention
from swaa.compiler.layout import TokenLayout
from swaa.policies import bind

TENTH = settings(max_examples=max(20, settings.default.max_examples // 10))
TWENTIETH = settings(max_examples=max(20, settings.default.max_examples // 20))
LIMITS = (
    {},
    {"_GATHERED": 1},  # each row alone
    {"_GATHERED": 60, "_SHARED_BY": 1, "_KEPT_BYTES": 0},  # a few rows at a time, and no mask kept
    {"_SHARED_BY": 1_000_000, "_EVALUATED": 200},  # every row with a mask of its own
)


@contextmanager
def limits(seed: int) -> Iterator[None]:
    """One of several ways to split the work, which must not change the result."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LIMITS[seed % len(LIMITS)].items():
            patch.setattr(blockrows, name, value)
        yield


@TENTH
@given(cases())
def test_equal_to_the_loops(case: Case) -> None:
    """Any policy, layout, head sharing and block size; values of another size than keys."""
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth = oracle.mask(case.recipe, case.scene, case.model, case.layer)
    query, key, value = case.tensors()
    value = torch.cat([value, value[..., :2]], -1) if case.seed % 3 else value
    with limits(case.seed):
        out = blockwise_attention(query, key, value, block_mask(layer, layout, block_size=case.block_size), scale=None)
    expected = oracle.attention(query, key, value, truth)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@TWENTIETH
@given(cases(longest=12))
def test_score_modifications(case: Case) -> None:
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth = oracle.mask(case.recipe, case.scene, case.model, case.layer)
    mask = block_mask(layer, layout, block_size=case.block_size)
    query, key, value = case.tensors()
    logits = [0.5 - head for head in range(case.model.heads)]
    for scale, softcap, sinks in ((0.3, None, None), (None, 2.0, None), (None, None, logits), (0.7, 5.0, logits)):
        mine = blockwise_attention(
            query,
            key,
            value,
            mask,
            scale=scale,
            softcap=softcap,
            sink_logits_H=None if sinks is None else torch.tensor(sinks),
        )
        expected = oracle.attention(query, key, value, truth, scale=scale, softcap=softcap, sink_logits=sinks)
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


@TWENTIETH
@given(cases(longest=10))
def test_gradients(case: Case) -> None:
    """Equal to those of the loops, and never NaN, hidden rows or not."""
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth = oracle.mask(case.recipe, case.scene, case.model, case.layer)
    mask = block_mask(layer, layout, block_size=case.block_size)
    gradients = []
    for loops in (False, True):
        tensors = [tensor.double().requires_grad_() for tensor in case.tensors()]
        with limits(case.seed):
            out = oracle.attention(*tensors, truth) if loops else blockwise_attention(*tensors, mask, scale=None)
            weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
            if out.requires_grad:
                (out * weights).sum().backward()
        gradients.append([torch.zeros_like(t) if t.grad is None else t.grad for t in tensors])
    for mine, expected in zip(*gradients, strict=True):
        assert not mine.isnan().any()
        torch.testing.assert_close(mine, expected)


MODEL = Model(layers=1, heads=4)
WINDOW_AND_SINKS = Union((Atom("SlidingWindow", (40,)), Atom("SinkTokens", (5,))))
PADDED = Padded(
    (tuple(i >= 90 for i in range(200)), tuple(i < 150 for i in range(200)), (True,) * 200), prompts=(60, 150, 0)
)
LONGER = {
    "window and sinks": (WINDOW_AND_SINKS, Contiguous(300, 300)),
    "phases, mixed padding": (Scope(WINDOW_AND_SINKS, Place(phase="prefill")), PADDED),
    "heads that differ": (Scope(WINDOW_AND_SINKS, Place(heads="::2"), Complement(Atom("Chunked", (50,)))), PADDED),
    "packed documents": (
        Scope(WINDOW_AND_SINKS, Place(phase="decode"), Atom("Dilated", (3,))),
        Packed(((100, 40, 60), (200,)), ((30, 0, 60), (90,))),
    ),
    "packed turns": (
        Scope(WINDOW_AND_SINKS, Place(phase="prefill"), Atom("SlidingWindow", (9,))),
        Turns(
            Packed(((100, 40, 60), (200,))),
            (tuple(i % 70 >= 25 for i in range(200)), tuple(i // 3 % 2 == 0 for i in range(200))),
        ),
    ),
    "a chunk over a cache that begins late": (WINDOW_AND_SINKS, Contiguous(70, 150, 230, 150, prompts=(260, 240))),
    "a chunk that sees all": (Atom("FullAttention"), Contiguous(70, 203, 133)),
    "nothing to see": (Complement(Atom("SlidingWindow", (30,))), Contiguous(140, 140)),
}


def tensors_of(scene: oracle.Scene, dtype: torch.dtype = torch.float32, kv_heads: int = 2) -> list[Tensor]:
    samples = oracle.slots(scene)
    random = torch.Generator().manual_seed(0)
    queries, keys = (len(side) for side in samples[0])
    sizes = ((4, queries), (kv_heads, keys), (kv_heads, keys))
    return [torch.randn(len(samples), h, length, 8, generator=random).to(dtype) for h, length in sizes]


@functools.cache
def by_loops(name: str) -> Tensor:
    """What the loops say of the tensors above; they take a second, so once for all tests, none of which changes it."""
    recipe, scene = LONGER[name]
    return oracle.attention(*tensors_of(scene), oracle.mask(recipe, scene, MODEL, 0))


@pytest.mark.parametrize("sizes", [(16, 16), (64, 32), (128, 64)])
@pytest.mark.parametrize("name", LONGER)
def test_sizes_as_they_are_run(name: str, sizes: tuple[int, int]) -> None:
    recipe, scene = LONGER[name]
    mask = block_mask(bound_layer(recipe, MODEL, 0), layout_of(scene), block_size=sizes)
    out = blockwise_attention(*tensors_of(scene), mask, scale=None)
    expected = by_loops(name)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert (out[(expected == 0).all(-1)] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LONGER)
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    """As near to the truth as rounding allows, gradients too; nothing is NaN where nothing is seen."""
    recipe, scene = LONGER[name]
    mask = block_mask(bound_layer(recipe, MODEL, 0), layout_of(scene), block_size=(32, 16))
    results = []
    for precision in (dtype, torch.float64):
        tensors = [tensor.to(precision).requires_grad_() for tensor in tensors_of(scene, dtype)]
        out = blockwise_attention(*tensors, mask, scale=None)
        out.square().sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in tensors)])
    for mine, exact in zip(*results, strict=True):
        assert mine is not None
        assert exact is not None
        assert mine.dtype == dtype
        assert (mine.double() - exact).norm() <= 0.02 * exact.norm()


@pytest.mark.parametrize("name", ["phases, mixed padding", "heads that differ", "a chunk that sees all"])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_gradcheck(name: str, softcap: float | None, with_sinks: bool) -> None:
    recipe, scene = LONGER[name]
    mask = block_mask(bound_layer(recipe, MODEL, 0), layout_of(scene), block_size=(32, 16))
    inputs = [tensor[:, :, :, :2].requires_grad_() for tensor in tensors_of(scene, torch.float64)]
    inputs += [torch.linspace(-1, 1, 4, dtype=torch.float64).requires_grad_()] if with_sinks else []

    def attend(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None = None) -> Tensor:
        return blockwise_attention(query, key, value, mask, scale=None, softcap=softcap, sink_logits_H=sinks)

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


def test_gradients_of_a_token_that_all_queries_see_are_summed_in_float32() -> None:
    layer = bind(SlidingWindow(8) | SinkTokens(1), 1, 2).layers[0]
    mask = block_mask(layer, TokenLayout.contiguous(8192), block_size=(16, 16))
    random = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, heads, 8192, 8, generator=random).bfloat16() for heads in (2, 1, 1)]
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        tensors = [tensor.to(dtype).detach().requires_grad_() for tensor in drawn]
        with limits(1):  # within one batch torch sums well, so each row is one
            blockwise_attention(*tensors, mask, scale=None).sum().backward()
        assert tensors[2].grad is not None
        gradients.append(tensors[2].grad[0, 0, 0].double())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.01, atol=0)


def test_one_layout_for_all_samples() -> None:
    recipe, scene = LONGER["window and sinks"]
    mask = block_mask(bound_layer(recipe, MODEL, 0), layout_of(scene), block_size=(64, 32))
    tensors = [torch.cat([t, t.flip(2), -t]) for t in tensors_of(scene)]
    expected = oracle.attention(*tensors, oracle.mask(recipe, scene, MODEL, 0))
    torch.testing.assert_close(blockwise_attention(*tensors, mask, scale=None), expected, rtol=1e-4, atol=1e-5)


def test_rows_of_other_sizes_are_refused() -> None:
    mask = block_mask(bound_layer(*LONGER["phases, mixed padding"][:1], MODEL, 0), layout_of(PADDED))
    with pytest.raises(ValueError, match="3, 1.* for 2 and 4"):
        BlockRows.of(mask, batch_size=2, num_heads=4, num_kv_heads=2)


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_dropout_drops_the_same_weights_in_the_backward_pass(softcap: float | None) -> None:
    """The output is linear in the values, whatever was dropped: so their gradient tells what was."""
    recipe, scene = LONGER["window and sinks"]
    mask = block_mask(bound_layer(recipe, MODEL, 0), layout_of(scene), block_size=(32, 32))
    query, key, _ = tensors_of(scene)
    value = torch.ones(1, 2, 300, 8, requires_grad=True)
    torch.manual_seed(0)
    with limits(1):
        out = blockwise_attention(query, key, value, mask, scale=None, dropout=0.5, softcap=softcap)
        weights = torch.randn_like(out)
        torch.rand(7)  # whatever else draws numbers in between
        before = torch.get_rng_state()
        (out * weights).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert out.std() > 0.05
    assert abs(float(out.detach().mean()) - 1) < 0.1
    assert value.grad is not None
    torch.testing.assert_close((value.grad * value).sum(), (out * weights).sum(), rtol=1e-3, atol=1e-3)


def test_autocast() -> None:
    recipe, scene = LONGER["window and sinks"]
    mask = block_mask(bound_layer(recipe, MODEL, 0), layout_of(scene), block_size=(32, 32))
    tensors = [t.requires_grad_() for t in tensors_of(scene)]
    with torch.autocast("cpu", torch.bfloat16):
        out = blockwise_attention(*tensors, mask, scale=None)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in tensors)
    expected = by_loops("window and sinks")
    assert (out - expected).norm() < 0.02 * expected.norm()


# ------------------------------------------------------------------------------------------------------- the plan


@functools.cache
def rows_of(window: int, sinks: int, length: int) -> BlockRows:
    layer = bind(SlidingWindow(window) | SinkTokens(sinks), 1, 4).layers[0]
    mask = block_mask(layer, TokenLayout.contiguous(length), block_size=(128, 64))
    return BlockRows.of(mask, batch_size=1, num_heads=4, num_kv_heads=2)


def test_a_sliding_window_has_a_handful_of_local_masks_however_long() -> None:
    """Equal blocks are kept once, and nearly all rows are done under one mask: that of the first of them."""
    short, long = rows_of(256, 10, 2048), rows_of(256, 10, 32_768)
    assert len(short.blocks_UQK) == len(long.blocks_UQK) <= 8
    shared = [batch for batch in long.batches if batch.blocks_RC is not None and len(batch.blocks_RC) == 1]
    assert sum(len(batch.rows_R) for batch in shared) >= 250
    assert long.covers
    assert all(batch.hidden_RQ is None for batch in long.batches)


def test_block_masks_that_look_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fingerprints bring equal masks together; they do not make masks equal."""
    random = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 3, generator=random) < 0.5
    distinct, number = blockrows._distinct(masks)
    assert torch.equal(distinct[number], masks)
    assert len(distinct) == 8
    assert torch.equal(distinct[:1], masks[:1])
    zeros = torch.zeros(3, dtype=torch.int64)
    monkeypatch.setattr(blockrows.torch, "randint", lambda *_, **__: zeros)
    distinct, number = blockrows._distinct(masks)
    assert torch.equal(distinct[number], masks)


def test_padding_of_rows_is_bounded() -> None:
    """One row that sees everything makes no other row longer."""
    layer = bind((SlidingWindow(64) | SinkTokens(1)).in_phase("prefill"), 1, 8).layers[0]
    mask = block_mask(layer, TokenLayout.contiguous(8192, prompt_lengths=8100), block_size=(64, 64))
    rows = BlockRows.of(mask, batch_size=1, num_heads=8, num_kv_heads=8)
    done = sum(batch.width * len(batch.rows_R) for batch in rows.batches)
    counts = mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()  # type: ignore[union-attr]
    assert counts <= done <= 1.2 * counts
    assert max(batch.width for batch in rows.batches) == 128
    assert any(batch.at is not None for batch in rows.batches), "the keys of a row that sees all are not copied"


def test_full_rows_have_no_mask() -> None:
    layer = bind(FullAttention(), 1, 2).layers[0]
    far = block_mask(layer, TokenLayout.contiguous(64, 640, offset=1000), block_size=(16, 32))
    seen = BlockRows.of(far, batch_size=1, num_heads=2, num_kv_heads=1)
    assert [batch.blocks_RC for batch in seen.batches] == [None]
    assert len(seen.blocks_UQK) == 2


SETUP = """
import torch
from swaa import SinkTokens, SlidingWindow
from swaa.compiler.blocks import block_mask
from swaa.compiler.blockwise import blockwise_attention
from swaa.compiler.layout import TokenLayout
from swaa.policies import bind

layer = bind(SlidingWindow(256) | SinkTokens(10), 1, 4).layers[0]

def step(length):
    tensors = [torch.randn(1, h, length, 64, requires_grad=True) for h in (4, 2, 2)]
    mask = block_mask(layer, TokenLayout.contiguous(length), block_size=(128, 64))
    blockwise_attention(*tensors, mask, scale=None).sum().backward()
"""


def test_memory_is_linear() -> None:
    """Forward and backward; gathered keys and values alone would be 470 MB at the longer length, a mask 1 GB."""
    _, megabytes = time_and_memory(SETUP, "step(32_768)", warm_up="step(1024)")
    assert megabytes < 400

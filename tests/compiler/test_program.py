"""Attention programs: masks built once, shared between layers, for the kernel that the plan names."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import event, given, settings
from torch import Tensor
from torch._dynamo.utils import counters

import oracle
from oracle import Atom
from strategies import Case, bound_layer, cases, layout_of
from swaa import FullAttention, SinkTokens, SlidingWindow, UserError, every
from swaa.compiler import plan, program, runs
from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.compiler.plan import Kernel, KernelPlan, has_cpp_compiler
from swaa.compiler.program import AttentionProgram
from swaa.compiler.runs import causal_runs, hides_nothing
from swaa.policies import bind

TENTH = settings(max_examples=max(20, settings.default.max_examples // 10))
FIFTH = settings(max_examples=max(20, settings.default.max_examples // 5))
BEST = (SlidingWindow(20) | SinkTokens(3)).in_phase("prefill").on_layers(every(2))


def test_layers_with_equal_policies_share_one_mask() -> None:
    layers = bind(BEST, 30, 4).layers
    run = AttentionProgram(TokenLayout.contiguous(200, prompt_lengths=150))
    assert len({id(run.block_mask(layer)) for layer in layers}) == 2
    assert len({id(run.dense_mask(layer)) for layer in layers}) == 2
    assert run.block_mask(layers[0]) is run.block_mask(layers[28])
    assert run.block_mask(layers[0]) is not run.block_mask(layers[1])
    assert run.block_mask(layers[0]).shape[1] == 1
    written_otherwise = bind((SinkTokens(3) | SlidingWindow(20)).on_layers("::2").in_phase("prefill"), 30, 4)
    assert run.block_mask(written_otherwise.layers[0]) is run.block_mask(layers[0])


def test_block_masks_are_as_long_as_their_bucket() -> None:
    layer = bind(BEST, 2, 4).layers[0]
    run = AttentionProgram(TokenLayout.contiguous(1300))
    assert run.block_mask(layer).seq_lengths == (1536, 1536)


def test_one_query_that_sees_every_key_needs_no_mask() -> None:
    layer = bind(SlidingWindow(8), 1, 1).layers[0]
    assert AttentionProgram(TokenLayout.contiguous(1, 8, offset=7)).dense_mask(layer) is None
    mask = AttentionProgram(TokenLayout.contiguous(1, 9, offset=8)).dense_mask(layer)
    assert mask is not None
    assert mask.tolist() == [[[[False] + [True] * 8]]]


def test_a_program_moves_and_builds_anew() -> None:
    layer = bind(BEST, 2, 4).layers[0]
    run = AttentionProgram(TokenLayout.contiguous(50), kernel="dense")
    mask = run.dense_mask(layer)
    moved = run.to("cpu")
    assert moved.kernel == "dense"
    assert moved.layout.is_square
    again = moved.dense_mask(layer)
    assert mask is not None
    assert again is not None
    assert again is not mask
    assert torch.equal(again, mask)


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, 30, 8, generator=random) for heads in (4, 2, 2)]


def test_all_kernels_of_short_sequences_agree(tensors: list[torch.Tensor]) -> None:
    layers = bind(BEST, 2, 4).layers
    layout = TokenLayout.contiguous(30)
    auto, dense = AttentionProgram(layout), AttentionProgram(layout, kernel="dense")
    for layer in layers:
        torch.testing.assert_close(auto.attend(layer, *tensors), dense.attend(layer, *tensors))
    assert not torch.allclose(auto.attend(layers[0], *tensors), auto.attend(layers[1], *tensors))
    assert list(dense._dense) == list(layers)
    assert list(auto._dense) == [layers[0]], "the causal kernel needs no mask"


def test_a_fallback_is_said_once(
    tensors: list[torch.Tensor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = bind(SlidingWindow(20), 1, 4).layers[0]
    program._said.clear()
    monkeypatch.setattr(program, "choose_kernel", lambda *_: KernelPlan(Kernel.DENSE, "as on a gpu", True))
    with caplog.at_level(logging.WARNING, "swaa"):
        for _ in range(3):
            AttentionProgram(TokenLayout.contiguous(30)).attend(layer, *tensors)
    assert caplog.messages == ["attention runs on the dense kernel, not on FlexAttention: as on a gpu"]


def test_flex_is_refused_where_it_cannot_be(tensors: list[torch.Tensor]) -> None:
    layer = bind(SlidingWindow(20), 1, 4).layers[0]
    tensors[1].requires_grad_()
    with pytest.raises(UserError, match="'flex' was asked for, but FlexAttention has no backward pass on CPU"):
        AttentionProgram(TokenLayout.contiguous(30), kernel="flex").attend(layer, *tensors)


def test_a_kernel_that_does_not_compile(
    tensors: list[torch.Tensor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the choice is swaa's, it is blockwise, said once; where FlexAttention was asked for, an error."""

    def broken(*_: object, **__: object) -> torch.Tensor:
        raise NotImplementedError("no such instruction\nand a long trace")

    monkeypatch.setattr(program, "blocksparse_attention", broken)
    monkeypatch.setattr(program, "_uncompilable", {})
    monkeypatch.setattr(plan, "has_cpp_compiler", lambda: True)
    layer, layout = bind(SlidingWindow(20), 1, 4).layers[0], TokenLayout.contiguous(30)
    expected = AttentionProgram(layout, kernel="dense").attend(layer, *tensors)
    with monkeypatch.context() as as_on_a_gpu, caplog.at_level(logging.WARNING, "swaa"):
        as_on_a_gpu.setattr(program, "choose_kernel", lambda *_: KernelPlan(Kernel.FLEX, "sparse mask"))
        for _ in range(3):
            torch.testing.assert_close(AttentionProgram(layout).attend(layer, *tensors), expected)
    assert caplog.messages == [
        "SlidingWindow(20): FlexAttention does not compile (no such instruction); attention runs blockwise on SDPA"
    ]
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="no such instruction"):
            AttentionProgram(layout, kernel="flex").attend(layer, *tensors)


def test_samples_laid_out_alike_share_a_row() -> None:
    layer = bind(FullAttention(), 1, 1).layers[0]
    assert dense_mask(layer, TokenLayout.contiguous(4)).shape == (1, 1, 4, 4)
    assert dense_mask(layer, TokenLayout.padded(torch.ones(3, 4))).shape == (3, 1, 4, 4)


def forced(patch: pytest.MonkeyPatch) -> None:
    """Every way to compute is open to the shortest sequences."""
    patch.setattr(plan, "DENSE_ON_CPU_UP_TO", 0)
    patch.setattr(runs, "_LEAST_TOKENS", 1)


@TENTH
@given(cases())
def test_whatever_is_chosen_equals_the_loops(case: Case) -> None:
    """And so do its gradients, where the layout cuts full attention into runs, too."""
    full = case.seed % 3 == 0
    recipe: oracle.Recipe = Atom("FullAttention") if full else case.recipe
    layer, layout = bound_layer(recipe, case.model, case.layer), layout_of(case.scene)
    truth = oracle.mask(recipe, case.scene, case.model, case.layer)
    with pytest.MonkeyPatch.context() as patch:
        forced(patch)
        patch.setattr(
            program, "choose_kernel", lambda *args: (lambda it: (event(str(it)), it)[1])(plan.choose_kernel(*args))
        )
        with torch.no_grad():
            expected = oracle.attention(*case.tensors(), truth)
            for kernel in ("auto", "blockwise", "dense"):
                out = AttentionProgram(layout, kernel).attend(layer, *case.tensors())
                torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        gradients = []
        for mine in (True, False):
            inputs = [tensor.double().requires_grad_() for tensor in case.tensors()]
            out = AttentionProgram(layout).attend(layer, *inputs) if mine else oracle.attention(*inputs, truth)
            if out.requires_grad:
                (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
            gradients.append([torch.zeros_like(t) if t.grad is None else t.grad for t in inputs])
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


@FIFTH
@given(cases())
def test_a_policy_that_is_said_to_hide_nothing_hides_nothing(case: Case) -> None:
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    full = bind(FullAttention(), 1, 1).layers[0]
    if hides_nothing(layer, layout):
        mask, whole = dense_mask(layer, layout), dense_mask(full, layout)
        assert torch.equal(*torch.broadcast_tensors(mask, whole))


def test_windows_as_long_as_the_sequence_hide_nothing() -> None:
    for size, expected in ((99, False), (100, True), (5000, True)):
        layer = bind((SlidingWindow(size) | SinkTokens(3)).in_phase("prefill"), 1, 2).layers[0]
        assert hides_nothing(layer, TokenLayout.contiguous(100, prompt_lengths=50)) is expected


def left_padded(*padding: int, length: int = 300) -> Tensor:
    return torch.arange(length) >= torch.tensor(padding).unsqueeze(-1)


LAYOUTS = {
    "left padding": (TokenLayout.padded(left_padded(100, 0)), 2),
    "right padding": (TokenLayout.padded(left_padded(100, 30).flip(-1)), 2),
    "the same padding": (TokenLayout.padded(left_padded(50, 50)), 1),
    "a chunk": (TokenLayout.contiguous(100, offset=200), 1),
    "a padded chunk": (TokenLayout.padded(left_padded(130, 7), 200), 2),
    "a static cache": (TokenLayout.padded(left_padded(130, 7), 100, 350, offset=200), 2),
    "packed documents": (TokenLayout.packed(torch.cat([torch.arange(n) for n in (90, 140, 70)])[None]), 3),
    "holes": (TokenLayout.padded(torch.arange(300)[None] % 100 > 3), None),
    "many short documents": (TokenLayout.packed(torch.arange(10).repeat(30)[None]), None),
    "keys in any order": (
        TokenLayout(
            torch.arange(100, 200)[None], torch.arange(199, -1, -1)[None], torch.zeros(1, 100, dtype=torch.bool)
        ),
        None,
    ),
    "keys that are gone": (
        TokenLayout(torch.arange(100, 200)[None], torch.arange(150, 200)[None], torch.zeros(1, 100, dtype=torch.bool)),
        None,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_full_attention_needs_no_mask_where_it_falls_into_runs(name: str) -> None:
    layout, count = LAYOUTS[name]
    found = causal_runs(layout)
    assert (None if found is None else len(found)) == count
    layer = bind(FullAttention(), 1, 4).layers[0]
    random = torch.Generator().manual_seed(0)
    shapes = ((4, layout.query_length), (2, layout.key_length), (2, layout.key_length))
    tensors = [torch.randn(2, heads, length, 8, generator=random) for heads, length in shapes]
    auto, dense = AttentionProgram(layout), AttentionProgram(layout, "dense")
    expected = dense.attend(layer, *tensors)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        got = auto.attend(layer, *(tensor.to(dtype) for tensor in tensors))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance)
    assert bool(auto._dense or auto._rows) == (count is None)


def test_keys_of_an_evicting_cache_lie_in_any_order() -> None:
    """Free slots, old keys behind new ones, several queries: the same as with the keys in order."""
    layer = bind(SlidingWindow(40) | SinkTokens(3), 1, 4).layers[0]
    random = torch.Generator().manual_seed(0)
    positions = torch.cat([torch.arange(3), torch.arange(160, 500), torch.full((20,), -1)])
    order = torch.randperm(len(positions), generator=random)
    query = torch.randn(1, 4, 300, 8, generator=random)
    keys = [torch.randn(1, 2, len(positions), 8, generator=random) for _ in range(2)]
    queries, decodes = torch.arange(200, 500)[None], torch.zeros(1, 300, dtype=torch.bool)
    in_order = AttentionProgram(TokenLayout(queries, positions[None], decodes), "dense").attend(layer, query, *keys)
    for kernel in ("auto", "blockwise", "dense"):
        run = AttentionProgram(TokenLayout(queries, positions[order][None], decodes), kernel)
        out = run.attend(layer, query, *(tensor[:, :, order] for tensor in keys))
        torch.testing.assert_close(out, in_order, rtol=1e-5, atol=1e-5)


def test_layers_share_the_rows_of_a_mask() -> None:
    layers = bind(BEST, 30, 4).layers
    run = AttentionProgram(TokenLayout.contiguous(500, prompt_lengths=400))
    query, key, value = (torch.randn(1, heads, 500, 8) for heads in (4, 2, 2))
    for layer in layers:
        run.attend(layer, query, key, value)
    assert len(run._rows) == 1
    assert not run._blocks


def test_a_caller_who_knows_that_all_is_visible_saves_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = bind(SlidingWindow(8), 1, 4).layers[0]
    layout = TokenLayout.contiguous(1, 8, offset=7)
    query, key, value = (torch.randn(1, heads, length, 8) for heads, length in ((4, 1), (2, 8), (2, 8)))
    expected = AttentionProgram(layout).attend(layer, query, key, value)
    monkeypatch.setattr(program, "dense_mask", None)
    known = AttentionProgram(layout, all_visible=True)
    assert torch.equal(known.attend(layer, query, key, value), expected)
    assert known.to("cpu").all_visible


def test_an_unknown_kernel_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="kernel: expected 'auto' or .*, got 'flash'"):
        AttentionProgram(TokenLayout.contiguous(4), "flash")


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_compiles_a_handful_of_graphs() -> None:
    """One for each bucket of lengths and structure of a policy: no window size, sink count or length is one."""
    torch._dynamo.reset()
    counters.clear()
    random = torch.Generator().manual_seed(0)
    sizes = ((100, 20, 3), (120, 31, 1), (128, 64, 9), (200, 20, 3), (256, 40, 4), (130, 9, 2))
    for length, window, sinks in sizes:
        layer = bind(SlidingWindow(window) | SinkTokens(sinks), 1, 4).layers[0]
        tensors = [torch.randn(1, heads, length, 16, generator=random) for heads in (4, 2, 2)]
        layout = TokenLayout.contiguous(length)
        out = AttentionProgram(layout, "flex").attend(layer, *tensors)
        torch.testing.assert_close(out, AttentionProgram(layout, "dense").attend(layer, *tensors), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, (_, count) in LAYOUTS.items() if count])
@pytest.mark.parametrize("policy", [FullAttention(), SlidingWindow(40) | SinkTokens(3)])
def test_kernels_on_a_gpu(name: str, policy: object) -> None:
    """bf16, with gradients: flex, blockwise and runs against the dense mask in float32."""
    layout = LAYOUTS[name][0].to("cuda")
    layer = bind(policy, 1, 4).layers[0]  # type: ignore[arg-type]
    results = []
    for kernel, dtype in (("dense", torch.float32), *((k, torch.bfloat16) for k in ("auto", "flex", "blockwise"))):
        torch.manual_seed(0)
        lengths = (layout.query_length, layout.key_length, layout.key_length)
        drawn = [torch.randn(2, h, n, 64, device="cuda") for h, n in zip((4, 2, 2), lengths, strict=True)]
        inputs = [tensor.bfloat16().to(dtype).requires_grad_() for tensor in drawn]
        out = AttentionProgram(layout, kernel).attend(layer, *inputs)
        out.float().square().sum().backward()
        results.append([out.float(), *(tensor.grad.float() for tensor in inputs if tensor.grad is not None)])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert (got - expected).norm() <= 0.02 * expected.norm()

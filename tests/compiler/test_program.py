"""Attention programs: masks built once, shared between layers, for the kernel that the plan names."""

from __future__ import annotations

import logging

import pytest
import torch

from swaa import FullAttention, SinkTokens, SlidingWindow, UserError, every
from swaa.compiler import plan, program
from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.compiler.program import AttentionProgram
from swaa.policies import bind

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


def test_a_fallback_is_said_once(tensors: list[torch.Tensor], caplog: pytest.LogCaptureFixture) -> None:
    layer = bind(SlidingWindow(20), 1, 4).layers[0]
    tensors[0].requires_grad_()
    program._said.clear()
    with caplog.at_level(logging.WARNING, "swaa"):
        for _ in range(3):
            AttentionProgram(TokenLayout.contiguous(30)).attend(layer, *tensors)
    assert caplog.messages == ["attention runs on SDPA with a dense mask: FlexAttention has no backward pass on CPU"]
    with torch.no_grad():
        AttentionProgram(TokenLayout.contiguous(30)).attend(layer, *tensors)


def test_flex_is_refused_where_it_cannot_be(tensors: list[torch.Tensor]) -> None:
    layer = bind(SlidingWindow(20), 1, 4).layers[0]
    tensors[1].requires_grad_()
    with pytest.raises(UserError, match="'flex' was asked for, but FlexAttention has no backward pass on CPU"):
        AttentionProgram(TokenLayout.contiguous(30), kernel="flex").attend(layer, *tensors)


def test_a_kernel_that_does_not_compile(
    tensors: list[torch.Tensor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the choice is swaa's, it is the dense kernel, said once; where FlexAttention was asked for, an error."""

    def broken(*_: object, **__: object) -> torch.Tensor:
        raise NotImplementedError("no such instruction\nand a long trace")

    monkeypatch.setattr(program, "blocksparse_attention", broken)
    monkeypatch.setattr(program, "_uncompilable", {})
    monkeypatch.setattr(plan, "DENSE_ON_CPU_UP_TO", 0)
    monkeypatch.setattr(plan, "has_cpp_compiler", lambda: True)
    layer, layout = bind(SlidingWindow(20), 1, 4).layers[0], TokenLayout.contiguous(30)
    expected = AttentionProgram(layout, kernel="dense").attend(layer, *tensors)
    with caplog.at_level(logging.WARNING, "swaa"):
        for _ in range(3):
            torch.testing.assert_close(AttentionProgram(layout).attend(layer, *tensors), expected)
    assert caplog.messages == [
        "SlidingWindow(20): FlexAttention does not compile (no such instruction); "
        "attention runs on SDPA with a dense mask"
    ]
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="no such instruction"):
            AttentionProgram(layout, kernel="flex").attend(layer, *tensors)


def test_samples_laid_out_alike_share_a_row() -> None:
    layer = bind(FullAttention(), 1, 1).layers[0]
    assert dense_mask(layer, TokenLayout.contiguous(4)).shape == (1, 1, 4, 4)
    assert dense_mask(layer, TokenLayout.padded(torch.ones(3, 4))).shape == (3, 1, 4, 4)

"""The kernels against attention written row by row: values, gradients, hidden rows, score modifications."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import flex_attention

import oracle
from strategies import Case, bound_layer, cases, layout_of
from swaa import SlidingWindow
from swaa.compiler.attention import causal_attention, dense_attention
from swaa.compiler.blocks import block_mask
from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.policies import bind

TWENTIETH = settings(max_examples=max(20, settings.default.max_examples // 20))


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        yield


@TWENTIETH
@given(cases(longest=10))
def test_gradients_of_the_dense_kernel(case: Case) -> None:
    """Equal to those of the loops, and never NaN, hidden rows or not."""
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth = oracle.mask(case.recipe, case.scene, case.model, case.layer)
    gradients = []
    for loops in (False, True):
        tensors = [tensor.double().requires_grad_() for tensor in case.tensors()]
        out = (
            oracle.attention(*tensors, truth)
            if loops
            else dense_attention(*tensors, dense_mask(layer, layout), scale=None)
        )
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        if out.requires_grad:
            (out * weights).sum().backward()
        gradients.append([torch.zeros_like(t) if t.grad is None else t.grad for t in tensors])
    for mine, expected in zip(*gradients, strict=True):
        assert not mine.isnan().any()
        torch.testing.assert_close(mine, expected)


@TWENTIETH
@given(cases(longest=10))
def test_score_modifications(case: Case) -> None:
    """Softcap, sink logits and a scale of one's own, together and apart."""
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth = oracle.mask(case.recipe, case.scene, case.model, case.layer)
    mask = dense_mask(layer, layout)
    query, key, value = case.tensors()
    logits = [0.5 - head for head in range(case.model.heads)]
    for scale, softcap, sinks in ((0.3, None, None), (None, 2.0, None), (None, None, logits), (0.7, 5.0, logits)):
        mine = dense_attention(
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


def tensors(batch: int, heads: int, kv_heads: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, heads, queries, 8, generator=random),
        torch.randn(batch, kv_heads, keys, 8, generator=random),
        torch.randn(batch, kv_heads, keys, 8, generator=random),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_queries_that_see_nothing_give_zeros_on_every_kernel(dtype: torch.dtype) -> None:
    """Padding; a policy that hides all; keys that come too late."""
    real = torch.arange(20) >= torch.tensor([[7], [0], [20]])
    layout = TokenLayout.padded(real)
    layer = bind(~SlidingWindow(3), 1, 4).layers[0]  # the first three queries see nothing
    query, key, value = (t.to(dtype) for t in tensors(3, 4, 2, 20, 20))
    hidden = ~dense_mask(layer, layout).any(-1)
    assert hidden[0, 0].tolist() == [True] * 10 + [False] * 10
    assert hidden[2].all()
    outputs = [
        dense_attention(query, key, value, dense_mask(layer, layout), scale=None),
        dense_attention(query, key, value, dense_mask(layer, layout), scale=None, softcap=3.0),
        dense_attention(query, key, value, dense_mask(layer, layout), scale=None, sink_logits_H=torch.zeros(4)),
        flex_attention(query, key, value, block_mask=block_mask(layer, layout, block_size=16), enable_gqa=True),
    ]
    for out in outputs:
        assert out.dtype == dtype
        assert not out.isnan().any()
        rows = hidden.expand(-1, 4, -1)
        assert (out[rows] == 0).all()
        assert (out[~rows] != 0).any(-1).all()


def test_causal_and_unmasked_attention() -> None:
    query, key, value = tensors(2, 4, 2, 9, 9)
    causal = [[[[k <= q for k in range(9)] for q in range(9)] for _ in range(4)]]
    for scale in (None, 0.2):
        expected = oracle.attention(query, key, value, causal, scale=scale)
        torch.testing.assert_close(causal_attention(query, key, value, scale=scale), expected, rtol=1e-5, atol=1e-5)
    everything = [[[[True] * 9 for _ in range(9)] for _ in range(4)]]
    expected = oracle.attention(query, key, value, everything)
    torch.testing.assert_close(dense_attention(query, key, value, None, scale=None), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_dropout_drops(softcap: float | None) -> None:
    torch.manual_seed(0)
    query, key, _ = tensors(1, 2, 2, 40, 40)
    ones = torch.ones(1, 2, 40, 8)
    mask = dense_mask(bind(SlidingWindow(30), 1, 2).layers[0], TokenLayout.contiguous(40))
    kept = dense_attention(query, key, ones, mask, scale=None, softcap=softcap)
    dropped = dense_attention(query, key, ones, mask, scale=None, dropout=0.5, softcap=softcap)
    torch.testing.assert_close(kept, ones)
    assert dropped.std() > 0.05
    assert abs(float(dropped.mean()) - 1) < 0.2

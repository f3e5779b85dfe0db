"""One predicate, read in every way, on random compositions and layouts: all readings agree with the loops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import flex_attention

import oracle
from strategies import Case, bound_layer, cases, layout_of
from swaa.compiler.attention import dense_attention
from swaa.compiler.blocks import block_mask
from swaa.compiler.dense import dense_mask
from swaa.compiler.kernel import mask_mod
from swaa.compiler.refine import block_verdicts, count_visible


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    """FlexAttention as written, without the seconds that compiling takes; test_compiled.py has the real kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        yield


# True stands neither first nor last, which hypothesis draws far more often than their share: one in two, then
ONE_IN_FOUR = st.sampled_from((False, True, False, False))


@given(cases(), ONE_IN_FOUR)
def test_every_reading_agrees_with_the_loops(case: Case, by_flex: bool) -> None:
    """FlexAttention as written takes as long as all else together, and reads no more of a block mask than its
    ``mask_mod``, which is asked about every pair in every case."""
    layer, layout = bound_layer(case.recipe, case.model, case.layer), layout_of(case.scene)
    truth_BHQK = oracle.mask(case.recipe, case.scene, case.model, case.layer)
    expected_BHQK = torch.tensor(truth_BHQK)

    # dense: B and H are 1 where samples, or heads, do not differ
    mask_BHQK = dense_mask(layer, layout)
    assert mask_BHQK.shape[1] == (case.model.heads if layer.by_head else 1)
    assert torch.equal(mask_BHQK.expand_as(expected_BHQK), expected_BHQK)

    # intervals: the truth of every block, and the number of visible pairs
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

    # the kernel's predicate, pair by pair
    pairs = torch.meshgrid(*map(torch.arange, expected_BHQK.shape), indexing="ij")
    assert torch.equal(mask_mod(layer, layout)(*pairs), expected_BHQK)

    # the kernels
    query, key, value = case.tensors()
    expected = oracle.attention(query, key, value, truth_BHQK)
    dense = dense_attention(query, key, value, mask_BHQK, scale=None)
    torch.testing.assert_close(dense, expected, rtol=1e-5, atol=1e-5)
    blocks = block_mask(layer, layout, block_size=case.block_size)
    if by_flex:
        flex = flex_attention(query, key, value, block_mask=blocks, enable_gqa=True)
        torch.testing.assert_close(flex, expected, rtol=1e-5, atol=1e-5)

"""Layouts: logical positions, documents and phases of every slot, against the loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

import oracle
from strategies import layout_of, scenes
from swaa import UserError
from swaa.compiler.layout import PADDING, TokenLayout


@settings(max_examples=max(20, settings.default.max_examples // 5))
@given(scenes())
def test_every_slot_is_where_the_loops_say(scene: oracle.Scene) -> None:
    layout = layout_of(scene)
    samples = oracle.slots(scene)
    assert layout.query_length == len(samples[0][0])
    assert layout.key_length == len(samples[0][1])
    assert layout.batch_size in (1, len(samples))
    for b, (queries, keys) in enumerate(samples):

        def row(table: torch.Tensor, b: int = b) -> list[int]:
            return table[b if len(table) > 1 else 0].tolist()

        assert row(layout.query_positions_BQ) == [PADDING if s.position is None else s.position for s in queries]
        assert row(layout.key_positions_BK) == [PADDING if s.position is None else s.position for s in keys]
        real = [i for i, s in enumerate(queries) if s.position is not None]
        decodes = row(layout.query_decodes_BQ)
        assert [bool(decodes[i]) for i in real] == [queries[i].phase == "decode" for i in real]
        if layout.query_documents_BQ is not None:
            documents = row(layout.query_documents_BQ)
            assert [documents[i] for i in real] == [queries[i].document for i in real]


@settings(max_examples=max(20, settings.default.max_examples // 20))
@given(scenes())
def test_square_is_said_only_of_plain_causal_attention(scene: oracle.Scene) -> None:
    """The causal kernel takes no mask, so a layout that wrongly calls itself square would lose one."""
    if layout_of(scene).is_square:
        for queries, keys in oracle.slots(scene):
            assert [s.position for s in queries] == [s.position for s in keys]
            assert None not in [s.position for s in keys]
            assert {s.document for s in queries} == {0}


def test_positions_by_hand() -> None:
    left = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    layout = TokenLayout.padded(left, prompt_lengths=torch.tensor([2, 4]))
    assert layout.query_positions_BQ.tolist() == [[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert layout.query_decodes_BQ.tolist() == [[False] * 4 + [True], [False] * 4 + [True]]
    packed = TokenLayout.packed(torch.tensor([[0, 1, 2, 0, 1, 0]]), prompt_lengths=torch.tensor([[2, 0, 1]]))
    assert packed.query_documents_BQ is not None
    assert packed.query_documents_BQ.tolist() == [[0, 0, 0, 1, 1, 2]]
    assert packed.query_decodes_BQ.tolist() == [[False, False, True, True, True, False]]
    kept_counting = TokenLayout.packed(torch.tensor([[5, 6, 7, 0, 1]]))
    assert kept_counting.query_positions_BQ.tolist() == [[0, 1, 2, 0, 1]], "a document's positions count from 0"


def test_phases_said_token_by_token() -> None:
    """They change as often as they like, and are nobody's business where there is no token."""
    turns = torch.tensor([[True, False, True, False, True]])
    left = TokenLayout.padded(torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])).with_decodes(turns)
    assert left.query_decodes_BQ.tolist() == [[False, False, True, False, True], turns[0].tolist()]
    packed = TokenLayout.packed(torch.tensor([[0, 1, 2, 0, 1]])).with_decodes(turns)
    assert packed.query_decodes_BQ.tolist() == turns.tolist()
    assert packed.query_documents_BQ is not None
    part = packed.queries(1, 3)
    assert part.query_decodes_BQ.tolist() == [[False, True]]
    assert packed.pad_to(7, 7).query_decodes_BQ.tolist() == [[*turns[0].tolist(), False, False]]
    assert packed.to("cpu").query_decodes_BQ.tolist() == turns.tolist()


def test_samples_that_differ_in_their_phases_only_are_not_laid_out_alike() -> None:
    layout = TokenLayout.contiguous(4)
    turns = torch.tensor([[False, True, False, True], [True, False, False, False], [False] * 4])
    assert layout.batch_size == 1
    assert layout.with_decodes(turns[:1]).batch_size == 1
    assert layout.with_decodes(turns).batch_size == 3
    assert layout.with_decodes(turns).is_square, "phases do not move tokens"
    assert TokenLayout.packed(torch.tensor([[0, 1, 0, 1]])).with_decodes(turns).batch_size == 3


def test_a_moved_layout_is_the_same_layout() -> None:
    square = TokenLayout.contiguous(8)
    assert square.is_square
    assert square.to("cpu").is_square
    packed = TokenLayout.packed(torch.tensor([[0, 1, 0, 1]])).to("cpu")
    assert packed.query_documents_BQ is not None
    assert not packed.is_square
    assert square.pad_to(8, 8) is square
    assert not square.pad_to(9, 9).is_square


def test_too_few_prompt_lengths_for_the_documents() -> None:
    positions = torch.tensor([[0, 1, 0, 1, 0, 1]])
    with pytest.raises(UserError, match="prompt_lengths: expected a column for each of the 3 documents of a row, got"):
        TokenLayout.packed(positions, prompt_lengths=torch.tensor([[1, 1]]))

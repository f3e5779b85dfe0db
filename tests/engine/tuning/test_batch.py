"""Tensors of padded and of packed samples, against a loop that writes every token by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.engine.tuning.batch import TrainingBatch, collate
from swaa.engine.tuning.samples import TrainingSample

PAD = 999
Rows = list[list[TrainingSample]]


@st.composite
def samples(draw: st.DrawFn) -> TrainingSample:
    ids = draw(st.lists(st.integers(0, 99), min_size=2, max_size=12))
    edges = sorted(draw(st.sets(st.integers(1, len(ids)), min_size=2, max_size=4)))
    spans = [span for span in pairwise(edges) if draw(st.booleans())]
    name = draw(st.sampled_from("abcdefgh"))
    return TrainingSample(name, tuple(ids), tuple(spans or [(edges[0], edges[1])]))


padded = st.lists(samples().map(lambda sample: [sample]), min_size=1, max_size=4)
packed = st.lists(samples(), min_size=1, max_size=5).map(lambda row: [row])


def written(rows: Sequence[Sequence[TrainingSample]]) -> dict[str, list[list[int]]]:
    """Every field, token by token, by the rules alone."""
    width = max(sum(len(sample.ids) for sample in row) for row in rows)
    names = ("input_ids", "mask", "position_ids", "decode_mask", "targets")
    fields: dict[str, list[list[int]]] = {name: [] for name in names}
    for row in rows:
        line: dict[str, list[int]] = {name: [] for name in names}
        for sample in row:
            for place, token in enumerate(sample.ids):
                decodes, target = 0, -100
                for start, end in sample.answers:
                    if start <= place + 1 < end:
                        target = sample.ids[place + 1]
                        decodes = decodes or int(place >= start)
                for name, value in zip(names, (token, 1, place, decodes, target), strict=True):
                    line[name].append(value)
        while len(line["mask"]) < width:
            for name, value in zip(names, (PAD, 0, line["position_ids"][-1], 0, -100), strict=True):
                line[name].append(value)
        for name in names:
            fields[name].append(line[name])
    return fields


@given(rows=padded | packed)
@settings(max_examples=settings.default.max_examples // 20)
def test_a_batch_is_what_a_loop_writes(rows: Rows) -> None:
    batch, expected = collate(rows, pad=PAD), written(rows)
    for name in ("input_ids", "position_ids", "targets"):
        tensor = getattr(batch, name)
        assert tensor.dtype == torch.long
        assert tensor.tolist() == expected[name], name
    assert batch.decode_mask.dtype == torch.bool
    assert batch.decode_mask.int().tolist() == expected["decode_mask"]
    if all(all(line) for line in expected["mask"]):
        assert batch.attention_mask is None
    else:
        assert batch.attention_mask is not None
        assert batch.attention_mask.dtype == torch.long
        assert batch.attention_mask.tolist() == expected["mask"]
    assert batch.sample_ids == tuple(sample.id for row in rows for sample in row)
    assert batch.answer_tokens == sum(end - start for row in rows for sample in row for start, end in sample.answers)


FIRST = TrainingSample("first", (1, 2, 3), ((2, 3),))
SECOND = TrainingSample("second", (4, 5, 6, 7), ((1, 3),))


def test_no_target_crosses_into_the_next_document() -> None:
    batch = collate([[FIRST, SECOND]], pad=PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert batch.targets.tolist() == [[-100, 3, -100, 5, 6, -100, -100]]
    assert batch.decode_mask.tolist() == [[False, False, False, False, True, False, False]]
    assert batch.attention_mask is None
    assert batch.answer_tokens == 3


def test_packed_rows_of_one_length_make_a_batch_and_others_are_refused() -> None:
    batch = collate([[FIRST, SECOND], [SECOND, FIRST]], pad=PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 1, 2, 3]]
    with pytest.raises(ValueError, match=r"expected packed rows of one length, got \[7, 3\]"):
        collate([[FIRST, SECOND], [FIRST]], pad=PAD)


@pytest.mark.parametrize("rows", [[], [[FIRST], []]])
def test_rows_without_samples_are_refused(rows: Rows) -> None:
    with pytest.raises(ValueError, match="expected rows of at least one sample each"):
        collate(rows, pad=PAD)


@pytest.mark.parametrize("rows", [[[FIRST, SECOND]], [[FIRST], [SECOND]]])
def test_a_batch_moves_whole(rows: Rows) -> None:
    batch = collate(rows, pad=PAD)
    moved = batch.to(torch.device("meta"), non_blocking=True)
    assert isinstance(moved, TrainingBatch)
    tensors = [moved.input_ids, moved.position_ids, moved.decode_mask, moved.targets]
    assert (moved.attention_mask is None) == (batch.attention_mask is None)
    tensors += [] if moved.attention_mask is None else [moved.attention_mask]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.sample_ids == batch.sample_ids

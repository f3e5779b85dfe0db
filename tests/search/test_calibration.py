"""Calibration items and their batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.conftest import make_tokenizer
from swaa.errors import UserError
from swaa.search.calibration import Item, calibration_items, make_batches
from swaa.tasks import task_from_dict

TOKENIZER = make_tokenizer()
NEEDLE = task_from_dict({"name": "needle_single"})


def from_file(folder: Path, *lines: dict[str, object]) -> Sequence[Item]:
    path = folder / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    task = task_from_dict({"name": "file", "path": str(path)})
    return calibration_items([task], TOKENIZER, length=60, num_examples=2, seed=0)


def test_items_are_the_tasks_examples_as_the_model_gets_them() -> None:
    items = calibration_items([NEEDLE], TOKENIZER, length=400, num_examples=3, seed=5)
    assert all(395 <= len(item.ids) <= 400 for item in items)
    assert [item.id for item in items] == list(NEEDLE.example_ids(length=400, num_examples=3, seed=5))
    for item in items:
        prompt, answer = TOKENIZER.decode(item.ids), TOKENIZER.decode(item.answer_ids)
        assert prompt.startswith("<|user|>")
        assert "<|assistant|>" in prompt
        digits = "".join(filter(str.isdigit, answer))
        assert digits in prompt
        assert len(digits) == 7
        assert len(item) == len(item.ids) + len(item.answer_ids) - 1


def test_every_task_gives_its_examples() -> None:
    other = task_from_dict({"name": "needle_multikey", "num_keys": 2})
    items = calibration_items([NEEDLE, other], TOKENIZER, length=420, num_examples=2, seed=0)
    assert [item.id.partition("-")[0] for item in items] == ["needle_single"] * 2 + ["needle_multikey"] * 2


def test_a_file_of_ones_own_gives_those_that_fit(tmp_path: Path) -> None:
    items = from_file(
        tmp_path,
        {"prompt": "x" * 100, "answer": "too long"},
        *({"prompt": f"Say {word}.", "answer": word} for word in ("red", "green", "blue")),
    )
    assert len(items) == 2
    for item in items:
        assert TOKENIZER.decode(item.answer_ids) in TOKENIZER.decode(item.ids)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "Why?"}, "answer: this field is missing"),
        ({"prompt": "Why?", "answer": ""}, "answer"),
        ({"prompt": "Why? " * 40, "answer": "so"}, "no example has at most 60 prompt tokens. Ask for a longer"),
    ],
)
def test_a_task_without_answers_or_room_is_refused_by_name(
    tmp_path: Path, line: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        from_file(tmp_path, line)
    assert str(caught.value).startswith("calibration task file(path=")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_examples": 0}, "calibration.num_examples: expected an int >= 1, got 0. "),
        ({"length": "long"}, "calibration.length: expected an int >= 1, got 'long'. "),
        ({"seed": -1}, "calibration.seed: expected an int >= 0, got -1. "),
        ({"tasks": []}, "calibration.tasks: expected a list of at least one task, got []. "),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"tasks": [NEEDLE], "length": 400, "num_examples": 1, "seed": 0} | changes
    with pytest.raises(UserError) as caught:
        calibration_items(arguments.pop("tasks"), TOKENIZER, **arguments)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_an_item_needs_prompt_and_answer() -> None:
    with pytest.raises(UserError, match=r"Item.answer_ids: expected a tuple of at least one token id, got \(\)"):
        Item("one", (1, 2), ())


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=7),
    st.integers(1, 4),
)
@example([(3, 2), (5, 1), (2, 4)], 2)  # padding in front of prompts, and of answers
@settings(max_examples=max(5, settings.default.max_examples // 20))
def test_batches_hold_every_item_once_with_its_answer_at_the_end(sizes: list[tuple[int, int]], batch_size: int) -> None:
    items = [Item(str(n), tuple(range(1, p + 1)), tuple(range(50, 50 + a))) for n, (p, a) in enumerate(sizes)]
    seen = []
    for batch in make_batches(items, batch_size=batch_size, pad=0):
        assert len(batch) <= batch_size
        width = batch.input_ids.shape[1]
        assert width == max(len(items[place]) for place in batch.places)
        for row, place in enumerate(batch.places):
            seen.append(place)
            item, ids = items[place], [*items[place].ids, *items[place].answer_ids]
            for slot in range(width):  # one slot at a time
                index = slot - (width - len(item))
                real = index >= 0
                assert batch.input_ids[row, slot] == (ids[index] if real else 0)
                assert batch.position_ids[row, slot] == max(0, index)
                assert batch.attention_mask is None or batch.attention_mask[row, slot] == real
                assert real or batch.attention_mask is not None
            assert batch.prompt_lengths[row] == len(item.ids)
            for column in range(batch.answer_ids.shape[1]):
                slot = width - batch.answer_ids.shape[1] + column  # the slot that predicts it
                index = slot - (width - len(item)) + 1
                is_answer = slot >= 0 and index >= len(item.ids)
                assert bool(batch.answer_mask[row, column]) == is_answer
                if is_answer:
                    assert batch.answer_ids[row, column] == ids[index]
    assert sorted(seen) == list(range(len(items)))
    assert batch.answer_mask.dtype == torch.bool

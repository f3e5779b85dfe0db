from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from swaa.config import Distillation
from swaa.engine.distill import DistillationResult
from swaa.engine.distill_answers import Answer, PromptAnswers
from swaa.engine.distill_sift import Counts, sift
from swaa.prompting import up_to_stop
from swaa.tasks import get_task


def said(reply: str, tokens: int = 5, **changes: Any) -> Answer:
    values = {"text": reply, "ending": "end", "score": 1.0, "correct": True, "control": False, **changes}
    return Answer(reply=reply, tokens=tokens, **values)


def asked(*answers: Answer, example: str = "e0", **changes: Any) -> PromptAnswers:
    values = {"recipe_hash": "0", "task": "t", "length": 9, "seed": 1, "prompt": f"{example}?", "answer_prefix": "A:"}
    values |= {"reference": " yes", "metadata": {}, "prompt_tokens": 9, "answers": answers, **changes}
    return PromptAnswers(example=example, **values)


def config(**changes: Any) -> Distillation:
    return Distillation(tasks=(get_task("needle_single")(),), lengths=(9,), output=Path("out"), **changes)


WRONG = {"score": 0.5, "correct": False}
KEPT: list[tuple[str, dict[str, Any], Sequence[Answer], list[str], dict[str, int]]] = [
    ("all are right", {}, [said(" a"), said(" b")], ["#0 a", "#1 b"], {}),
    ("a wrong one is left out", {}, [said(" a", **WRONG), said(" b")], ["#1 b"], {"wrong": 1}),
    ("unless all are wanted", {"keep": "all"}, [said(" a", **WRONG), said(" b")], ["#0 a", "#1 b"], {}),
    ("a cut one is left out, right as it is", {}, [said(" a", ending="cut"), said(" b")], ["#1 b"],
     {"cut at max_new_tokens": 1}),
    ("even if all are wanted", {"keep": "all"}, [said(" a", ending="cut")], [], {"cut at max_new_tokens": 1}),
    ("one that ended at a stop string is kept", {}, [said(" a", ending="stop")], ["#0 a"], {}),
    ("one that says nothing is not", {"keep": "all"}, [said(" \n"), said("")], [], {"blank": 2}),
    ("nor one that begins a turn", {"keep": "all"}, [said(" a<|user|>", control=True)], [], {"with control tokens": 1}),
    ("the same text twice", {}, [said(" a"), said(" b"), said(" a")], ["#0 a", "#1 b"], {"duplicates": 1}),
    ("texts are the same to the letter only", {}, [said(" a"), said(" A"), said("a")], ["#0 a", "#1 A", "#2a"], {}),
    ("the shortest", {"keep_per_prompt": 2}, [said(" a", 7), said(" b", 5), said(" c", 9), said(" d", 6)],
     ["#1 b", "#3 d"], {"beyond keep_per_prompt": 2}),
    ("of equals the first", {"keep_per_prompt": 1}, [said(" a"), said(" b")], ["#0 a"], {"beyond keep_per_prompt": 1}),
    ("a duplicate takes no place", {"keep_per_prompt": 2}, [said(" a", 5), said(" a", 5), said(" b", 6)],
     ["#0 a", "#2 b"], {"duplicates": 1}),
    ("nor does a wrong or cut one", {"keep_per_prompt": 1},
     [said(" a", 1, **WRONG), said(" b", 2, ending="cut"), said(" c", 9)], ["#2 c"],
     {"wrong": 1, "cut at max_new_tokens": 1}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "answers", "kept", "left_out"), [row[1:] for row in KEPT], ids=[r[0] for r in KEPT]
)
def test_which_answers_are_kept(
    changes: dict[str, Any], answers: Sequence[Answer], kept: list[str], left_out: dict[str, int]
) -> None:
    sifted = sift([asked(*answers)], config(**changes))
    assert [item.id + item.answer for item in sifted.conversations] == [f"e0{text}" for text in kept]
    assert sifted.counts.left_out == left_out
    assert (sifted.counts.answers, sifted.counts.kept) == (len(answers), len(kept))
    assert sifted.counts.empty == (not kept)


def test_a_cut_answer_does_not_count_as_correct() -> None:
    answers = [said(" a", ending="cut"), said(" b"), said(" c", **WRONG)]
    assert sift([asked(*answers)], config(keep="all")).counts.correct == 1


def test_the_same_conversation_enters_once_in_the_whole_set() -> None:
    twin = asked(said(" a"), said(" b", 6), example="e1", prompt="e0?")
    others = [asked(said(" a"), example="e2"), asked(said(" a"), example="e3", prompt="e0?", answer_prefix="B:")]
    sifted = sift([asked(said(" a")), twin, *others], config(keep_per_prompt=1))
    assert [item.id for item in sifted.conversations] == ["e0#0", "e1#1", "e2#0", "e3#0"]
    assert sifted.counts.left_out == {"duplicates": 1}


def test_counts_are_kept_by_task_and_length_and_add_up() -> None:
    records = [
        asked(said(" a"), said(" b")),
        asked(said(" a", **WRONG), example="e1"),
        asked(said(" c"), example="e2", length=7),
        asked(said(" d"), example="e3", task="u"),
    ]
    sifted = sift(records, config())
    assert {cell: (counts.prompts, counts.kept, counts.wrong) for cell, counts in sifted.cells.items()} == {
        ("t", 9): (2, 2, 1),
        ("t", 7): (1, 1, 0),
        ("u", 9): (1, 1, 0),
    }
    assert sifted.counts == Counts(prompts=4, empty=1, answers=5, correct=4, kept=4, wrong=1)
    assert DistillationResult((), sifted.counts, sifted.cells).lines() == [
        "4 prompts, 5 answers, 4 correct (80%)",
        "4 conversations kept; left out: 1 wrong",
        "prompts that nothing was kept of: 1 of 4",
        "  t, 9 tokens: 2 kept of 3, correct 67%",
        "  t, 7 tokens: 1 kept of 1, correct 100%",
        "  u, 9 tokens: 1 kept of 1, correct 100%",
    ]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\ntwo", ["\n"], "one"),
        ("one\ntwo\n", ["two", "\n"], "one"),
        ("one two", ["\n"], "one two"),
        ("\n", ["\n"], ""),
        ("one", [], "one"),
    ],
)
def test_a_reply_ends_before_the_first_stop_string(text: str, stop: list[str], expected: str) -> None:
    assert up_to_stop(text, stop) == expected


def test_a_line_comes_back_as_it_was_written() -> None:
    record = asked(said(" a\u2028\n\x85b", 3), said("ü 🙂", **WRONG), metadata={"depth": 0.5}, versions={"swaa": "1"})
    line = record.to_json()
    assert "\n" not in line
    assert PromptAnswers.from_json(line) == record

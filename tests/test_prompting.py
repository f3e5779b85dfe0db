"""Ways of asking: what is written for the model, where the final answer is, and what enters a recipe's hash."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.config import load_experiment
from swaa.errors import UserError
from swaa.policies import FullAttention, SlidingWindow
from swaa.prompting import INSTRUCTION, PROMPTINGS, Prompting
from swaa.recipe import Decoding, Recipe

COT, THINKING = Prompting("chain_of_thought"), Prompting("thinking")

# ------------------------------------------------------------------------------------------------ parsing

text = st.text(min_size=1, max_size=20).filter(str.strip)


@st.composite
def promptings(draw: Any) -> Prompting:
    name = draw(st.sampled_from(PROMPTINGS))
    if name == "direct":
        return Prompting()
    fields: dict[str, Any] = {"budget": draw(st.none() | st.integers(0, 10_000))}
    if draw(st.booleans()):
        fields["marker"] = draw(text)
    if name == "chain_of_thought" and draw(st.booleans()):
        fields["instruction"] = draw(text)
    return Prompting(name, **fields)


@settings(max_examples=settings.default.max_examples // 10)
@given(promptings())
def test_a_prompting_comes_back_from_its_value(prompting: Prompting) -> None:
    value = prompting.to_value()
    assert Prompting.parse(value, "prompting") == prompting
    assert Prompting.parse(json.loads(json.dumps(value)), "prompting") == prompting
    assert Prompting.parse(yaml.safe_load(yaml.safe_dump(value)), "prompting") == prompting
    assert Prompting.parse(prompting, "prompting") is prompting


@pytest.mark.parametrize("name", PROMPTINGS)
def test_a_name_alone_has_the_defaults_and_is_written_as_a_name(name: str) -> None:
    assert Prompting.parse(name, "p") == Prompting(name) == Prompting.parse({"name": name}, "p")
    assert Prompting(name).to_value() == name


def test_the_defaults() -> None:
    assert dataclasses.astuple(Prompting()) == ("direct", "", "", None)
    assert dataclasses.astuple(COT) == ("chain_of_thought", INSTRUCTION, "Answer:", None)
    assert dataclasses.astuple(THINKING) == ("thinking", "", "</think>", None)
    assert [one.reasons for one in (Prompting(), COT, THINKING)] == [False, True, True]
    assert [one.thinks for one in (Prompting(), COT, THINKING)] == [False, False, True]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("chain_of_though", r"^recipes\[1\].prompting: unknown value 'chain_of_though'. Did you mean"),
        ("Direct", r"prompting: unknown value 'Direct'. Did you mean 'direct'"),
        ({"name": "cot"}, r"^recipes\[1\].prompting.name: unknown value 'cot'"),
        ({"budge": 3}, r"unknown field 'recipes\[1\].prompting.budge'. Did you mean 'recipes\[1\].prompting.budget'"),
        ({"texts": ["x"]}, "unknown field"),
        ({"instruction": "Think."}, r"^recipes\[1\].prompting.instruction: 'direct' has none, got 'Think.'. Leave"),
        ({"marker": "A:"}, r"prompting.marker: 'direct' has none"),
        ({"budget": 4}, r"^recipes\[1\].prompting.budget: 'direct' does not reason, got 4. Leave it out"),
        ({"name": "thinking", "instruction": "Think."}, r"prompting.instruction: 'thinking' has none"),
        ({"name": "thinking", "budget": -1}, r"prompting.budget: expected an int >= 0, got -1"),
        ({"name": "thinking", "budget": True}, r"prompting.budget: expected an int >= 0, got True"),
        ({"name": "thinking", "budget": "9"}, r"prompting.budget: expected an int >= 0, got '9'"),
        ({"name": "chain_of_thought", "marker": " "}, r"prompting.marker: expected a non-empty string, got ' '"),
        ({"name": "chain_of_thought", "marker": 3}, r"prompting.marker: expected a non-empty string, got 3"),
        ({"name": "chain_of_thought", "instruction": ["x"]}, r"prompting.instruction: expected a non-empty string"),
        (["direct"], r"^recipes\[1\].prompting: expected a mapping of fields, got \['direct'\]"),
        (None, r"^recipes\[1\].prompting: expected a mapping"),
        (3, r"^recipes\[1\].prompting: expected a mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_their_place(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Prompting.parse(value, "recipes[1].prompting")


# ------------------------------------------------------------------------------------------------ what is written


def test_the_question_and_the_beginning_of_the_reply() -> None:
    assert Prompting().ask("Where?") == "Where?"
    assert THINKING.ask("Where?") == "Where?"
    assert COT.ask("Where?") == f"Where?\n\n{INSTRUCTION}"
    assert Prompting("chain_of_thought", instruction="Think.").ask("Where?") == "Where?\n\nThink."
    assert Prompting().reply_prefix("It is") == "It is"
    assert [one.reply_prefix("It is") for one in (COT, THINKING)] == ["", ""]


def test_what_closes_the_reasoning() -> None:
    assert COT.closing("It is") == "\nAnswer: It is"
    assert COT.closing("") == "\nAnswer:", "no space that the first token of the answer would bring itself"
    assert Prompting("chain_of_thought", marker="So:").closing("") == "\nSo:"
    assert THINKING.closing("It is") == "\n</think>\n\nIt is"
    assert THINKING.closing("") == "\n</think>\n\n"


@settings(max_examples=settings.default.max_examples // 10)
@given(answer=text.map(str.strip).filter(lambda one: "answer:" not in one.lower() and "*" not in one))
def test_the_reference_reply_is_graded_by_its_answer(answer: str) -> None:
    reply = COT.reference_reply(f" {answer}", "First this, then that.")
    assert reply.startswith("First this, then that.\nAnswer: ")
    assert COT.final(reply, cut=False).text == answer
    assert Prompting().reference_reply(f" {answer}", "First this.") == f" {answer}"


def test_there_is_no_reference_of_native_thinking() -> None:
    with pytest.raises(UserError, match="no reference reply for 'thinking'. Distil one: swaa distill"):
        THINKING.reference_reply("42", "Because.")


# ------------------------------------------------------------------------------------------------ the final answer

ENDED, CUT = False, True

FINALS = [
    # prompting, reply, cut -> final answer, reached
    (Prompting(), "Answer: 42", ENDED, "Answer: 42", True),
    (Prompting(), " 42 and", CUT, " 42 and", True),
    (Prompting(), "", CUT, "", True),
    (COT, "First.\nAnswer: 42", ENDED, "42", True),
    (COT, "First.\nAnswer: 42", CUT, "42", True),
    (COT, "First.\nANSWER: 42", ENDED, "42", True),
    (COT, "First.\nanswer:42", ENDED, "42", True),
    (COT, "The answer: 1?\nNo.\nAnswer: 2", ENDED, "2", True),
    (COT, "Answer: 1\nanswer: 2\nANSWER:\n 3 ", ENDED, "3", True),
    (COT, "First.\n**Answer:** 42", ENDED, "42", True),
    (COT, "First.\n**Answer: 42**", ENDED, "42", True),
    (COT, "First.\nAnswer: **42**", ENDED, "42", True),
    (COT, "First.\n**Answer:** **42**", ENDED, "42", True),
    (COT, "First.\nAnswer: 2**3", ENDED, "2**3", True),
    (COT, "First.\nAnswer: the **red** one", ENDED, "the **red** one", True),
    (COT, "First.\nAnswer: 42\nBecause of that.", ENDED, "42\nBecause of that.", True),
    (COT, "First.\nIt is 42.", ENDED, "It is 42.", True),
    (COT, "First.\n\nIt is 42.\n\n", ENDED, "It is 42.", True),
    (COT, "42", ENDED, "42", True),
    (COT, "First.\n**42**", ENDED, "42", True),
    (COT, "", ENDED, "", True),
    (COT, "First.\nIt is 42.", CUT, "", False),
    (COT, "", CUT, "", False),
    (COT, "First.\nAnswer:", CUT, "", False),
    (COT, "First.\nAnswer: \n", CUT, "", False),
    (COT, "First.\nAnswer:", ENDED, "", True),
    (COT, "First. Answer", ENDED, "First. Answer", True),
    (Prompting("chain_of_thought", marker="(So)"), "First.\n(so) 42", ENDED, "42", True),
    (Prompting("chain_of_thought", marker="."), "a 42", ENDED, "a 42", True),
    (THINKING, "<think>Hm.</think>\n\n42", ENDED, "42", True),
    (THINKING, "<think>Hm.</THINK>\n\n42", CUT, "42", True),
    (THINKING, "Hm.</think>a</think>\n42", ENDED, "42", True),
    (THINKING, "<think>Hm.", CUT, "", False),
    (THINKING, "<think>Hm.", ENDED, "", False),
    (THINKING, "<think>Hm.</think>", CUT, "", False),
    (THINKING, "<think>Hm.</think>", ENDED, "", True),
    (THINKING, "It is 42.\nTruly.", ENDED, "It is 42.\nTruly.", True),
]  # fmt: skip


@pytest.mark.parametrize(("prompting", "reply", "cut", "text", "reached"), FINALS)
def test_where_the_final_answer_is(prompting: Prompting, reply: str, cut: bool, text: str, reached: bool) -> None:
    final = prompting.final(reply, cut=cut)
    assert (final.text, final.reached) == (text, reached)


@pytest.mark.parametrize("opened", ["<|assistant|><think>", "<|assistant|><think>\n"])
def test_a_template_that_begins_the_thinking(opened: str) -> None:
    assert not THINKING.final("Hm, 42.", cut=True, prompt=opened).reached
    assert not THINKING.final("Hm, 42.", cut=False, prompt=opened).reached
    assert THINKING.final("Hm.</think>42", cut=False, prompt=opened).text == "42"
    assert THINKING.final("42", cut=False, prompt="<think>\n\n</think>\n\n").text == "42", "closed in the prompt"
    assert THINKING.final("42", cut=False, prompt="what does <think> mean?<|assistant|>").text == "42"


def test_a_mark_of_ones_own() -> None:
    own = Prompting("thinking", marker="[/THINK]")
    assert own.final("[THINK]Hm.[/THINK]42", cut=False).text == "42"
    assert not own.final("[THINK]Hm.", cut=True).reached


# ------------------------------------------------------------------------------------------------ recipes


def recipe(prompting: object) -> Recipe:
    return Recipe("x", SlidingWindow(8), prompting)  # type: ignore[arg-type]


def test_direct_recipes_keep_the_hash_that_results_on_disk_have() -> None:
    golden = "62b9ca9bab37a34f7c7f6f8f2edc2ef4c13c6745a0dbd4197c01b11995cc3aa9"  # as in test_recipe.py
    for direct in ("direct", {"name": "direct"}, {}, Prompting(), {"name": "direct", "budget": None, "marker": ""}):
        assert recipe(direct).hash == golden


def test_whatever_is_asked_otherwise_has_another_hash() -> None:
    ways: list[object] = [
        "direct",
        "chain_of_thought",
        "thinking",
        {"name": "chain_of_thought", "instruction": "Think."},
        {"name": "chain_of_thought", "marker": "So:"},
        {"name": "chain_of_thought", "budget": 0},
        {"name": "chain_of_thought", "budget": 8},
        {"name": "thinking", "budget": 8},
    ]
    assert len({recipe(way).hash for way in ways}) == len(ways)
    told = {"name": "chain_of_thought", "instruction": INSTRUCTION, "marker": "Answer:", "budget": None}
    assert recipe(told).hash == recipe("chain_of_thought").hash, "however it is written"


FILE: dict[str, Any] = {
    "recipes": [
        {"name": "FA", "policy": "FullAttention()"},
        {"name": "own", "policy": "FullAttention()", "prompting": {"name": "chain_of_thought", "budget": 3}},
        {"name": "swa", "policy": "SlidingWindow(4)"},
    ],
    "tasks": [{"name": "needle_single"}],
    "lengths": [400],
}


def load(folder: Path, **changes: Any) -> Any:
    path = folder / "mine.yaml"
    path.write_text(json.dumps({**FILE, **changes}))
    return load_experiment(path)


def test_an_experiments_promptings_cross_its_recipes(tmp_path: Path) -> None:
    cot = {"name": "chain_of_thought", "budget": 9}
    experiment = load(tmp_path, promptings=["direct", cot, "thinking"])
    found = [(one.name, repr(one.policy), one.prompting) for one in experiment.recipes]
    parsed = Prompting("chain_of_thought", budget=9)
    assert sorted(found, key=str) == sorted(
        [
            ("FA", "FullAttention()", Prompting()),
            ("swa", "SlidingWindow(4)", Prompting()),
            ("own", "FullAttention()", Prompting("chain_of_thought", budget=3)),
            ("FA, CoT", "FullAttention()", parsed),
            ("swa, CoT", "SlidingWindow(4)", parsed),
            ("FA, thinking", "FullAttention()", THINKING),
            ("swa, thinking", "SlidingWindow(4)", THINKING),
        ],
        key=str,
    )
    path = tmp_path / "again.yaml"
    path.write_text(experiment.to_yaml())
    assert load_experiment(path) == experiment
    assert [one.prompting for one in load(tmp_path).recipes] == [Prompting(), parsed_of(3), Prompting()]


def parsed_of(budget: int) -> Prompting:
    return Prompting("chain_of_thought", budget=budget)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promptings": "direct"}, r"promptings: expected a list of at least one prompting, got 'direct'"),
        ({"promptings": []}, r"promptings: expected a list of at least one prompting"),
        ({"promptings": ["direct", "direct"]}, r"promptings: expected each prompting once"),
        ({"promptings": ["direct", "cot"]}, r"promptings\[1\]: unknown value 'cot'"),
        ({"promptings": [{"name": "direct", "budget": 2}]}, r"promptings\[0\].budget: 'direct' does not reason"),
        ({"promptings": ["direct", {"name": "direct"}]}, r"promptings: expected each name once, got 'direct'"),
        (
            {"promptings": [{"name": "chain_of_thought", "budget": budget} for budget in (4, 8)]},
            r"promptings: expected each name once, got 'CoT'. Name the other way in recipes of its own",
        ),
        ({"promptings": ["chain_of_thought"], "scoring": ["teacher_forced"]}, r"scoring: .*CoT' reasons .*generate"),
    ],
)  # fmt: skip
def test_mistakes_in_promptings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changes)


@pytest.mark.parametrize(
    ("reply", "final"),
    [
        ("1 and 1 are 2.\n**Answer**: 2", "2"),
        ("1 and 1 are 2.\n- Answer: 2", "2"),
        ('I must end with "Answer:" and the sum.\n2', "2"),  # no marker: it does not begin its line
        ("Answer: 2\n\nBut the other number was 77.", "2"),
        ("Answer:\n\n2\n\nBut the other number was 77.", "2"),
    ],
)
def test_a_marker_begins_its_line_and_an_answer_ends_with_its_paragraph(reply: str, final: str) -> None:
    assert Prompting("chain_of_thought").final(reply, cut=False).text == final


@pytest.mark.parametrize(
    ("name", "reply", "left"),
    [
        ("direct", "Paris\nQuestion: who", "Paris\n"),
        ("chain_of_thought", "Question: first.\nAnswer: Paris\nQuestion:", "Question: first.\nAnswer: Paris\n"),
        ("chain_of_thought", "no marker Question:", "no marker "),
    ],
)
def test_the_stop_string_that_ended_a_reply_is_not_graded(name: str, reply: str, left: str) -> None:
    assert Prompting(name).before_stop(reply, ["Question:"]) == left


def test_a_budget_that_leaves_no_answer_is_refused() -> None:
    message = "budget: 20 tokens of reasoning leave none for the answer: decoding.max_new_tokens is 20."
    with pytest.raises(UserError, match=message):
        Recipe("r", FullAttention(), Prompting("chain_of_thought", budget=20), Decoding(max_new_tokens=20))

"""Variable tracking: an independent reader follows the chains; lengths, spans, knobs and mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.errors import UserError
from swaa.tasks import VariableTracking, task_from_dict
from tasks.counters import make, pieces, thirds, words

ASSIGNMENT = re.compile(r"Variable ([A-Z]+) is set to (?:variable ([A-Z]+)|(\d+))\.")

tasks = st.builds(
    VariableTracking,
    haystack=st.sampled_from(["noise", "topics"]),
    num_chains=st.integers(1, 5),
    num_hops=st.integers(1, 6),
    name_length=st.integers(3, 8),
)


def holders(text: str, value: str) -> list[str]:
    """The variables with that value, in the order of the text, read as a program would run it."""
    memory: dict[str, str] = {}
    for name, other, number in ASSIGNMENT.findall(text):
        assert name not in memory
        memory[name] = memory[other] if other else number
    return [name for name, held in memory.items() if held == value]


@settings(max_examples=settings.default.max_examples // 20)
@given(task=tasks, length=st.integers(700, 3000), seed=st.integers(0, 2**40), count=st.sampled_from([words, thirds]))
def test_a_reader_that_runs_the_text_finds_the_answer(
    task: VariableTracking, length: int, seed: int, count: Callable
) -> None:
    (example,) = make(task, length, seed=seed, count=count)
    context, _, question = example.prompt.rpartition("\n\n")
    value = re.search(r"the value (\d+),", question)[1]
    assert holders(context, value) == list(example.references)
    assert len(example.references) == task.num_hops + 1
    assert len(ASSIGNMENT.findall(context)) == task.num_chains * (task.num_hops + 1)
    assert all(len(name) == task.name_length for name in example.references)
    assert example.answer == f" with the value {value} are {', '.join(example.references)}"
    assert example.prompt.count(value) == 2  # once in the text, once in the question
    for name in example.references:
        assert name not in question

    facts = example.metadata
    assert count(example.prompt, example.answer_prefix) == length == facts["tokens"]
    sentences = [example.prompt[start:end] for start, end in facts["spans"]]
    assert [ASSIGNMENT.fullmatch(sentence)[1] for sentence in sentences] == list(example.references)
    assert facts["spans"] == sorted(facts["spans"])
    assert facts["depths"] == sorted(facts["depths"])
    others = [example.prompt[start:end] for start, end in facts["distractor_spans"]]
    assert all(ASSIGNMENT.fullmatch(other) for other in others)
    assert len(others) == (task.num_chains - 1) * (task.num_hops + 1)


def test_lengths_are_exact_with_a_real_tokenizer() -> None:
    for length in range(500, 520):
        (example,) = make(VariableTracking(), length, count=pieces)
        assert pieces(example.prompt, example.answer_prefix) == length


def test_the_chain_goes_through_the_whole_text() -> None:
    depths = [depth for example in make(VariableTracking(), 2000, number=30) for depth in example.metadata["depths"]]
    assert min(depths) < 0.05
    assert max(depths) > 0.95
    assert 0.4 < sum(depths) / len(depths) < 0.6


def test_too_short_says_the_shortest_and_that_one_is_right() -> None:
    with pytest.raises(
        UserError, match=r"length of variable_tracking: expected at least \d+ tokens, for the as"
    ) as error:
        make(VariableTracking(), 30)
    shortest = int(re.findall(r"at least (\d+)", str(error.value))[0])
    (example,) = make(VariableTracking(), shortest)
    assert holders(example.prompt, example.metadata["value"]) == list(example.references)
    assert example.metadata["tokens"] == shortest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_chains": 0}, "variable_tracking.num_chains: expected an int >= 1, got 0."),
        ({"num_hops": True}, "variable_tracking.num_hops: expected an int >= 1, got True."),
        ({"name_length": 2}, "variable_tracking.name_length: expected an int >= 3, got 2."),
        ({"num_hops": 255, "num_chains": 2}, "expected at most 256 variables, num_chains x (num_hops + 1), got 512."),
        ({"haystack": "nois"}, "variable_tracking.haystack: unknown value 'nois'. Did you mean 'noise'?"),
        ({"haystack_file": "x"}, "variable_tracking.haystack_file: expected nothing with haystack 'noise', got 'x'."),
        ({"num_hop": 2}, "Did you mean 'variable_tracking.num_hops'?"),
    ],
)
def test_mistakes(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        task_from_dict({"name": "variable_tracking"} | values)


def test_short_names_are_each_used_once() -> None:
    task = VariableTracking(num_chains=32, num_hops=7, name_length=3)  # 256 of 17,576 names: two alike are likely
    for example in make(task, 3000, number=8):
        names = [name for name, _, _ in ASSIGNMENT.findall(example.prompt)]
        assert len(set(names)) == len(names) == 256

"""From tasks to samples: the bins of tasks that have their own lengths, what is left out, and the evidence's place."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from swaa.config import Experiment
from swaa.engine.batch import Sample
from swaa.engine.description import num_answers, told
from swaa.engine.prompting import evidence_distance, prepare
from swaa.engine.samples import make_samples
from swaa.errors import UserError
from swaa.policies import FullAttention, SlidingWindow
from swaa.prompting import Prompting
from swaa.recipe import Decoding, Recipe
from swaa.tasks import Example, Task, get_task
from swaa.tasks.base import CountTokens

TEMPLATE = 3
"""Tokens that the tiny model's chat template adds: ``<|user|>``, ``</s>`` and ``<|assistant|>``."""
COT = Prompting("chain_of_thought", instruction="Think.")
INSTRUCTION = len("\n\nThink.")


@dataclass(frozen=True)
class Given(Task):
    """Examples of given sizes, in characters: as a file of a published benchmark would have them."""

    name: ClassVar[str] = "given"
    sized: ClassVar[bool] = False

    sizes: tuple[int, ...]
    answer: str = "yes"

    def examples(self, *, length: int, num_examples: int, seed: int, count_tokens: CountTokens) -> Iterator[Example]:
        for number, size in enumerate(self.sizes):
            yield Example(f"g{number}", "x" * size, "", self.answer, ("yes",), {"number": number})


@dataclass(frozen=True)
class Lessened(Given):
    """The same, of a file that holds what the task offers to nobody."""

    @property
    def left_out(self) -> Mapping[str, int]:
        return {"without an answer": 4}


def grid(
    tasks: Sequence[Task],
    lengths: Sequence[int],
    num_examples: int = 3,
    ways: Sequence[Prompting] = (Prompting(),),
    new: int = 5,
) -> Experiment:
    decoding = Decoding(max_new_tokens=new)
    recipes = [Recipe(f"FA {number}", FullAttention(), way, decoding) for number, way in enumerate(ways)]
    recipes += [Recipe("swa", SlidingWindow(4), ways[0], decoding)]
    output = Path("unused")
    return Experiment(tuple(recipes), tuple(tasks), tuple(lengths), output, num_examples=num_examples)


def names(samples: Sequence[Sample]) -> list[tuple[int, str, str]]:
    return [(sample.length, sample.example.id, sample.prompting.name) for sample in samples]


# ---------------------------------------------------------------------------------------------- bins


@settings(max_examples=settings.default.max_examples // 10)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    edges=st.lists(st.integers(4, 30), min_size=1, max_size=4, unique=True),
    num_examples=st.integers(1, 4),
    new=st.integers(1, 4),
    answer=st.sampled_from(["yes", "yes, a ferry"]),
    spare=st.none() | st.integers(0, 12),
    both=st.booleans(),
)
def test_bins_are_those_of_a_loop(
    tokenizer: Any,
    sizes: list[int],
    edges: list[int],
    num_examples: int,
    new: int,
    answer: str,
    spare: int | None,
    both: bool,
) -> None:
    ways = [Prompting(), COT] if both else [Prompting()]
    context = None if spare is None else max(edges) + new + spare
    expected: dict[int, list[str]] = {edge: [] for edge in edges}
    too_long, full, offered = [], 0, 0
    for number, size in enumerate(sizes):
        if sum(len(kept) == num_examples for kept in expected.values()) == len(edges):
            break  # nobody needs to look any further
        offered += 1
        tokens = size + TEMPLATE
        longest = tokens + (INSTRUCTION if both else 0)
        room = [edge for edge in sorted(edges) if tokens <= edge]
        if not room or (context is not None and longest + max(new, len(answer)) > context):
            too_long.append((f"g{number}", tokens))
        elif len(expected[room[0]]) == num_examples:
            full += 1
        else:
            expected[room[0]].append(f"g{number}")
    kept = sum(map(len, expected.values()))
    asked_for = grid([Given(tuple(sizes), answer)], edges, num_examples, ways, new)
    if not kept:
        with pytest.raises(UserError, match="nothing is left to ask.*0 of .*Ask for longer lengths"):
            make_samples(asked_for, tokenizer, context=context)
        return
    asked = make_samples(asked_for, tokenizer, context=context)
    assert names(asked.samples) == [(edge, name, way.name) for edge in edges for name in expected[edge] for way in ways]
    for sample in asked.samples:
        extra = INSTRUCTION if sample.prompting == COT else 0
        assert len(sample.prompt.ids) == len(sample.example.prompt) + TEMPLATE + extra
    (dropped,) = asked.dropped
    assert (dropped.offered, dropped.kept, dropped.full) == (offered, kept, full)
    assert list(dropped.too_long) == too_long
    assert dropped.length_limit == max(edges)
    assert dropped.kept + dropped.full + len(dropped.too_long) == dropped.offered
    assert num_answers(asked_for, asked) == kept * len(asked_for.recipes)


def test_what_is_left_out_is_told(tokenizer: Any) -> None:
    """Two fit, five do not, of which three are named; one is beyond what was asked for."""
    sizes = (90, 10, 91, 12, 13, 1500, 93, 94, 35)
    asked = make_samples(grid([Lessened(sizes)], [20, 50], 2), tokenizer, context=None)
    (dropped,) = asked.dropped
    assert told(asked.dropped) == [
        f"{dropped.task}: 3 of 9 examples asked; 5 longer than 50 tokens left out (g0 (93), g2 (94), g5 (1,503), …); "
        "1 beyond num_examples; 4 without an answer"
    ]
    values = json.loads(json.dumps(dropped.to_dict()))
    assert values["too_long"][2] == {"example": "g5", "tokens": 1503}
    assert {key: values[key] for key in ("length_limit", "offered", "kept", "full", "left_out")} == {
        "length_limit": 50, "offered": 9, "kept": 3, "full": 1, "left_out": {"without an answer": 4},
    }  # fmt: skip
    whole = make_samples(grid([Given((10,))], [20]), tokenizer, context=None)
    assert told(whole.dropped) == [], "nothing is told where all are asked"


def test_tasks_of_both_kinds_stand_side_by_side(tokenizer: Any) -> None:
    tasks = [Given((500, 410, 10)), get_task("needle_single")()]
    asked = make_samples(grid(tasks, [440, 400], 2), tokenizer, context=2048)
    assert [(sample.task.name, sample.length) for sample in asked.samples] == [
        ("given", 440), ("given", 400), *[("needle_single", 440)] * 2, *[("needle_single", 400)] * 2,
    ]  # fmt: skip
    assert [one.task for one in asked.dropped] == [tasks[0].label], "a task of our own drops nothing"


def test_everything_too_long_is_a_mistake_that_names_the_examples(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"nothing is left to ask: given.*0 of 2 examples asked; 2 longer than 20 .*g0"):
        make_samples(grid([Given((50, 60))], [20]), tokenizer, context=None)


@pytest.mark.parametrize("task", [Given((10,)), get_task("needle_single")()], ids=["unsized", "sized"])
def test_a_length_that_leaves_no_room_for_the_answer_is_refused(tokenizer: Any, task: Task) -> None:
    with pytest.raises(UserError, match=r"lengths: 400 prompt tokens and 5 new ones are 405 tokens, .*at most 399"):
        make_samples(grid([task], [20, 400]), tokenizer, context=404)


# ---------------------------------------------------------------------------------------------- ways of asking


def test_every_example_comes_once_in_each_way_of_asking(tokenizer: Any) -> None:
    asked_for = grid([get_task("needle_single")()], [400, 440], 2, [Prompting(), COT])
    samples = make_samples(asked_for, tokenizer, context=None).samples
    assert len(samples) == 2 * 2 * 2
    direct = [sample for sample in samples if sample.prompting == Prompting()]
    cot = [sample for sample in samples if sample.prompting == COT]
    assert [sample.example for sample in direct] == [sample.example for sample in cot]
    assert all(len(sample.prompt.ids) == sample.length for sample in direct), "direct prompts have the very length"
    for one, other in zip(direct, cot, strict=True):
        prefix = len(one.example.answer_prefix)
        assert len(other.prompt.ids) == one.length + INSTRUCTION - prefix
        assert other.prompt.text == f"<|user|>{one.example.prompt}\n\nThink.</s><|assistant|>"


# ---------------------------------------------------------------------------------------------- evidence


def pieces() -> PreTrainedTokenizerFast:
    """A byte-pair encoding with tokens that hold the space before a word, as those of real models do."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["the tide came in over the sand. the key is in the shed. " * 3], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    made.chat_template = "[u]{{ messages[0].content }}\n[a]"
    return made


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    return pieces()


WORDS = st.lists(st.sampled_from(["the", "tide", "came", "sand.", "key", "shed.", "\n", "in"]), max_size=9).map(
    " ".join
)


def holding(tokenizer: Any, text: str, place: int) -> int:
    """Which token of a text holds the character at ``place``."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return next(index for index, (start, end) in enumerate(offsets) if start <= place < end)


@settings(max_examples=settings.default.max_examples // 20)
@given(before=WORDS, evidence=WORDS.filter(str.strip), between=WORDS, late=WORDS.filter(str.strip), after=WORDS)
@pytest.mark.parametrize("way", [Prompting(), COT], ids=["direct", "cot"])
def test_the_distance_to_the_farthest_evidence(
    merging: Any, way: Prompting, before: str, evidence: str, between: str, late: str, after: str
) -> None:
    """From the token that holds its first character, that one included, to the prompt's end."""
    parts = [before, evidence, between, late, after]
    prompt, spans = "", []
    for number, part in enumerate(parts):
        prompt += " " if number else ""
        if number in (1, 3):
            spans.append([len(prompt), len(prompt) + len(part)])
        prompt += part
    example = Example("e", prompt, "It is", " x", ("x",), {"spans": spans[::-1]})
    made = prepare(merging, example, way)
    start = len("[u]") + spans[0][0]
    assert made.text[start:].startswith(evidence)
    expected = len(made.ids) - holding(merging, made.text, start)
    assert evidence_distance(merging, example, made) == expected


def test_without_spans_the_distance_is_not_known(tokenizer: Any) -> None:
    for facts in ({}, {"spans": []}, {"spans": None}, {"depths": [0.5]}):
        example = Example("e", "Who?", "", "x", ("x",), facts)
        assert evidence_distance(tokenizer, example, prepare(tokenizer, example)) is None


def test_a_template_that_rewrites_the_question_makes_the_distance_unknown(merging: Any) -> None:
    shouting = copy.deepcopy(merging)
    shouting.chat_template = "{{ messages[0].content | upper }}"
    example = Example("e", "the key is in the shed.", "", "x", ("x",), {"spans": [[4, 7]]})
    assert evidence_distance(shouting, example, prepare(shouting, example)) is None


def test_the_needle_of_our_own_task_is_where_the_distance_says(tokenizer: Any) -> None:
    samples = make_samples(grid([get_task("needle_single")()], [400], 3), tokenizer, context=None).samples
    for sample in samples:
        (span, *_) = sample.example.metadata["spans"]  # type: ignore[misc]
        needle = sample.example.prompt[span[0] : span[1]]
        assert sample.evidence_distance is not None
        rest = sample.prompt.ids[-sample.evidence_distance :]
        assert tokenizer.decode(list(rest)).startswith(needle)

"""Questions about documents: people looked up again, a user's file, lengths, spans, knobs and mistakes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.errors import UserError
from swaa.graders import AnyFound, Recall
from swaa.tasks import DocumentQA, task_from_dict
from swaa.tasks.draws import Draws
from swaa.tasks.people import people
from tasks.counters import make, pieces, thirds, words

FILE = Path(__file__).parents[1] / "data" / "documents.jsonl"
LINES = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]

FACTS = {
    "In which town was": r"was born in (\w+) in \d+\.",
    "In which year was": r"was born in \w+ in (\d+)\.",
    "What was the trade of": r"\. An? (\w+) by trade,",
    "In which town did": r"settled in (\w+) and",
    "Which instrument did": r"played the (\w+) there",
}


def parts(prompt: str) -> tuple[list[str], str]:
    """(documents, question)"""
    *documents, question = prompt.split("\n\n")
    return documents, question.partition("in a few words: ")[2]


@settings(max_examples=settings.default.max_examples // 20)
@given(
    depth=st.none() | st.floats(0, 1),
    length=st.integers(150, 3000),
    seed=st.integers(0, 2**40),
    count=st.sampled_from([words, thirds]),
)
def test_looking_the_person_up_again_finds_the_answer(
    depth: float | None, length: int, seed: int, count: Callable
) -> None:
    (example,) = make(DocumentQA(depth=depth), length, seed=seed, count=count)
    documents, question = parts(example.prompt)
    name = re.search(r"[A-Z]\w+ [A-Z]\w+", question)[0]
    about = [text for text in documents if text.startswith(name) and text.endswith("Sundays.")]
    assert len(about) == 1
    assert example.prompt.count(name) == 4  # the title, twice in the text, the question
    asked = next(fact for fact in FACTS if question.startswith(fact))
    assert re.search(FACTS[asked], about[0])[1] == example.references[0]
    assert example.answer_prefix + example.answer == f"The answer is {example.references[0]}"

    ((start, end),) = example.metadata["spans"]
    assert example.prompt[start:end] == about[0]
    (reached,) = example.metadata["depths"]
    others = sum(len(text) for text in documents) - len(about[0])
    assert depth is None or abs(reached - depth) * others <= 100  # half a document
    assert count(example.prompt, example.answer_prefix) == length == example.metadata["tokens"]
    titles = [text.partition("\n")[0] for text in documents]
    assert len(set(titles)) == len(titles)


def test_lengths_are_exact_with_a_real_tokenizer() -> None:
    for length in range(1000, 1008):
        (example,) = make(DocumentQA(), length, count=pieces)
        assert pieces(example.prompt, example.answer_prefix) == length


def test_depths_are_spread_evenly() -> None:
    depths = [example.metadata["depths"][0] for example in make(DocumentQA(), 4000, number=24)]
    assert all(4 <= sum(int(4 * depth) == quarter for depth in depths) <= 8 for quarter in range(4))


class TestFile:
    def test_each_question_once_before_any_again(self) -> None:
        examples = make(DocumentQA(str(FILE)), 200, number=6)
        asked = [example.metadata["question"] for example in examples]
        assert set(asked[:3]) == {line["question"] for line in LINES if "question" in line}
        assert asked[3:] == asked[:3]

    def test_golden_documents_and_distractors(self) -> None:
        for example in make(DocumentQA(str(FILE)), 200, number=3):
            line = next(line for line in LINES if line.get("question") == example.metadata["question"])
            golden = line.get("documents") or [line["document"]]
            assert [example.prompt[start:end] for start, end in example.metadata["spans"]] == golden
            assert all(example.prompt.count(text) == 1 for text in golden)  # though the others repeat
            answer = line["answer"]
            assert example.references == tuple(answer if isinstance(answer, list) else [str(answer)])
            assert example.metadata.get("question_type") == line.get("question_type")
            assert example.metadata["corpus"]["rounds"] > 1
            others = set(example.prompt.split("\n\n")[:-1]) - set(golden)
            assert LINES[2]["document"] in others

    def test_own_distractors_come_first(self) -> None:
        examples = make(DocumentQA(str(FILE)), 100, number=3)
        (example,) = [example for example in examples if example.references == ("Emil",)]
        assert LINES[1]["distractors"][0] in example.prompt

    def test_length_is_exact_and_ids_go_with_the_text_not_with_the_path(self, tmp_path: Path) -> None:
        copy = tmp_path / "copy.jsonl"
        copy.write_bytes(FILE.read_bytes())
        one, two = (make(DocumentQA(str(path)), 180, number=3) for path in (FILE, copy))
        assert one == two
        assert all(example.metadata["tokens"] == 180 for example in one)
        copy.write_text(copy.read_text("utf-8").replace("six years", "ten years"), "utf-8")
        assert make(DocumentQA(str(copy)), 180)[0].id != one[0].id

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([{"question": "Who?", "answer": "I", "document": "I did."}], "no document is left to stand beside those"),
            ([{"document": "Alone."}], "there is no question in it. Give a line 'question', 'answer' and 'document'."),
            ([{"question": "Who?", "document": "I."}], "data.jsonl:1: answer: this field is missing."),
            ([{"answer": "I", "document": "I."}], "data.jsonl:1: question: this field is missing, as there is an ans"),
            ([{"question": "Who?", "answer": "I"}], "data.jsonl:1: document: this field is missing."),
            ([{"quest": "Who?"}], "data.jsonl:1: unknown field 'quest'. Did you mean 'question'?"),
            ([{"document": "a", "documents": ["b"]}], "data.jsonl:1: document, documents: expected one of these"),
            ([{"documents": ["b", 3]}], "data.jsonl:1: documents[1]: expected a string, got 3."),
            ([{"documents": "b"}], "data.jsonl:1: documents: expected a list of documents, got 'b'."),
            ([{"question": " ", "answer": "I", "document": "I."}], "question: expected a string that is not blank"),
            ([{"question": "Who?", "answer": [], "document": "I."}], "answer: expected at least one answer, got []."),
            ([{"question": "Who?", "answer": None, "document": "I."}], "answer: this field is null."),
            ([{}], "data.jsonl:1: question: this field is missing. Add it, or name the one that stands for it."),
            (["x"], "data.jsonl:1: this line: expected an object, got 'x'."),
        ],
    )
    def test_bad_lines(self, tmp_path: Path, lines: list[object], message: str) -> None:
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in lines))
        with pytest.raises(UserError, match=re.escape(message)):
            make(DocumentQA(str(path)))


def test_graders_can_be_chosen_and_do_not_change_the_examples() -> None:
    task = task_from_dict({"name": "document_qa", "grader": "recall", "depth": 1})
    assert task == DocumentQA(depth=1.0, grader=Recall())
    assert DocumentQA().grader == AnyFound()
    assert task.label == "document_qa(grader=recall, depth=1.0)"
    assert task_from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert make(task) == make(replace(task, grader=AnyFound()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 2}, "document_qa.depth: expected a number in [0, 1], got 2."),
        ({"file": ""}, "document_qa.file: expected a non-empty string, got ''."),
        ({"grader": "recal"}, "unknown grader 'recal'. Did you mean 'recall'?"),
        ({"file": "gone.jsonl"}, "gone.jsonl: there is no such file. Check the path"),
    ],
)
def test_mistakes(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make(task_from_dict({"name": "document_qa"} | values))


def test_shorter_than_its_documents_says_the_shortest() -> None:
    with pytest.raises(UserError, match=r"length of document_qa: expected at least \d+ tokens, for the documents"):
        make(DocumentQA(), 40)


def test_no_two_people_share_a_surname() -> None:
    surnames = [person.name.split()[1] for person in islice(people(Draws(0)), 4000)]
    assert len(set(surnames)) == 4000

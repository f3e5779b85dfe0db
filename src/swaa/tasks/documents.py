"""Questions about documents: the ones that hold the answer stand among others that do not.

Structure after RULER's question answering (Hsieh et al., arXiv 2404.06654), wording our own. The documents are a
user's, or, where no file is given, short ones about people who never lived, so that no model knows the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

from swaa.errors import UserError
from swaa.graders import Grader, parse_grader
from swaa.reading import check_keys, check_number, check_text, within
from swaa.tasks.base import Example, GradedTask, digest_of
from swaa.tasks.datafile import open_data
from swaa.tasks.draws import Draws
from swaa.tasks.fields import answers_of, as_full_text, as_list, as_object, as_words, has, need
from swaa.tasks.people import people
from swaa.tasks.placing import Draft, Needle
from swaa.tasks.registry import register_task
from swaa.tasks.sized import Order, SizedTask

FIELDS = ("question", "answer", "document", "documents", "distractors", "question_type", "id")
"""What a line of a user's file may say."""
BETWEEN = "\n\n"


@dataclass(frozen=True)
class Asked:
    """A question, what answers it, and where.

    Attributes:
        question: as it is asked.
        answers: spellings of the one answer; at least one.
        golden: the documents that it takes, in the order given.
        distractors: documents that stand beside them before all others.
        facts: for the metadata.
    """

    question: str
    answers: tuple[str, ...]
    golden: tuple[str, ...]
    distractors: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """What a user's file holds; nothing where there is no file.

    Attributes:
        asked: its questions.
        documents: all its documents, each once.
        sha256: of its bytes, in hexadecimal.
    """

    asked: tuple[Asked, ...] = ()
    documents: tuple[str, ...] = ()
    sha256: str = ""


@register_task
@dataclass(frozen=True)
class DocumentQA(GradedTask, SizedTask[Corpus]):
    """A question whose documents stand among others; the prompt grows by documents that do not answer it.

    Attributes:
        file: a ``.jsonl``, ``.json`` or ``.parquet`` file; a line has ``question``, ``answer`` (a string, a number, or
            a list of spellings), ``document`` or ``documents`` (all that the answer takes), and if need be
            ``distractors``, ``question_type`` and ``id``. The documents of the other lines distract; a line of
            documents alone asks nothing. None: invented people, a new set in each example.
        depth: where the golden documents stand, from 0 (first) to 1 (last), exact to a document. None: each has its
            own depth, spread evenly over the examples.

    The metadata of an example: ``length`` asked, ``tokens`` reached; ``question``; for each golden document ``depths``
    and ``spans`` (character offsets in the prompt); ``corpus`` with its kind, SHA-256 and how many rounds through the
    file's documents were begun; what the line says of ``question_type`` and ``id``.
    """

    name: ClassVar[str] = "document_qa"

    file: str | None = None
    depth: float | None = None
    grader: Grader = field(default=parse_grader("any_found"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        if self.file is not None:
            check_text(f"{owner}.file", self.file)
        if self.depth is not None:
            object.__setattr__(self, "depth", check_number(f"{owner}.depth", self.depth, low=0, high=1))

    @property
    def fingerprint(self) -> str:
        return digest_of({"name": self.name, "depth": self.depth, "sha256": self.open().sha256})

    def open(self) -> Corpus:
        return Corpus() if self.file is None else _corpus(self.file)

    def make(self, order: Order, material: Corpus) -> Example:
        asked, distractors, pool = _choose(order, material)
        depths = order.depths(len(asked.golden)) if self.depth is None else [self.depth] * len(asked.golden)
        needles = [Needle(text, depth) for text, depth in zip(asked.golden, depths, strict=True)]
        question = f"Answer this question from the documents above, in a few words: {asked.question}"
        draft = Draft(needles, distractors, question, between=BETWEEN)
        prefix = "The answer"  # the next word is the same in every reply, so that all of the answer is decoded
        padding, tokens = self.fitted(
            order,
            draft.prompt,
            prefix,
            words_in=draft.words_in,
            needs="the documents that answer it and the question",
            mend="Ask for longer prompts, or for questions about shorter documents.",
        )
        context = draft.context(padding)
        rounds = -(-padding.num_sentences // pool) if pool else 0
        return Example(
            id=order.id,
            prompt=draft.prompt(padding),
            answer_prefix=prefix,
            answer=f" is {asked.answers[0]}",
            references=asked.answers,
            metadata={
                "length": order.length,
                "tokens": tokens,
                "question": asked.question,
                "depths": [round(depth, 6) for depth in context.depths],
                "spans": [list(span) for span in context.spans],
                "corpus": {"kind": "file" if pool else "people", "sha256": material.sha256, "rounds": rounds},
                **asked.facts,
            },
        )


def _choose(order: Order, corpus: Corpus) -> tuple[Asked, Iterator[str], int]:
    """The question of one example, documents that do not answer it, without end, and how many of a file they are."""
    if not corpus.asked:
        persons = people(order.draws)
        golden = next(persons)
        question, answer = order.draws.choice(golden.questions())
        return Asked(question, (answer,), (golden.document(),)), (person.document() for person in persons), 0
    asked = corpus.asked[_shuffled(order.start, len(corpus.asked))[order.index % len(corpus.asked)]]
    known = {*asked.golden, *asked.distractors}
    others = [text for text in corpus.documents if text not in known]
    pool = [*asked.distractors, *order.draws.shuffled(others)]
    if not pool:
        mend = "Add lines, or 'distractors'."
        raise UserError(f"DocumentQA.file: no document is left to stand beside those of {asked.question!r}. {mend}")
    return asked, _endless(pool), len(pool)


def _endless(pool: Sequence[str]) -> Iterator[str]:
    while True:
        yield from pool


@lru_cache(maxsize=8)
def _shuffled(start: int, number: int) -> list[int]:
    """The order in which the questions of a file are asked."""
    return Draws("questions", start).shuffled(range(number))


def _corpus(file: str) -> Corpus:
    data = open_data(file)
    asked: list[Asked] = []
    documents: dict[str, None] = {}
    for row in data.rows:
        with within(row.place):
            line = _line(as_object("this line", row.values))
        documents.update(dict.fromkeys((*line.golden, *line.distractors)))
        if line.question:
            asked.append(line)
    if not asked:
        raise UserError(f"{file}: there is no question in it. Give a line 'question', 'answer' and 'document'.")
    return Corpus(tuple(asked), tuple(documents), data.sha256)


def _line(values: Mapping[str, object]) -> Asked:
    """What one line says; one without a question has only documents."""
    check_keys(values, FIELDS, "")
    if has(values, "document") and has(values, "documents"):
        raise UserError("document, documents: expected one of these fields, got both. Put all into 'documents'.")
    if has(values, "documents") or has(values, "document"):
        golden = _texts(values, "documents") or (as_full_text("document", need(values, "document")),)
    else:
        golden = ()
    distractors = _texts(values, "distractors")
    if not has(values, "question"):
        if has(values, "answer"):
            raise UserError("question: this field is missing, as there is an answer. Add it.")
        if not golden and not distractors:
            need(values, "question")
        return Asked("", (), golden, distractors)
    if not golden:
        need(values, "document")
    facts = {name: as_words(name, values[name]) for name in ("question_type", "id") if has(values, name)}
    return Asked(
        as_full_text("question", values["question"]),
        answers_of("answer", need(values, "answer")),
        golden,
        distractors,
        facts,
    )


def _texts(values: Mapping[str, object], name: str) -> tuple[str, ...]:
    """The documents under ``name``, none if there is no such field."""
    if not has(values, name):
        return ()
    items = as_list(name, values[name], "documents")
    return tuple(as_full_text(f"{name}[{place}]", item) for place, item in enumerate(items))

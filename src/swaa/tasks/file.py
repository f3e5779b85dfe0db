"""A file of questions of one's own: which field is what, and no code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from swaa.errors import UserError
from swaa.reading import check_text
from swaa.tasks.fields import answers_of, as_full_text, as_json, as_object, as_text, as_words, has, need
from swaa.tasks.filetask import Content, Entry, FileTask, LeftOut, after, check_names, reference_answer
from swaa.tasks.registry import register_task
from swaa.tasks.template import Template


@register_task
@dataclass(frozen=True)
class File(FileTask):
    """The questions of a file, each with its answer; which field is what is said by name.

    Without any parameter but the path a line has ``prompt`` and ``answer``, or ``context``, ``question`` and
    ``answer``: the fields of the SWAA paper's data. A name may lead into an object or a list: ``answers.text``.

    Attributes:
        prompt: the user's message, with ``{field}`` for a line's fields. None: ``{prompt}``, or ``{context}`` and
            ``{question}`` with a blank line between them where a line has no ``prompt``.
        answer: field of the answer: a string, a number or a list of them. Its parts for the graders ``recall`` and
            ``all_found``; otherwise spellings, of which teacher forcing scores the first.
        references: field of what the grader looks for; None: the answer.
        answer_prefix: the beginning of the reply that belongs to the prompt, with ``{field}`` too. None: the line's
            ``answer_prefix``, if it has one.
        id: field of the question's id. None: ``id`` if a line has one, else the file's name and the line's number.
        question_type: field of its kind, by which tables split. None: ``question_type``, if a line has one.
        evidence: field of what the answer rests on, one text or several that stand in the prompt word for word.
        metadata: fields to keep in the records. An object ``metadata`` of a line is always kept.
        rows: dotted name of the list in a ``.json`` file that is no list itself: ``data``.

    The metadata of an example: ``item``, its id; ``question``, ``question_type`` and what else was asked for; with
    evidence, ``spans`` (character offsets in the prompt) and ``depths``.
    """

    name: ClassVar[str] = "file"

    prompt: str | None = None
    answer: str = "answer"
    references: str | None = None
    answer_prefix: str | None = None
    id: str | None = None
    question_type: str | None = None
    evidence: str | None = None
    metadata: tuple[str, ...] = ()
    rows: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        check_text(f"{owner}.answer", self.answer)
        for field in ("references", "id", "question_type", "evidence", "rows"):
            if getattr(self, field) is not None:
                check_text(f"{owner}.{field}", getattr(self, field))
        for field in ("prompt", "answer_prefix"):
            self._template(field)
        object.__setattr__(self, "metadata", check_names(f"{owner}.metadata", self.metadata))

    @property
    def rows_at(self) -> str | None:
        return self.rows

    def entries(self, values: Mapping[str, object], number: int) -> Iterator[Entry | LeftOut]:
        answers = answers_of(self.answer, need(values, self.answer))
        references = answers_of(self.references, need(values, self.references)) if self.references else answers
        name = self._id(values, number)

        def write() -> Content:
            prompt = self._prompt(values)
            prefix = self._prefix(values)
            return Content(
                prompt=prompt,
                answer=after(prefix, reference_answer(self.grader, answers)),
                references=references,
                answer_prefix=prefix,
                spans=tuple(self._evidence(values, prompt)),
                facts=self._facts(values),
            )

        self._check_prompt(values)
        yield Entry(name, write)

    def _template(self, field: str) -> Template | None:
        text = getattr(self, field)
        return None if text is None or text == "" else Template.parse(f"{type(self).__name__}.{field}", text)

    def _check_prompt(self, values: Mapping[str, object]) -> None:
        """Refuse a line of another form before the first example is written."""
        if self.prompt is None and not has(values, "prompt"):
            if not has(values, "context") and not has(values, "question"):
                need(values, "prompt")
            need(values, "context")
            need(values, "question")

    def _prompt(self, values: Mapping[str, object]) -> str:
        template = self._template("prompt")
        if template is not None:
            return template.fill(values)
        if has(values, "prompt"):
            return as_full_text("prompt", values["prompt"])
        return "\n\n".join(as_full_text(field, values[field]) for field in ("context", "question"))

    def _prefix(self, values: Mapping[str, object]) -> str:
        template = self._template("answer_prefix")
        if template is not None:
            return template.fill(values)
        own = self.answer_prefix is None and has(values, "answer_prefix")
        return as_text("answer_prefix", values["answer_prefix"]) if own else ""

    def _id(self, values: Mapping[str, object], number: int) -> str:
        if self.id is not None:
            return as_words(self.id, need(values, self.id))
        return as_words("id", values["id"]) if has(values, "id") else f"{Path(self.path).stem}-{number}"

    def _evidence(self, values: Mapping[str, object], prompt: str) -> Iterator[tuple[int, int]]:
        """Where each piece of evidence stands in the prompt, for the first time."""
        if self.evidence is None:
            return
        for text in answers_of(self.evidence, need(values, self.evidence)):
            start = prompt.find(text)
            if start < 0:
                mend = "Copy it word for word from there, or leave 'evidence' out."
                raise UserError(f"{self.evidence}: expected text that stands in the prompt, got {text[:57]!r}. {mend}")
            yield start, start + len(text)

    def _facts(self, values: Mapping[str, object]) -> dict[str, object]:
        facts: dict[str, object] = {}
        if isinstance(values.get("question"), str):
            facts["question"] = values["question"]
        if self.question_type is not None:
            facts["question_type"] = as_words(self.question_type, need(values, self.question_type))
        elif has(values, "question_type"):
            facts["question_type"] = as_words("question_type", values["question_type"])
        if has(values, "metadata"):
            own = as_json("metadata", as_object("metadata", values["metadata"]))
            facts |= as_object("metadata", own)
        return facts | {field: as_json(field, need(values, field)) for field in self.metadata}

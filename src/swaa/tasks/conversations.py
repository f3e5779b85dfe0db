"""Conversations to train on: what a line of a data file says, and reading such a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from swaa.errors import UserError, unknown
from swaa.prompting import Prompting
from swaa.reading import check_choice, check_text
from swaa.tasks.base import Example
from swaa.tasks.datafile import read_rows
from swaa.tasks.fields import as_text, refused, short

ROLES = ("system", "user", "assistant")
FORMS: tuple[tuple[str, ...], ...] = (("messages",), ("prompt", "answer"), ("context", "question", "answer"))
"""The fields that a line says its turns with; one of these sets."""
FILES = (".jsonl", ".parquet")
OPTIONAL = ("answer_prefix", "id", "metadata")

_FORMS_IN_WORDS = "either 'messages', or 'prompt' and 'answer', or 'context', 'question' and 'answer'"
_PAIRS = "After an optional system turn, user and assistant take turns, and the assistant has the last one."


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: one of ``ROLES``.
        content: its text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns of which every reply of the assistant is trained on.

    Attributes:
        id: unique in its file.
        turns: an optional system turn, then user and assistant by turns; the last is the assistant's.
        answer_prefix: the beginning of the last turn that belongs to the prompt: prefilled, not trained on.
        metadata: JSON-able facts about the conversation, for records.

    Raises:
        UserError: turns in another order, a turn without text, or an ``answer_prefix`` that is not the beginning of the
            last turn or leaves nothing of it.
    """

    id: str
    turns: tuple[Turn, ...]
    answer_prefix: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text("id", self.id)
        _check_order(self.turns)
        for place, turn in enumerate(self.turns, start=1):
            if not turn.content.strip():
                what = "empty answer" if turn.role == "assistant" else "no text"
                mend = "Write what the assistant shall learn to say." if turn.role == "assistant" else "Give it some."
                raise UserError(f"turn {place} of {len(self.turns)} ({turn.role}): {what}. {mend}")
        reply = self.turns[-1].content
        if not reply.startswith(self.answer_prefix):
            accepted = f"the beginning of the last reply {short(reply)}"
            mend = "Copy it from there, or leave it out."
            raise refused("answer_prefix", accepted, self.answer_prefix, mend)
        if not self.answer.strip():
            mend = "Shorten the prefix: what follows it is trained on."
            raise UserError(f"answer_prefix: empty answer: the prefix is the whole reply {short(reply)}. {mend}")

    @property
    def answer(self) -> str:
        """The last reply without its ``answer_prefix``."""
        return self.turns[-1].content[len(self.answer_prefix) :]

    @classmethod
    def of_example(cls, example: Example, prompting: Prompting | None = None) -> Self:
        """A task's example with its reference answer, as ``prompting`` asks it (default: directly).

        Raises:
            UserError: a chain of thought is asked for, and the task gives no reasoning.
        """
        asked = prompting or Prompting()
        prefix, answer = example.answer_prefix, example.answer
        if asked.reasons:
            if not example.reasoning:
                mend = "Train on direct answers, or distil a model's own reasoning: swaa distill."
                raise UserError(f"example {example.id}: its task gives no reasoning to learn. {mend}")
            prefix, answer = "", asked.reference_reply(prefix + answer, example.reasoning)
        turns = (Turn("user", asked.ask(example.prompt)), Turn("assistant", prefix + answer))
        name = f"{example.id}-{asked.name}" if asked.reasons else example.id
        try:
            return cls(name, turns, prefix, example.metadata)
        except UserError as error:
            raise UserError(f"example {example.id}: {error}") from error

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], default_id: str = "") -> Self:
        """The conversation that a line says, in one of ``FORMS``; a field that is None counts as left out.

        Raises:
            UserError: the fields are not those of a form, or one has a wrong value. The field is named.
        """
        given = {name: value for name, value in values.items() if value is not None}
        form = _form_of(given)
        prefix = as_text("answer_prefix", given.get("answer_prefix", ""))
        if form == FORMS[0]:
            turns = tuple(_turns(given["messages"]))
        else:
            texts = [as_text(name, given[name]) for name in form]
            asked, answer = "\n\n".join(texts[:-1]), texts[-1]
            if not answer.strip():
                raise UserError("answer: empty answer. Write what the assistant shall learn to say.")
            turns = (Turn("user", asked), Turn("assistant", prefix + answer))
        metadata = given.get("metadata", {})
        if not isinstance(metadata, Mapping):
            raise refused("metadata", "an object", metadata, 'Write it as {"key": value}.')
        name = given.get("id", default_id)
        if isinstance(name, int) and not isinstance(name, bool):  # as many data sets number their lines
            name = str(name)
        return cls(as_text("id", name), turns, prefix, metadata)

    def to_json(self) -> str:
        """One line of JSON without the line's end; :func:`read_conversations` reads it."""
        values: dict[str, object] = {
            "id": self.id,
            "messages": [{"role": turn.role, "content": turn.content} for turn in self.turns],
        }
        if self.answer_prefix:
            values["answer_prefix"] = self.answer_prefix
        if self.metadata:
            values["metadata"] = dict(self.metadata)
        return json.dumps(values, ensure_ascii=False)


def read_conversations(path: Path | str) -> list[Conversation]:
    """The conversations of a ``.jsonl`` or ``.parquet`` file, in order. Blank lines count, and are skipped.

    A conversation without an ``id`` is named ``<file stem>-<number of its line or row>``, from 1.

    Raises:
        UserError: there is no such file, it is of another kind or holds no conversation, an id comes twice, or a line
            is no conversation; the line is named.
    """
    path = Path(path)
    found: list[Conversation] = []
    places: dict[str, int] = {}
    for row in read_rows(path, FILES):
        number, values = row.number, row.values
        try:
            if not isinstance(values, Mapping):
                raise refused("this line", "an object", values, 'Write {"prompt": ..., "answer": ...}.')
            conversation = Conversation.from_mapping(values, default_id=f"{path.stem}-{number}")
            if conversation.id in places:
                mend = "Rename one of the two, or remove it."
                raise UserError(f"id: {conversation.id!r} is already the id of line {places[conversation.id]}. {mend}")
        except UserError as error:
            raise UserError(f"{row.place}: {error}") from error
        places[conversation.id] = number
        found.append(conversation)
    if not found:
        raise UserError(f"{path}: no conversations. Write one a line: {_FORMS_IN_WORDS}.")
    return found


def _form_of(given: Mapping[str, object]) -> tuple[str, ...]:
    """Which of ``FORMS`` the fields make up."""
    known = sorted({name for form in FORMS for name in form} | set(OPTIONAL))
    for name in given:
        if name not in known:
            raise UserError(f"{unknown('field', name, known)} What is your own goes into 'metadata'.")
    said = {name for name in given if name not in OPTIONAL}
    for form in FORMS:
        if said == set(form):
            return form
    names = ", ".join(map(repr, sorted(said))) or "none of them"
    if any(said > set(form) for form in FORMS):
        raise UserError(f"ambiguous fields: expected {_FORMS_IN_WORDS}, got {names}. Keep the fields of one set.")
    raise UserError(f"missing fields: expected {_FORMS_IN_WORDS}, got {names}. Add what is missing.")


def _turns(messages: object) -> Iterator[Turn]:
    if not isinstance(messages, list | tuple) or not messages:
        mend = "Write one object a turn, in order."
        raise refused("messages", "a list of {role, content}", messages, mend)
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if not isinstance(message, Mapping):
            mend = 'Write {"role": "user", "content": "..."}.'
            raise refused(place, "an object {role, content}", message, mend)
        for name, value in message.items():
            if name not in ("role", "content") and value is not None:
                raise UserError(f"{place}: {unknown('field', name, ('role', 'content'))}")
        for name in ("role", "content"):
            if name not in message:
                raise UserError(f"{place}.{name}: this field is missing. Add it.")
        role = check_choice(f"{place}.role", message["role"], ROLES)
        yield Turn(role, as_text(f"{place}.content", message["content"]))


def _check_order(turns: Sequence[Turn]) -> None:
    """Refuse turns that are not an optional system turn, then user and assistant in pairs."""
    due: tuple[str, ...] = ("system", "user")
    for place, turn in enumerate(turns, start=1):
        check_choice(f"turn {place}: role", turn.role, ROLES)
        if turn.role not in due:
            where = "comes first" if place == 1 else f"follows the {turns[place - 2].role}'s turn"
            accepted = " or ".join(f"the {role}'s turn" for role in due)
            raise UserError(f"turn {place}: expected {accepted}, got the {turn.role}'s, which {where}. {_PAIRS}")
        due = ("assistant",) if turn.role == "user" else ("user",)
    if not turns or turns[-1].role != "assistant":
        last = f"the {turns[-1].role}'s" if turns else "no turn"
        raise UserError(f"the last turn: expected the assistant's, got {last}. {_PAIRS}")

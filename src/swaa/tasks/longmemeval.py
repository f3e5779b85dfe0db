"""LongMemEval (Wu et al., arXiv 2410.10813): questions about many sessions of a user with an assistant.

Reads the published files (``longmemeval_s``, ``_m``, ``_oracle``); the wording of the prompt is our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from swaa.errors import UserError
from swaa.graders import Grader, parse_grader
from swaa.reading import within
from swaa.tasks.fields import as_full_text, as_list, as_object, as_text, as_words, has, need
from swaa.tasks.filetask import Content, Entry, FileTask, LeftOut, Page, check_names
from swaa.tasks.registry import register_task

QUESTION_TYPES = (
    "single-session-user",
    "single-session-assistant",
    "single-session-preference",
    "multi-session",
    "knowledge-update",
    "temporal-reasoning",
)
ABSTENTION = "_abs"
"""How the id of a question ends that the sessions do not answer."""


@dataclass(frozen=True)
class Session:
    """One conversation.

    Attributes:
        id: perhaps empty.
        date: as the file writes it, such that the order of texts is the order of time.
        turns: objects with ``role`` and ``content``, and ``has_answer`` where the evidence is.
    """

    id: str
    date: str
    turns: tuple[object, ...]


@register_task
@dataclass(frozen=True)
class LongMemEval(FileTask):
    """LongMemEval: a question about what was said in many sessions of a user with an assistant.

    Its answers are sentences, and some are rubrics (``single-session-preference``): the benchmark has a model judge
    them, so ``grader: {name: judge, ...}`` gives figures to compare. ``any_found``, the default, needs no endpoint and
    is strict: the reference must stand in the answer word for word.

    Attributes:
        question_types: those to keep, of ``QUESTION_TYPES``; none named: all.
        abstention: keep the questions that the sessions do not answer too; the reference then says why they do not,
            so only a judge can grade them.

    The metadata of an example: ``item``, its ``question_id``; ``question``, ``question_type``, ``abstention``,
    ``num_sessions``; ``spans`` (character offsets in the prompt) and ``depths`` of the turns that have the evidence,
    or of the sessions, where the file marks only these.
    """

    name: ClassVar[str] = "longmemeval"

    question_types: tuple[str, ...] = ()
    abstention: bool = False
    grader: Grader = field(default=parse_grader("any_found"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        types = check_names(f"{owner}.question_types", self.question_types, QUESTION_TYPES)
        object.__setattr__(self, "question_types", types)
        check_switch(f"{owner}.abstention", self.abstention)

    def entries(self, values: Mapping[str, object], number: int) -> Iterator[Entry | LeftOut]:
        del number
        name = as_words("question_id", need(values, "question_id"))
        kind = as_full_text("question_type", need(values, "question_type"))
        question = as_full_text("question", need(values, "question"))
        answer = as_words("answer", need(values, "answer"))
        sessions = _sessions(values)
        abstention = name.endswith(ABSTENTION)
        if abstention and not self.abstention:
            yield LeftOut("abstention (the sessions do not answer it)")
        elif self.question_types and kind not in self.question_types:
            yield LeftOut(f"question_type {kind!r}")
        else:
            facts = {"question": question, "question_type": kind, "abstention": abstention}
            yield Entry(name, lambda: self._write(values, sessions, question, answer, facts))

    def _write(
        self,
        values: Mapping[str, object],
        sessions: list[Session],
        question: str,
        answer: str,
        facts: Mapping[str, object],
    ) -> Content:
        page = Page()
        page.write(f"Here are {len(sessions)} sessions of a user with an assistant, the oldest first.\n")
        answering = {str(one) for one in as_list("answer_session_ids", values.get("answer_session_ids", []), "ids")}
        marked = any(_has_answer(turn) for session in sessions for turn in session.turns)
        for number, session in enumerate(sessions, start=1):
            page.write("\n")
            with within(f"session {session.id or number}"):
                text = Page()
                _write_session(text, session)
            whole = not marked and session.id in answering
            page.include(text, evidence=whole)
        date = f" It is {as_text('question_date', values['question_date'])}." if has(values, "question_date") else ""
        unknown = " If the sessions do not tell, say so." if self.abstention else ""
        page.write(f"\nThe sessions end here.{date} Answer the user from them, in a few words.{unknown}\n{question}")
        return Content(
            prompt=page.text,
            answer=answer,
            references=(answer,),
            spans=tuple(page.spans),
            facts={**facts, "num_sessions": len(sessions)},
        )


def check_switch(name: str, value: object) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise UserError(f"{name}: expected true or false, got {value!r}. Write it without quotes.")


def _sessions(values: Mapping[str, object]) -> list[Session]:
    """The sessions of a question, the oldest first."""
    turns = as_list("haystack_sessions", need(values, "haystack_sessions"), "sessions")
    dates = as_list("haystack_dates", need(values, "haystack_dates"), "dates")
    ids = as_list("haystack_session_ids", values.get("haystack_session_ids") or [""] * len(turns), "ids")
    for name, items in (("haystack_dates", dates), ("haystack_session_ids", ids)):
        if len(items) != len(turns):
            raise UserError(f"{name}: expected one for each of {len(turns)} sessions, got {len(items)}. Mend the file.")
    sessions = []
    for place, (one, date, session_id) in enumerate(zip(turns, dates, ids, strict=True)):
        content = tuple(as_list(f"haystack_sessions[{place}]", one, "turns"))
        sessions.append(Session(str(session_id), as_text(f"haystack_dates[{place}]", date), content))
    return sorted(sessions, key=lambda session: session.date)


def _write_session(page: Page, session: Session) -> None:
    page.write(f"Session of {session.date}\n")
    for place, turn in enumerate(session.turns):
        with within(f"turn {place + 1}"):
            said = as_object("this turn", turn)
            role, content = as_full_text("role", need(said, "role")), as_text("content", need(said, "content"))
        page.write(f"{role}: {content.strip()}", evidence=_has_answer(turn))
        page.write("\n")


def _has_answer(turn: object) -> bool:
    return isinstance(turn, Mapping) and turn.get("has_answer") is True

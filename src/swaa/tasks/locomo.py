"""LoCoMo (Maharana et al., arXiv 2402.17753): questions about the conversations of two friends over months.

Reads the published ``locomo10.json``; the wording of the prompt is our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from swaa.errors import UserError, invalid
from swaa.graders import Grader, parse_grader
from swaa.reading import check_items, within
from swaa.tasks.fields import as_full_text, as_list, as_object, as_text, as_words, has, need, refused
from swaa.tasks.filetask import Content, Entry, FileTask, LeftOut, Page
from swaa.tasks.registry import register_task

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
ADVERSARIAL = 5
UNANSWERED = "Not mentioned in the conversation"

_SESSION = re.compile(r"session_(\d+)")
_EVIDENCE = re.compile(r"D(\d+):0*(\d+)")  # the file has D8:6; D9:17 in one string, and D30:05


@register_task
@dataclass(frozen=True)
class LoCoMo(FileTask):
    """LoCoMo: a question about what two friends told each other over many sessions.

    Graded by ``token_f1``, as LoCoMo does in the main; its rule for several sub-answers in one is not kept.

    Attributes:
        categories: those to keep: 1 multi-hop, 2 temporal, 3 open-domain, 4 single-hop, 5 adversarial. The last one
            asks what was never said; the paper leaves it out, and so does the default. With it every question allows
            the reply "Not mentioned in the conversation", which is then its reference.

    The metadata of an example: ``item``, its conversation and number; ``question``, ``question_type``, ``category``,
    ``num_sessions``; ``spans`` (character offsets in the prompt) and ``depths`` of the turns that have the evidence.
    """

    name: ClassVar[str] = "locomo"

    categories: tuple[int, ...] = (1, 2, 3, 4)
    grader: Grader = field(default=parse_grader("token_f1"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"{type(self).__name__}.categories"
        mend = "Write categories: [1, 2, 3, 4]."
        for item in check_items(where, self.categories, of="category", mend=mend):
            if isinstance(item, bool) or item not in CATEGORIES:
                raise invalid(where, accepted="numbers from 1 to 5", got=item, mend=mend)
        object.__setattr__(self, "categories", tuple(self.categories))

    def entries(self, values: Mapping[str, object], number: int) -> Iterator[Entry | LeftOut]:
        talk = as_object("conversation", need(values, "conversation"))
        stem = as_words("sample_id", values["sample_id"]) if has(values, "sample_id") else str(number)
        sessions = _sessions(talk)
        for place, one in enumerate(as_list("qa", need(values, "qa"), "questions")):
            with within(f"qa[{place}]"):
                asked = as_object("this question", one)
                category = need(asked, "category")
                if isinstance(category, bool) or category not in CATEGORIES:
                    raise refused("category", "a number from 1 to 5", category, "Mend the file.")
                assert isinstance(category, int)
                kind = CATEGORIES[category]
                if category not in self.categories:
                    yield LeftOut(f"category {category} ({kind})")
                    continue
                yield self._entry(f"{stem}-{place + 1}", talk, sessions, asked, category)

    def _entry(
        self, name: str, talk: Mapping[str, object], sessions: Sequence[int], asked: Mapping[str, object], category: int
    ) -> Entry:
        question = as_full_text("question", need(asked, "question"))
        answer = UNANSWERED if category == ADVERSARIAL else as_words("answer", need(asked, "answer"))
        if category == 3:  # what follows a semicolon is the reason, which LoCoMo does not grade
            answer = answer.partition(";")[0].strip() or answer
        evidence = as_list("evidence", asked.get("evidence") or [], "turns")
        wanted = {f"D{session}:{turn}" for item in evidence for session, turn in _EVIDENCE.findall(str(item))}
        facts: dict[str, object] = {
            "question": question,
            "question_type": CATEGORIES[category],
            "category": category,
            "num_sessions": len(sessions),
        }

        def write() -> Content:
            page = Page()
            _write_talk(page, talk, sessions, wanted)
            date = " Give an approximate date, worked out from those of the sessions." if category == 2 else ""
            unknown = f' If it was never said, reply "{UNANSWERED}".' if ADVERSARIAL in self.categories else ""
            page.write(f"\nAnswer this question about the sessions, in a few words.{date}{unknown}\n{question}")
            return Content(page.text, answer, (answer,), spans=tuple(page.spans), facts=facts)

        return Entry(name, write)


def _sessions(talk: Mapping[str, object]) -> list[int]:
    """The numbers of the sessions that there are, in order; some files date sessions that they do not have."""
    numbers = (match[1] for match in map(_SESSION.fullmatch, talk) if match)
    found = sorted(int(number) for number in numbers if has(talk, f"session_{number}"))
    if not found:
        raise UserError("conversation: expected sessions (session_1, session_2, ...), got none. Is it LoCoMo's file?")
    for number in found:
        as_list(f"conversation.session_{number}", talk[f"session_{number}"], "turns")
    return found


def _write_talk(page: Page, talk: Mapping[str, object], sessions: Sequence[int], wanted: set[str]) -> None:
    """The whole conversation, its evidence noted."""
    names = [as_text(name, talk[name]) for name in ("speaker_a", "speaker_b") if has(talk, name)]
    page.write(f"Here are {len(sessions)} sessions of a conversation of {' and '.join(names) or 'two friends'}.\n")
    for number in sessions:
        page.write(f"\nSession {number}")
        date = f"session_{number}_date_time"
        page.write(f", {as_text(date, talk[date])}\n" if has(talk, date) else "\n")
        turns = as_list(f"session_{number}", talk[f"session_{number}"], "turns")
        for place, turn in enumerate(turns, start=1):
            with within(f"conversation.session_{number}: turn {place}"):
                said = as_object("this turn", turn)
                line = f"{as_full_text('speaker', need(said, 'speaker'))}: {as_text('text', need(said, 'text'))}"
                if has(said, "blip_caption"):
                    line += f" [a picture: {as_text('blip_caption', said['blip_caption'])}]"
            own = _EVIDENCE.fullmatch(str(said.get("dia_id")))
            page.write(line, evidence=own is not None and f"D{own[1]}:{own[2]}" in wanted)
            page.write("\n")

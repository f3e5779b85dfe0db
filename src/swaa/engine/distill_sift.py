"""From answers to training data: which are kept, and why the others are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swaa.config import Distillation
from swaa.engine.distill_answers import Answer, PromptAnswers
from swaa.tasks.conversations import Conversation, Turn


@dataclass(frozen=True)
class Counts:
    """What became of the answers: every one is in exactly one of the fields after ``correct``.

    Attributes:
        prompts: that were asked.
        empty: of these, those that no answer was kept of.
        answers: to them.
        correct: of these, those that the grader calls right and that ended by themselves.
        kept: conversations.
        cut: left out because ``max_new_tokens`` cut them.
        blank: left out because they say nothing.
        control: left out because they spell a special token, which would begin or end a turn when trained on.
        wrong: left out because the grader found something missing (``keep: correct``).
        duplicate: left out because the same answer to the same prompt is kept.
        surplus: left out because ``keep_per_prompt`` shorter ones are kept.
    """

    prompts: int = 0
    empty: int = 0
    answers: int = 0
    correct: int = 0
    kept: int = 0
    cut: int = 0
    blank: int = 0
    control: int = 0
    wrong: int = 0
    duplicate: int = 0
    surplus: int = 0

    def __add__(self, other: Counts) -> Counts:
        names = [item.name for item in dataclasses.fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many answers were left out, by reason in words; only those reasons that occur."""
        reasons = {
            "cut at max_new_tokens": self.cut,
            "blank": self.blank,
            "with control tokens": self.control,
            "wrong": self.wrong,
            "duplicates": self.duplicate,
            "beyond keep_per_prompt": self.surplus,
        }
        return {reason: count for reason, count in reasons.items() if count}


@dataclass(frozen=True)
class Sifted:
    """The data, and the counts of every task and length.

    Attributes:
        conversations: in the order of the prompts, and of the draws.
        cells: counts by the task's label and the length.
    """

    conversations: tuple[Conversation, ...]
    cells: Mapping[tuple[str, int], Counts]

    @property
    def counts(self) -> Counts:
        """Of everything."""
        return sum(self.cells.values(), start=Counts())


def sift(records: Iterable[PromptAnswers], config: Distillation) -> Sifted:
    """Choose among the answers; pure, and the same for the same records in the same order.

    No answer enters twice that says the same, to the letter, to the same prompt, be it of one example or of two.
    """
    conversations: list[Conversation] = []
    cells: dict[tuple[str, int], Counts] = {}
    seen: set[tuple[str, str, str]] = set()
    for record in records:
        fates = _fates(record, config, seen)
        kept = [index for index, fate in enumerate(fates) if fate == "kept"]
        conversations += [_conversation(record, index) for index in kept]
        tally = Counts(
            prompts=1,
            empty=int(not kept),
            answers=len(fates),
            correct=sum(answer.correct and answer.ending != "cut" for answer in record.answers),
            **{fate: fates.count(fate) for fate in set(fates)},
        )
        cell = (record.task, record.length)
        cells[cell] = cells.get(cell, Counts()) + tally
    return Sifted(tuple(conversations), cells)


def _fates(record: PromptAnswers, config: Distillation, seen: set[tuple[str, str, str]]) -> list[str]:
    """For every answer, the field of :class:`Counts` that it falls under; what is kept is added to ``seen``."""
    fates = [_flaw(answer, config.keep) for answer in record.answers]
    kept = 0
    for index in sorted(range(len(fates)), key=lambda index: (record.answers[index].tokens, index)):
        if fates[index]:
            continue
        said = (record.prompt, record.answer_prefix, record.answers[index].reply)
        if said in seen:
            fates[index] = "duplicate"
        elif kept == config.keep_per_prompt:
            fates[index] = "surplus"
        else:
            seen.add(said)
            fates[index] = "kept"
            kept += 1
    return fates


def _flaw(answer: Answer, keep: str) -> str:
    """Why an answer cannot be kept, looked at alone; empty if it can."""
    if answer.ending == "cut":
        return "cut"
    if not answer.reply.strip():
        return "blank"
    if answer.control:
        return "control"
    return "wrong" if keep == "correct" and not answer.correct else ""


def _conversation(record: PromptAnswers, index: int) -> Conversation:
    answer = record.answers[index]
    return Conversation(
        id=f"{record.example}#{index}",
        turns=(Turn("user", record.prompt), Turn("assistant", record.answer_prefix + answer.reply)),
        answer_prefix=record.answer_prefix,
        metadata={
            "task": record.task,
            "length": record.length,
            "example": record.example,
            "seed": record.seed,
            "sample": index,
            "grade": answer.score,
            "correct": answer.correct,
            "reference": record.reference,
            "tokens": answer.tokens,
        },
    )

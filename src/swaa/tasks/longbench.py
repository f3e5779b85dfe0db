"""LongBench v2 (Bai et al., arXiv 2412.15204): hard questions about long texts, four choices each.

Reads the published file (``data.json``, or its rows as JSON lines or Parquet); the wording of the prompt is our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from swaa.graders import Grader, parse_grader
from swaa.reading import check_choice
from swaa.tasks.fields import as_full_text, as_words, has, need
from swaa.tasks.filetask import Content, Entry, FileTask, LeftOut, check_names
from swaa.tasks.registry import register_task

LETTERS = ("A", "B", "C", "D")
DIFFICULTIES = ("easy", "hard")
LENGTHS = ("short", "medium", "long")


@register_task
@dataclass(frozen=True)
class LongBenchV2(FileTask):
    """LongBench v2: a question about a long text, and four choices of which one is right.

    Attributes:
        domains: those to keep, as the file names them (the SWAA paper keeps ``Single-Document QA`` and
            ``Multi-Document QA``); none named: all.
        difficulties: those to keep, of ``easy`` and ``hard``; none named: both.
        length_classes: the file's own classes to keep, of ``short``, ``medium`` and ``long``; none named: all.

    The metadata of an example: ``item``, its ``_id``; ``question``; ``question_type``, its domain; ``sub_domain``,
    ``difficulty`` and ``length_class``.
    """

    name: ClassVar[str] = "longbench_v2"

    domains: tuple[str, ...] = ()
    difficulties: tuple[str, ...] = ()
    length_classes: tuple[str, ...] = ()
    grader: Grader = field(default=parse_grader("choice"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {"domains": None, "difficulties": DIFFICULTIES, "length_classes": LENGTHS}
        for name, options in known.items():
            kept = check_names(f"{type(self).__name__}.{name}", getattr(self, name), options)
            object.__setattr__(self, name, kept)

    def entries(self, values: Mapping[str, object], number: int) -> Iterator[Entry | LeftOut]:
        texts = {name: as_full_text(name, need(values, name)) for name in ("context", "question")}
        choices = [as_words(f"choice_{letter}", need(values, f"choice_{letter}")) for letter in LETTERS]
        answer = check_choice("answer", need(values, "answer"), LETTERS)
        name = as_words("_id", values["_id"]) if has(values, "_id") else str(number)
        sorts = {"domains": "domain", "difficulties": "difficulty", "length_classes": "length"}
        for knob, label in sorts.items():
            kept = getattr(self, knob)
            if kept and need(values, label) not in kept:
                yield LeftOut(f"{label} {values[label]!r}")
                return
        facts = {
            "question": texts["question"],
            "question_type": values.get("domain"),
            "sub_domain": values.get("sub_domain"),
            "difficulty": values.get("difficulty"),
            "length_class": values.get("length"),
        }
        told = {key: as_words(key, value) for key, value in facts.items() if value is not None}

        def write() -> Content:
            listed = "\n".join(f"({letter}) {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=True))
            prompt = (
                f"Read this text, then choose the answer to a question about it.\n\n{texts['context'].strip()}\n\n"
                f"The text ends here. {texts['question'].strip()}\n{listed}\n\n"
                f"One of these is right. Reply with its letter."
            )
            return Content(prompt, f" {answer}", (answer,), "The correct answer is", facts=told)

        yield Entry(name, write)

"""Graders that look for the references in the answer, as whole words and numbers; :mod:`.normal` has the rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from swaa.graders.base import Grade, Grader, Question
from swaa.graders.normal import bare, holds
from swaa.graders.registry import register_grader


@register_grader
@dataclass(frozen=True)
class Recall(Grader):
    """The share of the references that stand in the text (as RULER scores retrieval, arXiv 2404.06654)."""

    name: ClassVar[str] = "recall"

    def grade(self, text: str, question: Question) -> Grade:
        """The number of references found, divided by the number of references."""
        found, missing = split(question.references, [holds(text, item) for item in question.references])
        return Grade(len(found) / len(question.references), found, missing)


@register_grader
@dataclass(frozen=True)
class AllFound(Grader):
    """1 if every reference stands in the text, else 0 (as the SWAA paper scores it, arXiv 2512.10411)."""

    name: ClassVar[str] = "all_found"

    def grade(self, text: str, question: Question) -> Grade:
        """1 or 0."""
        found, missing = split(question.references, [holds(text, item) for item in question.references])
        return Grade(float(not missing), found, missing)


@register_grader
@dataclass(frozen=True)
class AnyFound(Grader):
    """1 if some reference stands in the text, else 0: the references are spellings of one answer."""

    name: ClassVar[str] = "any_found"

    def grade(self, text: str, question: Question) -> Grade:
        """1 or 0."""
        found, missing = split(question.references, [holds(text, item) for item in question.references])
        return Grade(float(bool(found)), found, missing)


@register_grader
@dataclass(frozen=True)
class Exact(Grader):
    """1 if the text is one of the references, up to quotes and punctuation at its ends, else 0."""

    name: ClassVar[str] = "exact"

    def grade(self, text: str, question: Question) -> Grade:
        """1 or 0."""
        plain = bare(text)
        found, missing = split(question.references, [bare(item) == plain for item in question.references])
        return Grade(float(bool(found)), found, missing)


def split(references: tuple[str, ...], found: list[bool]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The references that were found, and the others."""
    return (
        tuple(item for item, here in zip(references, found, strict=True) if here),
        tuple(item for item, here in zip(references, found, strict=True) if not here),
    )

"""F1 of the answer's words and a reference's, as SQuAD scores answers (arXiv 1606.05250), and LoCoMo after it."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from swaa.graders.base import Grade, Grader, Question
from swaa.graders.normal import normalise
from swaa.graders.registry import register_grader
from swaa.graders.strings import split

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@register_grader
@dataclass(frozen=True)
class TokenF1(Grader):
    """The best F1 over the references, so they are spellings of one answer.

    With ``n`` words that the answer and a reference share, each counted as often as it stands in both,
    ``F1 = 2 n / (words of the answer + words of the reference)``. A reference is found where F1 is 1.
    """

    name: ClassVar[str] = "token_f1"

    def grade(self, text: str, question: Question) -> Grade:
        """From 0 to 1."""
        said = words(text)
        scores = [_f1(said, words(reference)) for reference in question.references]
        found, missing = split(question.references, [score == 1 for score in scores])
        return Grade(max(scores), found, missing)


def words(text: str) -> list[str]:
    """The words that count: normalised, without punctuation (which joins: ``don't`` is ``dont``), articles left out.

    Beyond SQuAD's rules, full-width forms are made plain and the punctuation of all scripts is removed.
    """
    plain = "".join(character for character in normalise(text) if not _is_punctuation(character))
    return _ARTICLES.sub(" ", plain).split()


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:  # SQuAD: nothing is right where nothing is wanted
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted))


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")

"""Graders of generated answers: ``(text, references) -> Grade``. Small, pure, of strings only.

**Normalisation**, of text and references alike: Unicode NFKC (full-width digits become digits), case folded,
every run of white space one space, none at the ends.

**Finding.** A reference is found where it stands as whole words and numbers: ``12345`` is not in ``9123456``,
``42`` not in ``42.5`` and ``cat`` not in ``category``. Letters of scripts without case (Chinese, Thai) write
no spaces between words, so they bound nothing. A text's numbers count with and without the commas of their
thousands: ``1,234,567`` holds ``1234567``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swaa.errors import UserError, invalid, unknown

_WHITESPACE = re.compile(r"\s+")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]|\.\d)")
_MARKS_AT_THE_ENDS = " \t\n.!?;:,\"'`*"


@dataclass(frozen=True)
class Grade:
    """What a grader says of one answer.

    Attributes:
        score: from 0 (wrong) to 1 (right).
        found: the references that stand in the text, as given.
        missing: the others.
    """

    score: float
    found: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def all_correct(self) -> bool:
        """Whether the answer got everything."""
        return self.score == 1.0


Grader = Callable[[str, Sequence[str]], Grade]
"""``(text, references) -> Grade``; references are at least one, none blank."""

_graders: dict[str, Grader] = {}


def register_grader(name: str) -> Callable[[Grader], Grader]:
    """Function decorator: make a grader known by ``name``.

    Raises:
        UserError: another grader has the name.
    """

    def register(grader: Grader) -> Grader:
        if name in _graders:
            raise UserError(f"grader name {name!r} is taken. Rename one of the graders.")
        _graders[name] = grader
        return grader

    return register


def get_grader(name: str) -> Grader:
    """The grader of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in _graders:
        raise unknown("grader", name, _graders)
    return _graders[name]


def grader_names() -> tuple[str, ...]:
    """All known names, sorted."""
    return tuple(sorted(_graders))


def grade(name: str, text: str, references: Sequence[str]) -> Grade:
    """The grade of ``text`` by the grader of that name.

    Raises:
        UserError: there is no such grader, or the references are none or hold a blank one.
    """
    if isinstance(references, str) or not references or not all(normalise(item) for item in references):
        mend = "An empty reference stands in every text and grades nothing."
        raise invalid("references", accepted="a list of non-blank strings", got=references, mend=mend)
    return get_grader(name)(text, references)


@register_grader("recall")
def recall(text: str, references: Sequence[str]) -> Grade:
    """The share of the references that stand in the text (as RULER scores retrieval, arXiv 2404.06654)."""
    found, missing = _split(text, references)
    return Grade(len(found) / len(references), found, missing)


@register_grader("all_found")
def all_found(text: str, references: Sequence[str]) -> Grade:
    """1 if every reference stands in the text, else 0 (as the SWAA paper scores it, arXiv 2512.10411)."""
    found, missing = _split(text, references)
    return Grade(float(not missing), found, missing)


@register_grader("any_found")
def any_found(text: str, references: Sequence[str]) -> Grade:
    """1 if some reference stands in the text, else 0: the references are spellings of one answer."""
    found, missing = _split(text, references)
    return Grade(float(bool(found)), found, missing)


@register_grader("exact")
def exact(text: str, references: Sequence[str]) -> Grade:
    """1 if the text is one of the references, up to quotes and punctuation at its ends, else 0."""
    bare = _bare(text)
    found = tuple(item for item in references if _bare(item) == bare)
    return Grade(float(bool(found)), found, tuple(item for item in references if item not in found))


def normalise(text: str) -> str:
    """``text`` as graders compare it; see the head of this module."""
    return _WHITESPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def holds(text: str, reference: str) -> bool:
    """Whether ``reference`` stands in ``text`` as whole words and numbers; both are normalised here."""
    haystack, needle = normalise(text), normalise(reference)
    plain = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), haystack)
    return _stands_in(haystack, needle) or _stands_in(plain, needle)


def _split(text: str, references: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The references that stand in ``text``, and the others."""
    found = [holds(text, item) for item in references]
    return (
        tuple(item for item, here in zip(references, found, strict=True) if here),
        tuple(item for item, here in zip(references, found, strict=True) if not here),
    )


def _stands_in(text: str, word: str) -> bool:
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not _continues(text[max(start - 2, 0) : start][::-1], word[0]) and not _continues(
            text[end : end + 2], word[-1]
        ):
            return True
        start = text.find(word, start + 1)
    return False


def _continues(outside: str, edge: str) -> bool:
    """Whether a word goes on past its ``edge``, in the (up to two) characters there, nearest first."""
    if not outside or not _is_word(edge):
        return False
    if edge.isdigit() and outside[0] == "." and outside[1:].isdigit():
        return True  # a decimal point
    return _is_word(outside[0])


def _is_word(character: str) -> bool:
    return character.isdigit() or character == "_" or character.upper() != character.lower()


def _bare(text: str) -> str:
    normal = normalise(text)
    return normal.strip(_MARKS_AT_THE_ENDS) or normal

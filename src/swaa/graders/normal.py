"""How texts and references are compared.

**Normalisation**, of text and references alike: Unicode NFKC (full-width digits become digits), typographic quotes
and the minus sign as on a keyboard, case folded, every run of white space one space, none at the ends.

**Finding.** A reference is found where it stands as whole words and numbers: ``12345`` is not in ``9123456``,
``42`` not in ``42.5`` and ``cat`` not in ``category``. Letters of scripts without case (Chinese, Thai) write
no spaces between words, so they bound nothing.

**Commas of thousands** do not matter: ``1,234,567`` and ``1234567`` are one number, ``12,345`` holds neither ``12`` nor
``345``. Such a number is one to three digits and then groups of a comma and exactly three; anything else is a list
(``12, 345``, ``12345,678``), as ``100,200`` is not.

**A minus** is part of a number where a word begins: ``-42`` does not hold ``42``. After a letter, a digit, a closing
bracket or another hyphen, it is a hyphen: ``10-42`` and ``A-42`` hold ``42``, not ``-42``.
"""

from __future__ import annotations

import re
import unicodedata

_WHITESPACE = re.compile(r"\s+")
_THOUSANDS = re.compile(r"(?<!\d)(?<!\d[.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_KEYBOARD = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'") | dict.fromkeys("\u201c\u201d\u201e", '"') | {"\u2212": "-"}
)
"""Quotes, the apostrophe and the minus sign as typographers and as typists write them."""
_MARKS_AT_THE_ENDS = " \t\n.!?;:,\"'`*"


def normalise(text: str) -> str:
    """``text`` as graders compare it; see the head of this module."""
    return _WHITESPACE.sub(" ", keyboard(text).casefold()).strip()


def keyboard(text: str) -> str:
    """``text`` in NFKC, its quotes and minus signs as on a keyboard."""
    return unicodedata.normalize("NFKC", text).translate(_KEYBOARD)


def holds(text: str, reference: str) -> bool:
    """Whether ``reference`` stands in ``text`` as whole words and numbers; both are normalised here."""
    return _stands_in(_without_thousands(normalise(text)), _without_thousands(normalise(reference)))


def bare(text: str) -> str:
    """``text`` normalised, without quotes and punctuation at its ends, unless it is nothing else."""
    normal = normalise(text)
    return normal.strip(_MARKS_AT_THE_ENDS) or normal


def _without_thousands(text: str) -> str:
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)


def _stands_in(text: str, word: str) -> bool:
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not _begins_within(text, start) and not _continues(text[end : end + 2], word[-1:]):
            return True
        start = text.find(word, start + 1)
    return False


def _begins_within(text: str, start: int) -> bool:
    """Whether what begins at ``start`` is the rest of a word or a number."""
    edge, before = text[start : start + 1], text[max(start - 2, 0) : start][::-1]
    if edge == "-" and text[start + 1 : start + 2].isdigit():
        return _joins(before[:1])  # a hyphen, and the number after it has no sign
    is_signed = edge.isdigit() and before[:1] == "-" and not _joins(before[1:])
    return is_signed or _continues(before, edge)


def _joins(before: str) -> bool:
    """Whether a hyphen after this character is no minus."""
    return before != "" and (_is_word(before) or before in ")]-")


def _continues(outside: str, edge: str) -> bool:
    """Whether a word goes on past its ``edge``, in the (up to two) characters there, nearest first."""
    if not outside or not edge or not _is_word(edge):
        return False
    if edge.isdigit() and outside[0] == "." and outside[1:].isdigit():
        return True  # a decimal point
    return _is_word(outside[0])


def _is_word(character: str) -> bool:
    return character.isdigit() or character == "_" or character.upper() != character.lower()

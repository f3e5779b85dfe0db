"""How texts and references are compared.

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

_WHITESPACE = re.compile(r"\s+")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]|\.\d)")
_MARKS_AT_THE_ENDS = " \t\n.!?;:,\"'`*"


def normalise(text: str) -> str:
    """``text`` as graders compare it; see the head of this module."""
    return _WHITESPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def holds(text: str, reference: str) -> bool:
    """Whether ``reference`` stands in ``text`` as whole words and numbers; both are normalised here."""
    haystack, needle = normalise(text), normalise(reference)
    plain = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), haystack)
    return _stands_in(haystack, needle) or _stands_in(plain, needle)


def bare(text: str) -> str:
    """``text`` normalised, without quotes and punctuation at its ends, unless it is nothing else."""
    normal = normalise(text)
    return normal.strip(_MARKS_AT_THE_ENDS) or normal


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

"""Reading the letter of a multiple-choice answer out of free text.

Full-width forms and typographic quotes are read as those of a keyboard. A letter counts where it stands as a word of
its own. These rules are tried in order; the first that finds one decides:

1. the whole answer is the letter: ``B.``, ``(b)``, ``**B**``, ``\\boxed{B}``;
2. announced: ``The correct answer is (B)``, ``answer: b``, ``Correct: B``, ``the best option is clearly B``,
   ``<answer>B</answer>``, ``my answer is not A but B``; the last such place;
3. a line that is the letter alone; the last such line;
4. at the beginning: ``B) Paris``, ``B. Paris``, ``B is right``, ``B, because …``; not if another line begins so with
   another letter, which is a list of the options;
5. picked: ``I choose B``, ``option B``, ``it is B``; the last such place;
6. the only letter that is said to be right: ``A) is wrong; B) is right``;
7. the only letter in brackets or in bold: ``so it must be (B)``.

A letter that ``is wrong``, ``is incorrect``, ``is not …`` does not count; nor, in rules 2, 5, 6 and 7, one after
``not``, ``never``, ``if``, ``whether`` or ``doubt`` in the same clause: ``I don't think the answer is B``, ``if B is
right``.

**The article is no letter.** In rules 2 and 5, a lower-case letter counts only in marks (``(a)``), or where its
sentence ends or goes on as after no article (``answer: a``, ``the answer is a because``). An upper-case ``A`` that
begins a sentence does not count before another word (``Answer: A dog``); nor does ``I`` anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from swaa.errors import invalid
from swaa.graders.base import Grade, Grader, Question
from swaa.graders.normal import keyboard
from swaa.graders.registry import register_grader
from swaa.graders.strings import split

NONE = "none"
"""The verdict on an answer that names no letter."""

_OPEN, _CLOSE = r"[(\[{*_\"'`$]*", r"[)\]}*_\"'`$]*+"
_GOES_ON = re.compile(r"\s+(?:is|was|seems|because|since|as|for|but|so|which|that)\b")
_ENDS = re.compile(r"\s*(?:[.,;:!?)<]|\n|$)")
_NEXT_WORD = re.compile(r"\s+\w")
_ADVERB = (
    r"(?:(?!hardly|barely|scarcely|rarely|unlikely)\w+ly|also|most|thus|then|therefore|indeed|still|of\s+course)\b"
)
_SURE = r"(?:is|was|seems|looks|must\s+be)\s+(?:(?:the|my|\w+ly|most)\s+)*(?:right|correct|best|true|answer)\b"
_REJECTED = rf"\s+(?:(?:is|was|seems|looks)\s+(?:{_ADVERB}\s+)*(?:not|wrong|incorrect|false|ruled\s+out|eliminated)\b"
_REJECTED += r"|(?:isn't|wasn't|cannot|can't)\b)"
_SUBJECT = r"(?<![/\w])(?:final_)?(?:(?:answer|choice|solution)\b|(?<!is )(?<!was )(?<!be )(?<!not )correct\b"
_SUBJECT += r"|(?:correct|right|best|final|chosen|likely|suitable|appropriate)\s+option\b)"
_ANNOUNCED = rf"{_SUBJECT}[\s*_\"'`]*(?:(?:is|was|(?:would|should|must)\s+be)\b|[:=>])(?:[\s,:*_]*{_ADVERB})*[\s,:*_]*+"
_ANNOUNCED += r"(?:(?:the\s+)?(?:option|letter|choice)\s+)?"
_PICKED = r"(?:\b(?:answer|option|choice|letter|choose|chose|pick|select|go\s+with)\s+"
_PICKED += rf"|\b(?:(?:it|that|this)\s+(?:is|must\s+be|should\s+be)|it's|that's)\s+(?:{_ADVERB}\s+)*)"
_CLAUSE_BEGINS = "so|but|and|then|hence|thus|therefore|because|since|as|rather|instead|however|yet"
_DENIED = re.compile(
    rf"(?:\b(?:not|never|cannot|if|whether|unless|doubt|unlikely)|n't)(?:\s+(?!(?:{_CLAUSE_BEGINS})\b)[\w']+){{0,6}}\s*$",
    re.IGNORECASE,
)
_CLAUSE = 100
"""Characters before a letter in which its clause begins."""


@register_grader
@dataclass(frozen=True)
class Choice(Grader):
    """1 if the letter that the answer names is a reference, else 0; the head of this module has the rules.

    The verdict is the letter in upper case, or ``none``: an answer that names no letter is wrong.

    Attributes:
        letters: the letters or digits of the options, each one character; references are among them, ``(B)`` too.
    """

    name: ClassVar[str] = "choice"
    letters: tuple[str, ...] = ("A", "B", "C", "D")

    def __post_init__(self) -> None:
        given = self.letters
        fits = isinstance(given, list | tuple) and all(isinstance(one, str) and _is_letter(one) for one in given)
        letters = tuple(one.upper() for one in given) if fits else ()
        if len(letters) < 2 or len(set(letters)) < len(letters):
            accepted = "a list of at least two different letters or digits"
            raise invalid("Choice.letters", accepted=accepted, got=given, mend="Write letters: [A, B, C, D].")
        object.__setattr__(self, "letters", letters)

    def grade(self, text: str, question: Question) -> Grade:
        """1 or 0.

        Raises:
            UserError: a reference is none of the letters.
        """
        letter = find_letter(text, self.letters)
        right = [self._letter_of(reference) == letter for reference in question.references]
        found, missing = split(question.references, right)
        return Grade(float(bool(found)), found, missing, verdict=letter or NONE)

    def _letter_of(self, reference: str) -> str:
        match = _rules(self.letters).whole.fullmatch(reference)
        if match is None:
            accepted = f"one of the letters {', '.join(self.letters)}"
            mend = "Give the letter of the right option as the reference, or set the grader's letters."
            raise invalid("references", accepted=accepted, got=reference, mend=mend)
        return match["letter"].upper()


def find_letter(text: str, letters: tuple[str, ...]) -> str | None:
    """The one of ``letters`` (upper case) that an answer names, by the rules at the head of this module, or None."""
    text, rules = keyboard(text), _rules(letters)
    whole = rules.whole.fullmatch(text)
    return (
        (whole["letter"].upper() if whole else None)
        or _last(rules.announced, text)
        or _last(rules.alone, text)
        or _at_the_beginning(rules, text)
        or _last(rules.picked, text)
        or _only(rules.declared, text)
        or _only(rules.marked, text)
    )


@dataclass(frozen=True)
class _Rules:
    """A pattern for each rule; each catches the letter in the group ``letter``."""

    whole: re.Pattern[str]
    announced: re.Pattern[str]
    alone: re.Pattern[str]
    label: re.Pattern[str]
    sure: re.Pattern[str]
    picked: re.Pattern[str]
    declared: re.Pattern[str]
    marked: re.Pattern[str]


@lru_cache(maxsize=64)
def _rules(letters: tuple[str, ...]) -> _Rules:
    each = f"[{''.join(letters)}{''.join(letters).lower()}]"
    one = f"(?P<letter>{each})"
    marked = rf"(?P<open>(?:\$*\\boxed)?{_OPEN}){one}(?P<close>{_CLOSE})"
    word = rf"{marked}(?![\w'-])(?!\.\d)(?!{_REJECTED})"
    other = rf"(?:not\s+{_OPEN}{each}{_CLOSE},?\s+but\s+(?:rather\s+)?)?"
    return _Rules(
        whole=re.compile(rf"\s*{marked}[.,:;!]*{_CLOSE}\s*"),
        announced=re.compile(f"(?i:{_ANNOUNCED}{other}){word}"),
        alone=re.compile(rf"^[ \t]*{marked}[.!]?{_CLOSE}[ \t]*$", re.MULTILINE),
        label=re.compile(rf"^[ \t]*{_OPEN}{one}(?:[)\].:*_]+|[ \t]+[-–—])(?=\s|$)(?!{_REJECTED})", re.MULTILINE),  # noqa: RUF001
        sure=re.compile(rf"\s*{marked},?\s+(?:{_SURE}|because\b|since\b|as\b)"),
        picked=re.compile(f"(?i:{_PICKED}{other}){word}"),
        declared=re.compile(rf"(?<![\w'(\[{{*_\"`$-]){marked}\s+{_SURE}"),
        marked=re.compile(rf"(?:\((?=\w\))|\[(?=\w\])|\*\*(?=\w\*\*)){word}"),
    )


def _last(rule: re.Pattern[str], text: str) -> str | None:
    """The last letter that the rule catches, that is no article and is not denied."""
    found = [match["letter"].upper() for match in rule.finditer(text) if not (_is_article(match) or _is_denied(match))]
    return found[-1] if found else None


def _only(rule: re.Pattern[str], text: str) -> str | None:
    """The letter that the rule catches and that is not denied, if there is no other."""
    letters = {match["letter"].upper() for match in rule.finditer(text) if not _is_denied(match)}
    return letters.pop() if len(letters) == 1 else None


def _is_denied(match: re.Match[str]) -> bool:
    """Whether the clause turns round what is said in it; see the head of this module."""
    start = match.start()
    return _DENIED.search(match.string[max(start - _CLAUSE, 0) : start]) is not None


def _at_the_beginning(rules: _Rules, text: str) -> str | None:
    """The letter that the answer begins with, if it is no list of the options."""
    sure = rules.sure.match(text)
    if sure and (sure["letter"].isupper() or sure["letter"].isdigit()):
        return sure["letter"]
    starts = rules.label.match(text.lstrip())
    return _only(rules.label, text) if starts else None


def _is_article(match: re.Match[str]) -> bool:
    """Whether what looks like a letter is a word of the sentence; see the head of this module."""
    letter, text = match["letter"], match.string
    if letter.isdigit() or match["open"] or match["close"]:
        return False
    ends = _ENDS.match(text, match.end()) or _GOES_ON.match(text, match.end())
    if ends:
        return False
    if letter == "A":  # an article in upper case begins a sentence
        before = text[: match.start()] + match[0].removesuffix("A")
        begins = before.rstrip(" \t")[-1:] in {"", ".", "!", "?", ":", "\n"}
        return begins and _NEXT_WORD.match(text, match.end()) is not None
    return letter.islower() or letter == "I"


def _is_letter(value: str) -> bool:
    return len(value) == 1 and value.isascii() and value.isalnum()

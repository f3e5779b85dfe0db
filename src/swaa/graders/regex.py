"""A regular expression that the answer must match, or that catches what is compared with the references."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from swaa.errors import UserError, invalid, unknown
from swaa.graders.base import Grade, Grader, Question
from swaa.graders.normal import bare
from swaa.graders.registry import register_grader
from swaa.graders.strings import split
from swaa.reading import check_choice, check_number, check_text

if TYPE_CHECKING:
    from regex import Match, Pattern  # type: ignore[import-untyped]

FLAGS = "imsx"
"""Of ``(?imsx)``: case ignored; ^ and $ at lines; the dot is any character; spaces and comments ignored."""


@register_grader
@dataclass(frozen=True)
class Regex(Grader):
    """1 if the pattern is found in the text, else 0; with ``group``, if what the group catches is a reference.

    The pattern is of the library ``regex``, which reads those of Python's ``re`` and can stop: an answer on which it
    takes longer than ``timeout`` gets no grade and an error, as a pattern such as ``(a|aa)+$`` may take for ever.

    Attributes:
        pattern: may stand anywhere in the text; ``\\A`` and ``\\Z`` tie it to the ends.
        flags: letters of ``FLAGS``.
        group: number or name; None does not look at the references. What it catches is compared as ``exact``
            compares, and is the verdict.
        take: which match's group counts, ``first`` or ``last``.
        timeout: seconds for one answer.
    """

    name: ClassVar[str] = "regex"
    pattern: str
    flags: str = ""
    group: int | str | None = None
    take: str = "last"
    timeout: float = 1.0

    def __post_init__(self) -> None:
        check_text("Regex.pattern", self.pattern)
        if not isinstance(self.flags, str) or set(self.flags) - set(FLAGS):
            raise invalid("Regex.flags", accepted=f"letters of {FLAGS}", got=self.flags, mend="Write flags: i.")
        check_choice("Regex.take", self.take, ("first", "last"))
        timeout = check_number("Regex.timeout", self.timeout, low=0, high=3600, open_low=True)
        object.__setattr__(self, "timeout", timeout)
        compiled = _compile(self.pattern, self.flags)
        if self.group is not None:
            _check_group(self.group, compiled)

    def grade(self, text: str, question: Question) -> Grade:
        """1, 0, or none if the pattern took too long."""
        try:
            match = self._match(text)
        except TimeoutError:
            return Grade(None, error=f"the pattern {self.pattern!r} took longer than {self.timeout:g} s on this answer")
        if self.group is None:
            return Grade(float(match is not None))
        caught = match[self.group] if match else None
        right = [caught is not None and bare(caught) == bare(reference) for reference in question.references]
        found, missing = split(question.references, right)
        return Grade(float(bool(found)), found, missing, verdict=caught)

    def _match(self, text: str) -> Match[str] | None:
        compiled = _compile(self.pattern, self.flags)
        if self.take == "first" or self.group is None:
            return compiled.search(text, timeout=self.timeout)
        last = deque(compiled.finditer(text, timeout=self.timeout), maxlen=1)
        return last[0] if last else None


@lru_cache(maxsize=64)
def _compile(pattern: str, flags: str) -> Pattern[str]:
    import regex

    try:
        return regex.compile(f"(?{flags})" + pattern if flags else pattern)
    except regex.error as error:
        raise UserError(f"Regex.pattern: {pattern!r} is no regular expression: {error}. Mend it there.") from error


def _check_group(group: object, compiled: Pattern[str]) -> None:
    if isinstance(group, str):
        if group not in compiled.groupindex:
            raise UserError(f"Regex.group: {unknown('group', group, compiled.groupindex)}")
    elif isinstance(group, bool) or not isinstance(group, int) or not 0 <= group <= compiled.groups:
        accepted = f"the name of a group, or an int in [0, {compiled.groups}]"
        mend = "0 is the whole match, 1 the first (…) of the pattern."
        raise invalid("Regex.group", accepted=accepted, got=group, mend=mend)

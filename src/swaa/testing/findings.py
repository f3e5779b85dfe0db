"""What a check found: outcomes, failures, and the report that prints them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

OK, FAILED, WARNING, SKIPPED = "ok", "FAILED", "warning", "skipped"


@dataclass(frozen=True)
class Failure:
    """One thing that is wrong, at the smallest shape that shows it.

    Attributes:
        defect: its name in a few words, such as "window off by one".
        what: what was seen, as a sentence.
        mend: what to do, as a sentence.
        picture: the expected and the effective mask beside each other, or nothing.
        tokens: of the smallest shape that shows it; None where no shape matters.
    """

    defect: str
    what: str
    mend: str
    picture: str = ""
    tokens: int | None = None

    def __str__(self) -> str:
        return "\n".join(filter(None, (f"{self.defect}: {self.what}", f"Mend: {self.mend}", self.picture)))


@dataclass(frozen=True)
class Outcome:
    """How one check ended. ``detail`` says what was compared, or why it was skipped."""

    check: str
    status: str
    detail: str = ""
    failure: Failure | None = None

    def __str__(self) -> str:
        detail = self.failure.defect if self.failure else self.detail
        return f"{self.check:<22} {self.status}{f': {detail}' if detail else ''}"


@dataclass(frozen=True, repr=False)
class CheckReport:
    """All outcomes of one subject. True if nothing failed; prints as ``swaa check`` does."""

    subject: str
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Did no check fail?"""
        return not self.failures

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What failed, in the order of the checks."""
        return tuple(outcome.failure for outcome in self.outcomes if outcome.failure)

    def require(self) -> CheckReport:
        """Itself, for a test to go on with.

        Raises:
            AssertionError: a check failed; the message is the report.
        """
        if not self.ok:
            raise AssertionError(f"\n{self}")
        return self

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return "\n".join([self.subject, *(f"  {outcome}" for outcome in self.outcomes), *self.explained()])

    def explained(self) -> Iterator[str]:
        """The failures in full, and the verdict."""
        for outcome in self.outcomes:
            if outcome.failure:
                yield f"\n{outcome.check}: {outcome.failure}"
        failed = len(self.failures)
        checks = f"{len(self.outcomes)} checks"
        yield f"\n{self.subject}: {f'{failed} of {checks} failed' if failed else f'{checks}, none failed'}."

    __repr__ = __str__


@dataclass(frozen=True)
class Note:
    """How a check ended that did not fail."""

    status: str
    detail: str = ""


def passed(detail: str = "") -> Note:
    """It held."""
    return Note(OK, detail)


def skipped(why: str) -> Note:
    """It was not made."""
    return Note(SKIPPED, why)


def warned(why: str) -> Note:
    """It held, in a way that the author should know of."""
    return Note(WARNING, why)

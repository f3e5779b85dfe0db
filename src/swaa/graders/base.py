"""What a grader is: it says of a generated answer how right it is."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from swaa.errors import invalid
from swaa.reading import build


@dataclass(frozen=True)
class Question:
    """What was asked, and what a right answer holds.

    Attributes:
        prompt: the user's message, without chat template.
        references: at least one string, none blank; what they mean is the grader's.
        metadata: facts about the example, from its task.
    """

    prompt: str
    references: tuple[str, ...]
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = self.references
        listed = isinstance(given, list | tuple) and all(isinstance(item, str) and item.strip() for item in given)
        if not listed or not given:
            mend = "An empty reference stands in every text and grades nothing."
            raise invalid("references", accepted="a list of non-blank strings", got=given, mend=mend)
        object.__setattr__(self, "references", tuple(given))


@dataclass(frozen=True)
class Grade:
    """What a grader says of one answer.

    Attributes:
        score: from 0 (wrong) to 1 (right); None if no grade could be had, which is no zero.
        found: the references that the answer holds, as given; graders that look for none leave it empty.
        missing: the others.
        verdict: what was read from the answer or from the judge: the letter of ``choice``, the text that ``regex``
            caught, ``correct``, ``wrong`` or ``unparsed`` of ``judge``; None if there is nothing of the kind.
        error: why no grade could be had (the judge's endpoint failed); None if nothing failed.
    """

    score: float | None
    found: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    verdict: str | None = None
    error: str | None = None

    @property
    def all_correct(self) -> bool:
        """Whether the answer got everything."""
        return self.score == 1.0


class Grader(ABC):
    """A way of grading: a frozen dataclass whose fields are its parameters.

    A new grader subclasses this, sets ``name``, checks its fields in ``__post_init__`` (naming them
    ``ClassName.field``), writes :meth:`grade` and carries ``@register_grader``.
    """

    name: ClassVar[str]
    """As in YAML."""

    @abstractmethod
    def grade(self, text: str, question: Question) -> Grade:
        """The grade of the answer ``text``."""

    def grade_all(self, answers: Sequence[tuple[str, Question]]) -> list[Grade]:
        """The grades of many ``(text, question)``, in their order."""
        return [self.grade(text, question) for text, question in answers]

    def check(self) -> None:  # noqa: B027  # most graders need nothing
        """What a run calls before it begins: is everything there that grading will need?

        Raises:
            UserError: something is not there; it is named. Graders of strings need nothing.
        """

    def to_dict(self) -> dict[str, object]:
        """Plain values: ``name`` and every parameter. ``parse_grader`` reads them back."""
        parameters = dataclasses.asdict(self)  # type: ignore[call-overload]
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in parameters.items()}
        return {"name": self.name} | listed

    @classmethod
    def from_dict(cls, parameters: Mapping[str, object]) -> Self:
        """The grader with these parameters; those left out have their defaults.

        Raises:
            UserError: a parameter is unknown (the nearest is suggested), missing, or has a wrong value.
        """
        return build(cls, parameters, cls.name)

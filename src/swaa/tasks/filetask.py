"""Tasks whose examples stand in a file: what they share. A format says how a row becomes questions, and no more."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from swaa.errors import UserError, invalid
from swaa.graders import Grader
from swaa.reading import check_choice, check_text, within
from swaa.tasks.base import CountTokens, Example, GradedTask, digest_of
from swaa.tasks.datafile import DataFile, open_data
from swaa.tasks.draws import Draws
from swaa.tasks.fields import as_object

ONE_ANSWER = ("recall", "all_found")
"""Graders for which several references are parts of one answer; for the others they are spellings of it."""


@dataclass(frozen=True)
class Content:
    """What a question of a file asks, as :class:`swaa.tasks.Example` has it.

    Attributes:
        spans: character offsets of the evidence in ``prompt``, where it is known.
        facts: for the metadata.
    """

    prompt: str
    answer: str
    references: tuple[str, ...]
    answer_prefix: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)

    def metadata(self) -> dict[str, object]:
        """Spans, the share of the prompt before each, and the facts."""
        known: dict[str, object] = {}
        if self.spans:
            known["spans"] = [list(span) for span in self.spans]
            known["depths"] = [round(start / len(self.prompt), 6) for start, _ in self.spans]
        return known | dict(self.facts)


@dataclass(frozen=True)
class Entry:
    """A question of a file whose text is not written yet.

    Attributes:
        id: unique in the file.
        write: what it asks.
        place: where it stands, for messages.
    """

    id: str
    write: Callable[[], Content]
    place: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A question of a file that is offered to nobody.

    Attributes:
        reason: in words, the same for all that are left out for it.
    """

    reason: str


@dataclass(frozen=True)
class FileTask(GradedTask):
    """A task that offers every example of a file, in an order that the seed shuffles.

    Attributes:
        path: a ``.jsonl``, ``.json`` or ``.parquet`` file; a relative path begins at the folder you work in.

    ``length`` and ``num_examples`` do not matter here: the caller drops what is too long. Texts are written one at a
    time, when they are asked for.
    """

    sized: ClassVar[bool] = False

    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        path = str(self.path) if isinstance(self.path, Path) else self.path
        object.__setattr__(self, "path", check_text(f"{type(self).__name__}.path", path))

    @abstractmethod
    def entries(self, values: Mapping[str, object], number: int) -> Iterator[Entry | LeftOut]:
        """The questions of one row: what it says, and the number of its line, from 1.

        Raises:
            UserError: a field is missing or wrong; it is named. The caller adds the place.
        """

    @property
    def data(self) -> DataFile:
        """The file, read once."""
        return open_data(self.path, self.rows_at)

    @property
    def rows_at(self) -> str | None:
        """Dotted name of the list of rows in a ``.json`` file; None where the file is that list."""
        return None

    @property
    def fingerprint(self) -> str:
        parameters = self.to_dict() | {"sha256": self.data.sha256}
        return digest_of({key: value for key, value in parameters.items() if key not in ("path", "grader")})

    @property
    def left_out(self) -> Mapping[str, int]:
        return dict(Counter(entry.reason for entry in self._all() if isinstance(entry, LeftOut)))

    def example_ids(self, *, length: int, num_examples: int, seed: int) -> Iterator[str]:
        del length, num_examples
        stem = f"{self.name}-{self.fingerprint}"
        return (f"{stem}-{entry.id}" for entry in self._offered(seed))

    def examples(self, *, length: int, num_examples: int, seed: int, count_tokens: CountTokens) -> Iterator[Example]:
        del count_tokens
        names = self.example_ids(length=length, num_examples=num_examples, seed=seed)
        for name, entry in zip(names, self._offered(seed), strict=True):
            with within(entry.place):
                content = entry.write()
            yield Example(
                id=name,
                prompt=content.prompt,
                answer_prefix=content.answer_prefix,
                answer=content.answer,
                references=content.references,
                metadata={"item": entry.id, **content.metadata()},
            )

    def _offered(self, seed: int) -> list[Entry]:
        """The entries that are not left out, shuffled."""
        offered: dict[str, Entry] = {}
        for entry in self._all():
            if isinstance(entry, LeftOut):
                continue
            if entry.id in offered:
                mend = "Rename one of the two, or remove it."
                raise UserError(f"{entry.place}: id: {entry.id!r} is already that of {offered[entry.id].place}. {mend}")
            offered[entry.id] = entry
        if not offered:
            reasons = ", ".join(f"{count} for {reason}" for reason, count in self.left_out.items())
            raise UserError(f"{self.path}: no example is left; left out: {reasons}. Ask for others, or another file.")
        return Draws("order", self.name, seed).shuffled(list(offered.values()))

    def _all(self) -> Iterator[Entry | LeftOut]:
        """Every entry of the file, in order, with its place."""
        for row in self.data.rows:
            with within(row.place):
                for entry in self.entries(as_object("this line", row.values), row.number):
                    yield entry if isinstance(entry, LeftOut) else Entry(entry.id, entry.write, row.place)


def check_names(field: str, value: object, options: Collection[str] | None = None) -> tuple[str, ...]:
    """A list of names, none twice and perhaps none at all; each of ``options``, where these are known."""
    if not isinstance(value, list | tuple):
        raise invalid(field, accepted="a list of names", got=value, mend="Write it as [...].")
    for place, name in enumerate(value):
        if options is None:
            check_text(f"{field}[{place}]", name)
        else:
            check_choice(f"{field}[{place}]", name, options)
        if name in value[:place]:
            raise invalid(field, accepted="each name once", got=name, mend="Remove the second one.")
    return tuple(value)


def reference_answer(grader: Grader, references: tuple[str, ...]) -> str:
    """The reply that teacher forcing scores: all references where they are parts of one answer, else the first."""
    return ", ".join(references) if grader.name in ONE_ANSWER else references[0]


def after(prefix: str, answer: str) -> str:
    """``answer`` as it follows ``prefix``: with a space before it, where words would run into each other."""
    glued = not prefix or prefix[-1].isspace() or prefix[-1] in "([{\"'" or not prefix[-1].isascii()
    return answer if glued or answer[:1].isspace() else f" {answer}"


class Page:
    """A prompt that is being written, piece by piece, and where its evidence stands."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self.spans: list[tuple[int, int]] = []

    def write(self, text: str, *, evidence: bool = False) -> None:
        """Add ``text``; as ``evidence``, its place is noted."""
        if evidence:
            self.spans.append((self._size, self._size + len(text)))
        self._pieces.append(text)
        self._size += len(text)

    def include(self, other: Page, *, evidence: bool = False) -> None:
        """Add what another page has, with its evidence; as ``evidence``, all of it."""
        self.spans.extend((self._size + start, self._size + end) for start, end in other.spans)
        self.write(other.text, evidence=evidence)

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(self._pieces)

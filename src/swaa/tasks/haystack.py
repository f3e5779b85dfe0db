"""Haystacks: the text that hides the needles, as an endless stream of sentences.

``noise`` is sentences of ours put together at random, ``topics`` the text of Python's own manual
(``pydoc_data.topics``, real and technical; it varies with the Python version, so its hash is recorded),
``file`` a text of the user's. Real texts start at a random sentence in each example and go round: where an
example is longer than the text, the text repeats, and the example's metadata counts how often.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from swaa.errors import UserError, invalid
from swaa.tasks.draws import Draws
from swaa.tasks.words import PLACES, SUBJECTS, VERBS

HAYSTACKS = ("noise", "topics", "file")
MAX_SENTENCE = 160
"""Characters; a longer sentence of a real text (a listing) is cut, as depths are exact to a sentence."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")  # noqa: RUF001  # full-width marks are meant
_WHITESPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Haystack:
    """Where the sentences come from.

    Attributes:
        kind: one of ``HAYSTACKS``.
        sentences: of a real text, in order, with single spaces inside; empty for noise.
        sha256: of the real text's UTF-8 bytes, in hexadecimal; empty for noise.
    """

    kind: str
    sentences: tuple[str, ...] = ()
    sha256: str = ""

    def stream(self, draws: Draws) -> Iterator[str]:
        """Sentences without end, chosen by ``draws``."""
        if not self.sentences:
            while True:
                yield f"{draws.choice(SUBJECTS)} {draws.choice(VERBS)} {draws.choice(PLACES)}."
        start = draws.below(len(self.sentences))
        while True:
            yield from self.sentences[start:]
            start = 0

    def rounds(self, num_sentences: int) -> int:
        """Rounds through the text that a stream of that many sentences begins; 0 for noise."""
        return -(-num_sentences // len(self.sentences)) if self.sentences else 0

    def contains(self, word: str) -> bool:
        """Whether a real text holds ``word`` anywhere, whatever its case. Noise holds no key and no value."""
        return word.casefold() in _folded(self.sentences)


def open_haystack(kind: str, file: str | None = None) -> Haystack:
    """The haystack of that kind, of ``HAYSTACKS``; ``file`` is the path of a ``file`` haystack.

    Raises:
        UserError: the file is missing, is no UTF-8 text, or holds no word.
    """
    if kind == "noise":
        return Haystack(kind)
    return _topics() if kind == "topics" else _file(str(file), Path(str(file)))


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of ``text``, white space made single spaces, none longer than ``MAX_SENTENCE``."""
    lines = (_WHITESPACE.sub(" ", sentence).strip() for sentence in _SENTENCE_END.split(text))
    return tuple(piece for line in lines for piece in _pieces(line))


def _pieces(line: str) -> Iterator[str]:
    """``line`` in pieces of at most ``MAX_SENTENCE``, cut at spaces where there are any."""
    while len(line) > MAX_SENTENCE:
        cut = line.rfind(" ", 1, MAX_SENTENCE + 1)
        cut = cut if cut > 0 else MAX_SENTENCE
        yield line[:cut]
        line = line[cut:].lstrip()
    if line:
        yield line


def _real(kind: str, text: str) -> Haystack:
    return Haystack(kind, split_sentences(text), hashlib.sha256(text.encode()).hexdigest())


@lru_cache(maxsize=1)
def _topics() -> Haystack:
    from pydoc_data.topics import topics

    return _real("topics", "\n\n".join(topics[name] for name in sorted(topics)))


def _file(name: str, path: Path) -> Haystack:
    field = "haystack_file"
    if not path.is_file():
        mend = "Check the path; it is taken from the current folder."
        raise invalid(field, accepted="the path of a text file", got=name, mend=mend)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mend = f"Byte {error.start} is not UTF-8; save the file as UTF-8 text."
        raise invalid(field, accepted="a UTF-8 text file", got=name, mend=mend) from error
    except OSError as error:
        raise UserError(f"{field}: {name!r} cannot be read: {error.strerror}. Check its permissions.") from error
    haystack = _real("file", text)
    if not haystack.sentences:
        raise invalid(field, accepted="a file with text in it", got=name, mend="The file is empty; name another one.")
    return haystack


@lru_cache(maxsize=2)
def _folded(sentences: tuple[str, ...]) -> str:
    return " ".join(sentences).casefold()

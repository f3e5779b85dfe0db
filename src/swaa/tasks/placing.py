"""Putting needles into a haystack at asked depths."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from swaa.tasks.fitting import Padding


@dataclass(frozen=True)
class Needle:
    """A sentence to hide.

    Attributes:
        sentence: its text.
        depth: the share of the haystack's characters that shall stand before it, from 0 (first) to 1 (last).
    """

    sentence: str
    depth: float


@dataclass(frozen=True)
class Context:
    """A haystack with its needles.

    Attributes:
        text: sentences with one space, or what was asked for, between them.
        spans: for each needle, in the order given: character offsets of its begin and end in ``text``.
        depths: for each needle: the share of the haystack's characters that stand before it.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    depths: tuple[float, ...]


class Draft:
    """A prompt whose length is still open: context and question, with a blank line between them.

    Args:
        needles: what the context hides.
        stream: the haystack's sentences, without end; read as far as the longest padding asks.
        question: what stands at the end.
        between: what stands between two sentences.
    """

    def __init__(self, needles: Sequence[Needle], stream: Iterator[str], question: str, between: str = " ") -> None:
        self._needles = needles
        self._stream = stream
        self._sentences: list[str] = []
        self._question = question
        self._between = between

    def context(self, padding: Padding) -> Context:
        """The context with that much haystack."""
        self._read(padding.num_sentences + 1)
        return place(self._needles, self._sentences, padding, self._between)

    def prompt(self, padding: Padding) -> str:
        """The whole prompt with that much haystack."""
        return f"{self.context(padding).text}\n\n{self._question}"

    def words_in(self, index: int) -> int:
        """Words in the haystack's sentence with that index."""
        self._read(index + 1)
        return len(words_of(self._sentences[index]))

    def _read(self, number: int) -> None:
        self._sentences.extend(islice(self._stream, max(0, number - len(self._sentences))))


def words_of(sentence: str) -> list[str]:
    """The words of a sentence, each with the space before it; very long ones (Chinese) count as several."""
    return re.findall(r" ?[^ ]{1,20}", sentence)


def place(needles: Sequence[Needle], sentences: Sequence[str], padding: Padding, between: str = " ") -> Context:
    """Write as much haystack as ``padding`` says, each needle at the gap between sentences next to its depth.

    Args:
        needles: those with one gap stand there in the order given.
        sentences: the haystack, one more than ``padding.num_sentences`` at least if it asks for words.
        padding: the amount; its words and fillers stand after the last whole sentence.
        between: what stands between two sentences.
    """
    hay = list(sentences[: padding.num_sentences])
    begun = words_of(sentences[padding.num_sentences])[: padding.num_words] if padding.num_words else []
    if rest := " ".join(filter(None, ("".join(begun), *padding.fillers))):
        hay.append(rest)
    before = [0]  # before[i]: characters of haystack before gap i
    for sentence in hay:
        before.append(before[-1] + len(sentence))
    gaps = [_nearest(before, needle.depth * before[-1]) for needle in needles]
    order = sorted(range(len(needles)), key=lambda index: gaps[index])  # stable

    pieces: list[str] = []
    spans = [(0, 0)] * len(needles)
    offset, done = 0, 0
    for index in order:
        for sentence in hay[done : gaps[index]]:
            pieces.append(sentence)
            offset += len(sentence) + len(between)
        done = max(done, gaps[index])
        sentence = needles[index].sentence
        spans[index] = (offset, offset + len(sentence))
        pieces.append(sentence)
        offset += len(sentence) + len(between)
    text = between.join(pieces + hay[done:])
    return Context(text, tuple(spans), tuple(before[gap] / (before[-1] or 1) for gap in gaps))


def _nearest(before: Sequence[int], wanted: float) -> int:
    """The index of the value nearest to ``wanted``."""
    right = min(bisect_left(before, wanted), len(before) - 1)
    return right - 1 if right and wanted - before[right - 1] <= before[right] - wanted else right

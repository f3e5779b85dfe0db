"""Bringing a text to an exact number of tokens with few calls of the tokenizer.

A text of 100,000 tokens takes a tokenizer a tenth of a second and more, so the length is searched for by
interpolation: tokens grow almost evenly with sentences. What is left is filled by words of the next sentence,
then by fillers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from swaa.tasks.words import FILLERS

_PER_UNIT = 4
"""Most units that one token may hold; it only ends the search where a tokenizer stops counting."""


@dataclass(frozen=True)
class Padding:
    """How much text to write.

    Attributes:
        num_sentences: whole sentences.
        num_words: words of the sentence after them.
        fillers: short words after those.
    """

    num_sentences: int = 0
    num_words: int = 0
    fillers: tuple[str, ...] = ()


def fit(
    count: Callable[[Padding], int], target: int, *, at_least: int, words_in: Callable[[int], int]
) -> tuple[Padding, int]:
    """The padding that makes a text of exactly ``target`` tokens, or of as few less as the tokenizer allows.

    Args:
        count: tokens of the whole text with that padding; called ten to twenty times.
        target: tokens wanted.
        at_least: tokens without padding, at most ``target``.
        words_in: words in the sentence with that index.

    Returns:
        The padding, and the tokens of the text with it.
    """
    tokens = at_least

    def grow(padding_of: Callable[[int], Padding], guess: float, limit: int | None = None) -> Padding:
        nonlocal tokens
        size, tokens = largest(lambda n: count(padding_of(n)), target, tokens, guess=guess, limit=limit)
        return padding_of(size)

    padding = grow(Padding, 12.0)
    padding = grow(partial(Padding, padding.num_sentences), 1.3, words_in(padding.num_sentences) - 1)
    for filler in FILLERS:  # where one makes no exact fit, the next may
        padding = grow(partial(_filled, padding, filler), 1.0)
    return padding, tokens


def largest(
    count: Callable[[int], int], target: int, at_zero: int, *, guess: float, limit: int | None = None
) -> tuple[int, int]:
    """A size whose ``count`` is ``target``, else the last one that fits.

    Args:
        count: a function that grows with its argument, about evenly.
        target: the highest count that fits.
        at_zero: ``count(0)``, at most ``target``.
        guess: how much ``count`` grows with each unit, roughly.
        limit: the highest size.

    Returns:
        The size and its count.
    """
    low, low_count = 0, at_zero
    high = 1 + (_PER_UNIT * (target - at_zero) if limit is None else limit)
    high_count: int | None = None  # until a probe goes over the target
    probes = 0
    while low_count < target and high - low > 1:
        if high_count is not None:
            slope = (high_count - low_count) / (high - low)
        else:
            slope = (low_count - at_zero) / low if low else guess
        halve = high_count is not None and probes % 4 == 3  # interpolation alone may creep
        step = (high - low) // 2 if halve else int((target - low_count) / max(slope, 0.1))
        size = min(low + max(step, 1), high - 1)
        size_count, probes = count(size), probes + 1
        if size_count > target:
            high, high_count = size, size_count
        else:
            low, low_count = size, size_count
    return low, low_count


def _filled(padding: Padding, filler: str, times: int) -> Padding:
    return replace(padding, fillers=padding.fillers + (filler,) * times)

"""Counting words: which words of a list, or of a text in code, stand there most often.

Structure after RULER's aggregation tasks (Hsieh et al., arXiv 2404.06654), wording our own and without its worked
example. There is no needle here: an answer takes the whole prompt, so what a window hides is missing from the count.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from string import ascii_lowercase
from typing import ClassVar

from swaa.errors import invalid
from swaa.reading import check_number, check_whole
from swaa.tasks.base import Example
from swaa.tasks.draws import Draws
from swaa.tasks.fitting import Padding
from swaa.tasks.registry import register_task
from swaa.tasks.sized import Order, SizedTask
from swaa.tasks.words import ADJECTIVES, LIST_WORDS, NOUNS, SYLLABLES, VALUE_WORDS

NOISE = "..."
"""The commonest item of a text in code: no word."""
MAX_VOCABULARY = 10_000
MAX_ASKED = 100
_UNIT = 1 << 20  # a weight is a multiple of 1/_UNIT, so coarse that no platform's last digit of a power shows in it


class Mixture:
    """Items in a random order that stays as it is when more of them come.

    Args:
        key: names the order, as of :class:`Draws`.
    """

    def __init__(self, *key: int | str) -> None:
        self._key = key
        self._draws: list[Draws] = []
        self._ranks: list[list[int]] = []

    def order(self, counts: Sequence[int]) -> list[int]:
        """Item ``i``, ``counts[i]`` times, for every ``i``, mixed."""
        for item in range(len(self._draws), len(counts)):
            self._draws.append(Draws(*self._key, item))
            self._ranks.append([])
        places: list[tuple[int, int]] = []
        for item, count in enumerate(counts):
            ranks = self._ranks[item]
            ranks.extend(self._draws[item].word() for _ in range(count - len(ranks)))
            places.extend((rank, item) for rank in ranks[:count])
        return [item for _, item in sorted(places)]


@dataclass(frozen=True)
class Written:
    """A text of counted items.

    Attributes:
        text: the items with one space between them.
        spans: for each watched item, character offsets from the begin of its first to the end of its last occurrence.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def write(pieces: Sequence[tuple[int, str]], watched: Sequence[int]) -> Written:
    """The text of ``(item, how it is written)`` in order."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    offset = 0
    for item, text in pieces:
        first.setdefault(item, offset)
        last[item] = offset + len(text)
        offset += len(text) + 1
    return Written(" ".join(text for _, text in pieces), tuple((first[item], last[item]) for item in watched))


@dataclass(frozen=True)
class Counted:
    """What one prompt counts.

    Attributes:
        asked: the words of the answer, in order.
        written: the text with that much padding.
        facts: of the text with that much padding, for the metadata.
        words_in: items that a padding's next "sentence" has.
    """

    asked: Sequence[str]
    written: Callable[[Padding], Written]
    facts: Callable[[Padding], Mapping[str, object]]
    words_in: int


@dataclass(frozen=True)
class CountingTask(SizedTask[None]):
    """What the two tasks share: how a prompt is laid out, asked about, brought to its length and described."""

    heading: ClassVar[str]
    place: ClassVar[str]
    """What the words stand in."""
    listed: ClassVar[str]
    """In which order the answer names the words."""
    mend: ClassVar[str]
    """What to change where the shortest prompt is too long."""

    @abstractmethod
    def counted(self, draws: Draws) -> Counted:
        """The text of one example."""

    def open(self) -> None:
        return None

    def make(self, order: Order, material: None) -> Example:
        del material
        counted = self.counted(order.draws)
        question, prefix, verb = self._wording(len(counted.asked))

        def prompt(padding: Padding) -> str:
            end = " ".join((f"The {self.place} ends here.", *padding.fillers))  # there they are in no count
            return "\n\n".join((self.heading, counted.written(padding).text, end, question))

        padding, tokens = self.fitted(
            order,
            prompt,
            prefix,
            words_in=lambda _: counted.words_in,
            needs="the least text in which the asked words stand out, and the question",
            mend=self.mend,
        )
        written = counted.written(padding)
        begin = len(self.heading) + 2
        return Example(
            id=order.id,
            prompt=prompt(padding),
            answer_prefix=prefix,
            answer=f"{verb} {', '.join(counted.asked)}",
            references=tuple(counted.asked),
            metadata={
                "length": order.length,
                "tokens": tokens,
                "depths": [round(start / len(written.text), 6) for start, _ in written.spans],
                "spans": [[begin + start, begin + end] for start, end in written.spans],
                **counted.facts(padding),
            },
        )

    def _wording(self, number: int) -> tuple[str, str, str]:
        """The question, the beginning of the reply, and the words between that and the list of words."""
        one = number == 1
        words = f"most frequent word{'' if one else 's'} of the {self.place}"
        if one:
            return f"What is the {words}?", f"The {words}", " is"
        question = f"What are the {number} {words}? Name them {self.listed}, with commas between them."
        return question, f"The {number} {words}", " are"

    def _check_asked(self, field: str, number: object) -> None:
        """Refuse a number of asked words that is no int from 1 to ``MAX_ASKED``."""
        owner = type(self).__name__
        if check_whole(f"{owner}.{field}", number, minimum=1) > MAX_ASKED:
            mend = "Ask for fewer words."
            raise invalid(f"{owner}.{field}", accepted=f"at most {MAX_ASKED}", got=number, mend=mend)


@register_task
@dataclass(frozen=True)
class CommonWords(CountingTask):
    """A numbered list in which some words stand more often than all others, and the question which.

    The prompt grows by uncommon words: real ones first, then invented ones.

    Attributes:
        num_common: words that are asked for.
        freq_common: how often each of them stands in the list.
        freq_uncommon: how often every other word does; the last of them perhaps less, to hit the length.

    The metadata of an example: ``length`` asked, ``tokens`` reached, ``num_uncommon`` words; for each common word, in
    the order of the answer, its ``spans`` (one from its first to its last occurrence, character offsets in the
    prompt) and ``depths`` (the share of the list before the first).
    """

    name: ClassVar[str] = "common_words"
    heading: ClassVar[str] = "Here is a numbered list of words. Some of them stand in it more often than all others."
    place: ClassVar[str] = "list"
    listed: ClassVar[str] = "in alphabetical order"
    mend: ClassVar[str] = "Ask for longer prompts, or for a smaller num_common or freq_common."

    num_common: int = 10
    freq_common: int = 30
    freq_uncommon: int = 3

    def __post_init__(self) -> None:
        owner = type(self).__name__
        self._check_asked("num_common", self.num_common)
        check_whole(f"{owner}.freq_uncommon", self.freq_uncommon, minimum=1)
        check_whole(f"{owner}.freq_common", self.freq_common, minimum=2)
        if self.freq_common <= self.freq_uncommon:
            accepted = f"more than freq_uncommon, {self.freq_uncommon}"
            mend = "The common words must stand out."
            raise invalid(f"{owner}.freq_common", accepted=accepted, got=self.freq_common, mend=mend)

    def counted(self, draws: Draws) -> Counted:
        stream = list_words(draws)
        common = sorted(islice(stream, self.num_common))
        words = list(common)
        mixture = Mixture("list", draws.word())

        def written(padding: Padding) -> Written:
            counts = self._counts(padding)
            words.extend(islice(stream, max(0, len(counts) - len(words))))
            items = enumerate(mixture.order(counts), start=1)
            return write([(item, f"{number}. {words[item]}") for number, item in items], range(self.num_common))

        def facts(padding: Padding) -> Mapping[str, object]:
            return {"num_uncommon": len(self._counts(padding)) - self.num_common}

        return Counted(common, written, facts, words_in=self.freq_uncommon)

    def _counts(self, padding: Padding) -> list[int]:
        """How often each word stands in the list, the common ones first."""
        whole = [self.freq_common] * self.num_common + [self.freq_uncommon] * padding.num_sentences
        return whole + [padding.num_words] * (padding.num_words > 0)


@register_task
@dataclass(frozen=True)
class FrequentWords(CountingTask):
    """A text of invented words whose frequencies follow a zeta (Zipf) law, and the question for the first of them.

    The item of rank ``k`` stands there in proportion to ``k ** -alpha``. The first rank is ``...``, which is no word,
    as in RULER; the words of the next ``num_asked`` ranks are asked for. A larger ``alpha`` is easier.

    Attributes:
        num_asked: words that are asked for, from the most frequent down.
        alpha: exponent of the law.
        vocab_size: ranks that there are; the last ones stand there only in long texts.
        word_length: letters in a word.

    The metadata of an example: ``length`` asked, ``tokens`` reached; ``counts``, ``spans`` (one from the first to the
    last occurrence, character offsets in the prompt) and ``depths`` (the share of the text before the first) of the
    asked words, in the order of the answer.
    """

    name: ClassVar[str] = "frequent_words"
    heading: ClassVar[str] = "Here is a text in code. Dots are no words, and what the words mean is unknown."
    place: ClassVar[str] = "text"
    listed: ClassVar[str] = "from the most frequent one down"
    mend: ClassVar[str] = "Ask for longer prompts, for fewer words, or for another alpha."

    num_asked: int = 3
    alpha: float = 2.0
    vocab_size: int = 1_000
    word_length: int = 6

    def __post_init__(self) -> None:
        owner = type(self).__name__
        self._check_asked("num_asked", self.num_asked)
        object.__setattr__(self, "alpha", check_number(f"{owner}.alpha", self.alpha, low=0, high=4, open_low=True))
        check_whole(f"{owner}.word_length", self.word_length, minimum=2)
        check_whole(f"{owner}.vocab_size", self.vocab_size, minimum=self.num_asked + 2)
        most = min(MAX_VOCABULARY, len(ascii_lowercase) ** self.word_length // 2)
        if self.vocab_size > most:
            accepted = f"at most {most} with word_length {self.word_length}"
            mend = "Ask for fewer words, or for longer ones."
            raise invalid(f"{owner}.vocab_size", accepted=accepted, got=self.vocab_size, mend=mend)
        if self._gap(self._weights) == 0:
            accepted = f"one with which the first {self.num_asked} words differ in frequency"
            raise invalid(f"{owner}.alpha", accepted=accepted, got=self.alpha, mend="Ask for fewer words.")

    def counted(self, draws: Draws) -> Counted:
        vocabulary = list(islice(self._words(draws), self.vocab_size - 1))
        mixture = Mixture("text", draws.word())
        weights = self._weights
        watched = range(1, self.num_asked + 1)

        def counts(padding: Padding) -> list[int]:
            return self._counts(weights, padding.num_sentences)

        def written(padding: Padding) -> Written:
            items = mixture.order(counts(padding))
            return write([(item, vocabulary[item - 1] if item else NOISE) for item in items], watched)

        def facts(padding: Padding) -> Mapping[str, object]:
            return {"counts": [counts(padding)[item] for item in watched]}

        return Counted(vocabulary[: self.num_asked], written, facts, words_in=1)

    @property
    def _weights(self) -> list[int]:
        """What each rank's frequency is proportional to, the dots first."""
        return [round(_UNIT * rank**-self.alpha) for rank in range(1, self.vocab_size + 1)]

    def _gap(self, weights: Sequence[int]) -> int:
        """The least difference between the weights of an asked word and of the next one."""
        return min(more - less for more, less in pairwise(weights[1 : self.num_asked + 2]))

    def _counts(self, weights: Sequence[int], extra: int) -> list[int]:
        """How often each rank stands in a text of about as many items as tell the asked words apart, and ``extra``."""
        total = sum(weights)
        size = -(-total // self._gap(weights)) + extra
        counts = [size * weight // total for weight in weights]
        return counts[: len(counts) - counts.count(0)]  # they never rise

    def _words(self, draws: Draws) -> Iterator[str]:
        """Distinct words of random letters, without end."""
        seen = set[str]()
        while True:
            word = "".join(draws.choice(ascii_lowercase) for _ in range(self.word_length))
            if word not in seen:
                seen.add(word)
                yield word


def list_words(draws: Draws) -> Iterator[str]:
    """Distinct words without end: the real ones in random order, then invented ones of three syllables."""
    real = ADJECTIVES + NOUNS + VALUE_WORDS + LIST_WORDS
    yield from draws.shuffled(real)
    seen = set(real)
    while True:
        word = "".join(draws.choice(SYLLABLES) for _ in range(3))
        if word not in seen:
            seen.add(word)
            yield word

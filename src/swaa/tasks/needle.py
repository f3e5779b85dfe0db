"""Needles in a haystack: sentences that give keys their values, hidden in a long text.

Structure after RULER's retrieval tasks (Hsieh et al., arXiv 2404.06654), wording our own: single key, several
keys of which one is asked, several values of one key, several keys that are all asked.

The reply restates the needle: words, key, value. Only the words before the key are given as
``answer_prefix``, so the model is already decoding when it looks the value up: every token of the value is
predicted under the decode policy, as in a reply that a model writes all by itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from swaa.errors import invalid
from swaa.reading import check_choice, check_number, check_whole
from swaa.tasks.base import Example
from swaa.tasks.draws import Draws
from swaa.tasks.haystack import Haystack
from swaa.tasks.placing import Draft, Needle
from swaa.tasks.registry import register_task
from swaa.tasks.sized import HaystackTask, Order, haystack_facts
from swaa.tasks.words import ADJECTIVES, NOUNS, VALUE_WORDS

VALUE_TYPES = ("numbers", "words")
MAX_NEEDLES = 256


@dataclass(frozen=True)
class Fact:
    """What one needle says: ``key`` has ``value``."""

    key: str
    value: str


@dataclass(frozen=True)
class NeedleTask(HaystackTask):
    """What the four tasks share.

    Attributes:
        depth: where the asked needles stand, from 0 (first) to 1 (last), exact to a sentence; several asked
            ones stand together there. None: each has its own depth, spread evenly over the examples. Needles
            that are not asked stand anywhere.
        value_type: ``numbers`` of seven digits, or ``words``.

    The metadata of an example: ``length`` asked, ``tokens`` reached; ``keys`` and, for the asked needles in
    the order of the answer, ``depths`` reached and ``spans`` (character offsets in the prompt);
    ``distractor_spans`` of the others; ``haystack`` with its kind, SHA-256 and how many rounds through it
    were begun.
    """

    depth: float | None = None
    value_type: str = "numbers"

    several_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        owner = type(self).__name__
        super().__post_init__()
        check_choice(f"{owner}.value_type", self.value_type, VALUE_TYPES)
        if self.depth is not None:
            object.__setattr__(self, "depth", check_number(f"{owner}.depth", self.depth, low=0, high=1))

    def _check_count(self, name: str, value: object) -> None:
        """Refuse a number of needles that is no int, is below 2, or for which there are not enough values."""
        field = f"{type(self).__name__}.{name}"
        most = MAX_NEEDLES if self.value_type == "numbers" else len(VALUE_WORDS)
        if check_whole(field, value, minimum=2) > most:
            accepted = f"at most {most} with value_type {self.value_type!r}"
            raise invalid(field, accepted=accepted, got=value, mend="Hide fewer needles.")

    @property
    @abstractmethod
    def num_needles(self) -> int:
        """Needles in each prompt."""

    @property
    @abstractmethod
    def num_asked(self) -> int:
        """Needles that the question asks for."""

    def make(self, order: Order, material: Haystack) -> Example:
        facts = self._facts(order.draws, material)
        needles = [Needle(self._sentence(fact), depth) for fact, depth in zip(facts, self._depths(order), strict=True)]
        asked = facts[: self.num_asked]
        prefix, answer = self._reply(asked)
        draft = Draft(needles, material.stream(order.draws), self._question(asked))
        mend = f"Ask for longer prompts{' or fewer needles' if len(needles) > 1 else ''}."
        padding, tokens = self.fitted(
            order, draft.prompt, prefix, words_in=draft.words_in, needs="the needles and the question", mend=mend
        )
        context = draft.context(padding)
        return Example(
            id=order.id,
            prompt=draft.prompt(padding),
            answer_prefix=prefix,
            answer=answer,
            references=tuple(fact.value for fact in asked),
            metadata={
                "length": order.length,
                "tokens": tokens,
                "keys": [fact.key for fact in asked],
                "depths": [round(depth, 6) for depth in context.depths[: len(asked)]],
                "spans": [list(span) for span in context.spans[: len(asked)]],
                "distractor_spans": [list(span) for span in context.spans[len(asked) :]],
                "haystack": haystack_facts(material, padding),
            },
            reasoning=self._reasoning(facts, context.spans),
        )

    def _reasoning(self, facts: Sequence[Fact], spans: Sequence[tuple[int, int]]) -> str:
        """Every needle, in the order of the text: what a careful reader would copy before answering."""
        placed = sorted(zip(spans, facts, strict=True), key=lambda pair: pair[0])
        return "\n".join(self._sentence(fact) for _, fact in placed)

    def _facts(self, draws: Draws, haystack: Haystack) -> list[Fact]:
        """What the needles say, the asked ones first; no key and no value stands elsewhere in the text."""
        keys = list(islice((key for key in _keys(draws) if not haystack.contains(key)), self.num_needles))
        values = list(islice(self._values(draws, haystack), self.num_needles))
        if len(values) < self.num_needles:
            accepted = f"at most {len(values)} words that {self.haystack!r} does not hold itself"
            mend = "Use value_type: numbers."
            raise invalid(f"needles of {self.label}", accepted=accepted, got=self.num_needles, mend=mend)
        if self.several_values:
            keys = keys[:1] * self.num_needles
        return [Fact(key, value) for key, value in zip(keys, values, strict=True)]

    def _values(self, draws: Draws, haystack: Haystack) -> Iterator[str]:
        """Distinct values that the haystack does not hold."""
        if self.value_type == "words":
            yield from (word for word in draws.shuffled(VALUE_WORDS) if not haystack.contains(word))
            return
        seen = set[str]()
        while True:
            number = str(1_000_000 + draws.below(9_000_000))
            if number not in seen and not haystack.contains(number):
                seen.add(number)
                yield number

    def _depths(self, order: Order) -> list[float]:
        """The depth of each needle, the asked ones first.

        The asked needles of all examples take the points of one sequence in turn.
        """
        depths = order.depths(self.num_asked) if self.depth is None else [self.depth] * self.num_asked
        if self.several_values:
            depths.sort()  # the answer lists the values in the order of the text
        return depths + [order.draws.fraction() for _ in range(self.num_needles - self.num_asked)]

    @property
    def _noun(self) -> str:
        return self.value_type.removesuffix("s")

    def _sentence(self, fact: Fact) -> str:
        return f"The {self._noun} for the {fact.key} is {fact.value}."

    def _question(self, asked: Sequence[Fact]) -> str:
        """The question at the end of the prompt."""
        keys = [f"the {fact.key}" for fact in asked]
        if len(asked) == 1:
            return f"One sentence above gives the {self._noun} for {keys[0]}. Repeat that sentence exactly."
        if self.several_values:
            many, order = f"each give a {self._noun} for {keys[0]}", "the order of the text"
        else:
            many, order = f"give the {self._noun}s for {', '.join(keys[:-1])} and {keys[-1]}", "this order"
        return f"{len(asked)} sentences above {many}. Repeat these sentences exactly, in {order}."

    def _reply(self, asked: Sequence[Fact]) -> tuple[str, str]:
        """``(answer_prefix, answer)``: the reference reply up to its last value, cut before the first key."""
        reply = " ".join(self._sentence(fact) for fact in asked).removesuffix(".")
        cut = len(f"The {self._noun} for the")
        return reply[:cut], reply[cut:]


@register_task
@dataclass(frozen=True)
class NeedleSingle(NeedleTask):
    """One needle, and the question for its value."""

    name: ClassVar[str] = "needle_single"
    num_needles: ClassVar[int] = 1
    num_asked: ClassVar[int] = 1


@register_task
@dataclass(frozen=True)
class NeedleMultikey(NeedleTask):
    """``num_keys`` needles with a key each, and the question for one of them: the others distract."""

    name: ClassVar[str] = "needle_multikey"
    num_asked: ClassVar[int] = 1

    num_keys: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("num_keys", self.num_keys)

    @property
    def num_needles(self) -> int:
        return self.num_keys


@register_task
@dataclass(frozen=True)
class NeedleMultivalue(NeedleTask):
    """``num_values`` needles with one key and a value each, and the question for all of them."""

    name: ClassVar[str] = "needle_multivalue"
    several_values: ClassVar[bool] = True

    num_values: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("num_values", self.num_values)

    @property
    def num_needles(self) -> int:
        return self.num_values

    @property
    def num_asked(self) -> int:
        return self.num_values


@register_task
@dataclass(frozen=True)
class NeedleMultiquery(NeedleTask):
    """``num_queries`` needles with a key each, and the question for all of them."""

    name: ClassVar[str] = "needle_multiquery"

    num_queries: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("num_queries", self.num_queries)

    @property
    def num_needles(self) -> int:
        return self.num_queries

    @property
    def num_asked(self) -> int:
        return self.num_queries


def _keys(draws: Draws) -> Iterator[str]:
    """Distinct keys, an adjective and a noun each; the first ones share neither."""
    adjectives, nouns = draws.shuffled(ADJECTIVES), draws.shuffled(NOUNS)
    for turn in range(len(nouns)):
        for index, adjective in enumerate(adjectives):
            yield f"{adjective} {nouns[(index + turn) % len(nouns)]}"

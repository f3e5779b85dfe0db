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
from swaa.reading import check_choice, check_number, check_text, check_whole
from swaa.tasks.base import CountTokens, Example, Task, digest_of
from swaa.tasks.draws import Draws, spread
from swaa.tasks.fitting import Padding, fit
from swaa.tasks.haystack import HAYSTACKS, Haystack, open_haystack
from swaa.tasks.placing import Draft, Needle
from swaa.tasks.registry import register_task
from swaa.tasks.words import ADJECTIVES, NOUNS, VALUE_WORDS

VALUE_TYPES = ("numbers", "words")
MAX_NEEDLES = 256


@dataclass(frozen=True)
class Fact:
    """What one needle says: ``key`` has ``value``."""

    key: str
    value: str


@dataclass(frozen=True)
class NeedleTask(Task):
    """What the four tasks share.

    Attributes:
        haystack: what hides the needles: ``noise``, ``topics`` or ``file``; see ``swaa.tasks.haystack``.
        haystack_file: path of the text for ``file``, UTF-8; a text shorter than the prompt repeats.
        depth: where the asked needles stand, from 0 (first) to 1 (last), exact to a sentence; several asked
            ones stand together there. None: each has its own depth, spread evenly over the examples. Needles
            that are not asked stand anywhere.
        value_type: ``numbers`` of seven digits, or ``words``.

    The metadata of an example: ``length`` asked, ``tokens`` reached; ``keys`` and, for the asked needles in
    the order of the answer, ``depths`` reached and ``spans`` (character offsets in the prompt);
    ``distractor_spans`` of the others; ``haystack`` with its kind, SHA-256 and how many rounds through it
    were begun.
    """

    haystack: str = "noise"
    haystack_file: str | None = None
    depth: float | None = None
    value_type: str = "numbers"

    several_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_choice(f"{owner}.haystack", self.haystack, HAYSTACKS)
        check_choice(f"{owner}.value_type", self.value_type, VALUE_TYPES)
        if self.depth is not None:
            object.__setattr__(self, "depth", check_number(f"{owner}.depth", self.depth, low=0, high=1))
        if self.haystack == "file":
            check_text(f"{owner}.haystack_file", self.haystack_file)
        elif self.haystack_file is not None:
            mend = "Add haystack: file, or remove haystack_file."
            accepted = f"nothing with haystack {self.haystack!r}"
            raise invalid(f"{owner}.haystack_file", accepted=accepted, got=self.haystack_file, mend=mend)

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

    @property
    def fingerprint(self) -> str:
        sha256 = open_haystack(self.haystack, self.haystack_file).sha256
        return digest_of(self.to_dict() | {"haystack_file": None, "sha256": sha256})

    def examples(self, *, length: int, num_examples: int, seed: int, count_tokens: CountTokens) -> Iterator[Example]:
        haystack = open_haystack(self.haystack, self.haystack_file)
        start = Draws("depth", self.name, seed, length).word()
        for index, name in enumerate(self.example_ids(length=length, num_examples=num_examples, seed=seed)):
            draws = Draws(self.name, seed, length, index)
            facts = self._facts(draws, haystack)
            depths = self._depths(draws, start, index)
            yield self._example(
                name,
                asked=facts[: self.num_asked],
                needles=[Needle(self._sentence(fact), depth) for fact, depth in zip(facts, depths, strict=True)],
                haystack=haystack,
                draws=draws,
                length=length,
                count_tokens=count_tokens,
            )

    def _example(
        self,
        name: str,
        *,
        asked: Sequence[Fact],
        needles: Sequence[Needle],
        haystack: Haystack,
        draws: Draws,
        length: int,
        count_tokens: CountTokens,
    ) -> Example:
        """The example of these needles, brought to its length."""
        prefix, answer = self._reply(asked)
        draft = Draft(needles, haystack.stream(draws), self._question(asked))

        def count(padding: Padding) -> int:
            return count_tokens(draft.prompt(padding), prefix)

        at_least = count(Padding())
        if at_least > length:
            accepted = f"at least {at_least} tokens, for the needles and the question"
            mend = f"Ask for longer prompts{' or fewer needles' if len(needles) > 1 else ''}."
            raise invalid(f"length of {self.label}", accepted=accepted, got=length, mend=mend)
        padding, tokens = fit(count, length, at_least=at_least, words_in=draft.words_in)
        context = draft.context(padding)
        return Example(
            id=name,
            prompt=draft.prompt(padding),
            answer_prefix=prefix,
            answer=answer,
            references=tuple(fact.value for fact in asked),
            metadata={
                "length": length,
                "tokens": tokens,
                "keys": [fact.key for fact in asked],
                "depths": [round(depth, 6) for depth in context.depths[: len(asked)]],
                "spans": [list(span) for span in context.spans[: len(asked)]],
                "distractor_spans": [list(span) for span in context.spans[len(asked) :]],
                "haystack": {
                    "kind": haystack.kind,
                    "sha256": haystack.sha256,
                    "rounds": haystack.rounds(padding.num_sentences),
                },
            },
        )

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

    def _depths(self, draws: Draws, start: int, index: int) -> list[float]:
        """The depth of each needle of example ``index``, the asked ones first.

        The asked needles of all examples take the points of the sequence that begins at ``start`` in turn.
        """
        first = index * self.num_asked
        depths = [
            spread(start, first + number) if self.depth is None else self.depth for number in range(self.num_asked)
        ]
        if self.several_values:
            depths.sort()  # the answer lists the values in the order of the text
        return depths + [draws.fraction() for _ in range(self.num_needles - self.num_asked)]

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

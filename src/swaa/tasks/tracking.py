"""Variable tracking: chains of assignments hidden in a long text, and the question who shares a value.

Structure after RULER's task of that name (Hsieh et al., arXiv 2404.06654), wording our own and without its worked
example. Each chain begins with a number; each further variable is set to the one before it, so an answer takes
``num_hops`` look-ups in a row, each of them further down the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from string import ascii_uppercase
from typing import ClassVar

from swaa.errors import invalid
from swaa.reading import check_whole
from swaa.tasks.base import Example
from swaa.tasks.draws import Draws
from swaa.tasks.haystack import Haystack
from swaa.tasks.placing import Draft, Needle
from swaa.tasks.registry import register_task
from swaa.tasks.sized import HaystackTask, Order, haystack_facts

MAX_VARIABLES = 256


@dataclass(frozen=True)
class Chain:
    """Variables that share a value: ``names[0]`` is set to ``value``, every other one to the one before it."""

    value: str
    names: tuple[str, ...]

    def sentences(self) -> list[str]:
        """What the text says of the chain, in order."""
        first, *others = self.names
        follow = [f"Variable {name} is set to variable {to}." for to, name in zip(self.names, others, strict=False)]
        return [f"Variable {first} is set to {self.value}.", *follow]


@register_task
@dataclass(frozen=True)
class VariableTracking(HaystackTask):
    """Chains of variables that are set to each other, and the question which of them have a value.

    Attributes:
        num_chains: chains in the text; the question is about one of them, the others distract.
        num_hops: assignments in a chain after its first.
        name_length: capital letters in a variable's name.

    The metadata of an example: ``length`` asked, ``tokens`` reached; ``value``; for the asked chain's assignments, in
    order, ``depths`` and ``spans`` (character offsets in the prompt); ``distractor_spans`` of the other chains;
    ``haystack`` as of the needle tasks.
    """

    name: ClassVar[str] = "variable_tracking"

    num_chains: int = 1
    num_hops: int = 4
    name_length: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        for field, minimum in (("num_chains", 1), ("num_hops", 1), ("name_length", 3)):
            check_whole(f"{owner}.{field}", getattr(self, field), minimum=minimum)
        if self.num_variables > MAX_VARIABLES:
            accepted = f"at most {MAX_VARIABLES} variables, num_chains x (num_hops + 1)"
            raise invalid(f"{owner}.num_chains", accepted=accepted, got=self.num_variables, mend="Ask for fewer.")

    @property
    def num_variables(self) -> int:
        """Variables in each prompt."""
        return self.num_chains * (self.num_hops + 1)

    def make(self, order: Order, material: Haystack) -> Example:
        chains = list(islice(self._chains(order.draws, material), self.num_chains))
        needles = [needle for chain in chains for needle in _needles(chain, order.draws)]
        asked = chains[0]
        draft = Draft(needles, material.stream(order.draws), self._question(asked))
        prefix, answer = "The variables", f" with the value {asked.value} are {', '.join(asked.names)}"
        padding, tokens = self.fitted(
            order,
            draft.prompt,
            prefix,
            words_in=draft.words_in,
            needs="the assignments and the question",
            mend="Ask for longer prompts, or for fewer chains or hops.",
        )
        context = draft.context(padding)
        own = len(asked.names)
        return Example(
            id=order.id,
            prompt=draft.prompt(padding),
            answer_prefix=prefix,
            answer=answer,
            references=asked.names,
            metadata={
                "length": order.length,
                "tokens": tokens,
                "value": asked.value,
                "depths": [round(depth, 6) for depth in context.depths[:own]],
                "spans": [list(span) for span in context.spans[:own]],
                "distractor_spans": [list(span) for span in context.spans[own:]],
                "haystack": haystack_facts(material, padding),
            },
        )

    def _chains(self, draws: Draws, haystack: Haystack) -> Iterator[Chain]:
        """Chains without end, of names and values that occur nowhere else in the text."""
        names = _unseen(lambda: "".join(draws.choice(ascii_uppercase) for _ in range(self.name_length)), haystack)
        values = _unseen(lambda: str(10_000 + draws.below(90_000)), haystack)
        while True:
            yield Chain(next(values), tuple(islice(names, self.num_hops + 1)))

    def _question(self, asked: Chain) -> str:
        return (
            f"Which variables have the value {asked.value}, by themselves or through other variables? "
            f"Name all {len(asked.names)} of them, in the order in which they are set."
        )


def _needles(chain: Chain, draws: Draws) -> list[Needle]:
    """The chain's sentences at depths of their own, each below the one before it."""
    sentences = chain.sentences()
    depths = sorted(draws.fraction() for _ in sentences)
    return [Needle(sentence, depth) for sentence, depth in zip(sentences, depths, strict=True)]


def _unseen(draw: Callable[[], str], haystack: Haystack) -> Iterator[str]:
    """What ``draw`` gives, without end, each once and none that the haystack holds."""
    seen = set[str]()
    while True:
        word = draw()
        if word not in seen and not haystack.contains(word):
            seen.add(word)
            yield word

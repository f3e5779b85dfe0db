"""Tasks whose prompts have an asked number of tokens: what they share, and what those with a haystack share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from swaa.errors import invalid
from swaa.reading import check_choice, check_text
from swaa.tasks.base import CountTokens, Example, Task, digest_of
from swaa.tasks.draws import Draws, spread
from swaa.tasks.fitting import Padding, fit
from swaa.tasks.haystack import HAYSTACKS, Haystack, open_haystack

Material = TypeVar("Material")


@dataclass(frozen=True)
class Order:
    """What one example is asked to be.

    Attributes:
        id: the example's.
        index: its number, from 0.
        length: tokens of the rendered prompt.
        draws: a stream of its own.
        start: where the sequence of depths of all examples of these arguments begins.
        count_tokens: the tokenizer, behind a function.
    """

    id: str
    index: int
    length: int
    draws: Draws
    start: int
    count_tokens: CountTokens

    def depths(self, number: int) -> list[float]:
        """That many depths; those of all examples together are spread evenly over [0, 1)."""
        return [spread(self.start, self.index * number + place) for place in range(number)]


@dataclass(frozen=True)
class SizedTask(Task, Generic[Material]):
    """A task that writes its prompts itself, as long as they shall be."""

    @abstractmethod
    def open(self) -> Material:
        """What all examples are made of, read once; None where there is nothing to read."""

    @abstractmethod
    def make(self, order: Order, material: Material) -> Example:
        """One example, brought to its length."""

    def examples(self, *, length: int, num_examples: int, seed: int, count_tokens: CountTokens) -> Iterator[Example]:
        material = self.open()
        start = Draws("depth", self.name, seed, length).word()
        for index, name in enumerate(self.example_ids(length=length, num_examples=num_examples, seed=seed)):
            draws = Draws(self.name, seed, length, index)
            yield self.make(Order(name, index, length, draws, start, count_tokens), material)

    def fitted(
        self,
        order: Order,
        write: Callable[[Padding], str],
        prefix: str,
        *,
        words_in: Callable[[int], int],
        needs: str,
        mend: str,
    ) -> tuple[Padding, int]:
        """The padding that brings a prompt to its length, and the tokens that the prompt has with it.

        Args:
            order: the example asked for.
            write: the prompt with that much padding.
            prefix: the beginning of the reply.
            words_in: words in the sentence with that index.
            needs: what takes the tokens of the shortest prompt, for the message.
            mend: what to do where that is too long.

        Raises:
            UserError: the prompt is too long without any padding.
        """

        def count(padding: Padding) -> int:
            return order.count_tokens(write(padding), prefix)

        at_least = count(Padding())
        if at_least > order.length:
            accepted = f"at least {at_least} tokens, for {needs}"
            raise invalid(f"length of {self.label}", accepted=accepted, got=order.length, mend=mend)
        return fit(count, order.length, at_least=at_least, words_in=words_in)


@dataclass(frozen=True)
class HaystackTask(SizedTask[Haystack]):
    """A task that hides something in a haystack.

    Attributes:
        haystack: what hides it: ``noise``, ``topics`` or ``file``; see ``swaa.tasks.haystack``.
        haystack_file: path of the text for ``file``, UTF-8; a text shorter than the prompt repeats.
    """

    haystack: str = "noise"
    haystack_file: str | None = None

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_choice(f"{owner}.haystack", self.haystack, HAYSTACKS)
        if self.haystack == "file":
            check_text(f"{owner}.haystack_file", self.haystack_file)
        elif self.haystack_file is not None:
            mend = "Add haystack: file, or remove haystack_file."
            accepted = f"nothing with haystack {self.haystack!r}"
            raise invalid(f"{owner}.haystack_file", accepted=accepted, got=self.haystack_file, mend=mend)

    @property
    def fingerprint(self) -> str:
        return digest_of(self.to_dict() | {"haystack_file": None, "sha256": self.open().sha256})

    def open(self) -> Haystack:
        return open_haystack(self.haystack, self.haystack_file)


def haystack_facts(haystack: Haystack, padding: Padding) -> Mapping[str, object]:
    """For an example's metadata: what the haystack is, and how many rounds through it were begun."""
    rounds = haystack.rounds(padding.num_sentences)
    return {"kind": haystack.kind, "sha256": haystack.sha256, "rounds": rounds}

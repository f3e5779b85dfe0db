"""What a task is: a source of examples, each a prompt, its answer and what a grader looks for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

from swaa.graders import Grader, parse_grader
from swaa.reading import build

CountTokens = Callable[[str, str], int]
"""``(prompt, answer_prefix) -> tokens`` of the whole rendered prompt, chat template and answer prefix
included."""

_LONG = 100  # characters


@dataclass(frozen=True)
class Example:
    """One question with its answer, as text.

    The model reads ``prompt`` in the chat template, then ``answer_prefix`` as the beginning of its own reply;
    what it says after that is the answer. ``answer_prefix + answer`` is the reference reply.

    Attributes:
        id: stable and unique: task, digest of the parameters, length, seed and index.
        prompt: the user's message, without chat template.
        answer_prefix: the beginning of the reply; it belongs to the prompt, hence to the prefill.
        answer: what follows ``answer_prefix`` directly: the text that teacher forcing scores.
        references: the strings that a grader looks for in a generated answer.
        metadata: JSON-able facts about the example, for records and figures; see the task.
        reasoning: what a right chain of thought would say before the answer; empty where the task gives none.
    """

    id: str
    prompt: str
    answer_prefix: str
    answer: str
    references: tuple[str, ...]
    metadata: Mapping[str, object] = field(default_factory=dict)
    reasoning: str = ""


class Task(ABC):
    """A source of examples: a frozen dataclass whose fields are its parameters.

    A new task subclasses this, sets ``name``, checks its fields in ``__post_init__`` (naming them
    ``ClassName.field``), writes :meth:`examples` and carries ``@register_task``.
    """

    name: ClassVar[str]
    """As in YAML."""
    sized: ClassVar[bool] = True
    """Whether prompts have exactly ``length`` tokens. Where not, the examples are what a file holds: all of them are
    offered whatever ``length`` and ``num_examples`` say, and the caller drops, and counts, those that do not fit."""

    @property
    def grader(self) -> Grader:
        """What grades generated answers. A task that lets its user choose has a field of this name."""
        return parse_grader("recall")

    @property
    def left_out(self) -> Mapping[str, int]:
        """Reason -> how many examples of a file the task offers to nobody; empty where nothing is left out."""
        return {}

    @abstractmethod
    def examples(self, *, length: int, num_examples: int, seed: int, count_tokens: CountTokens) -> Iterator[Example]:
        """Make examples, lazily: the first is there before the second is made.

        The same arguments, with the same tokenizer behind ``count_tokens``, give the same bytes everywhere. A
        larger ``num_examples`` begins with the same examples.

        Args:
            length: tokens of the whole rendered prompt; see ``CountTokens``. Whether the model can read that
                many is the caller's to check.
            num_examples: how many.
            seed: of every draw.
            count_tokens: the tokenizer, behind a function.

        Raises:
            UserError: ``length`` is too short for the question alone; the shortest one is named.
        """

    @property
    def fingerprint(self) -> str:
        """A short hash of what the examples depend on beside the arguments of :meth:`examples`.

        A task that reads a file overrides this, so that another text gives other examples.
        """
        return digest_of(self.to_dict())

    def example_ids(self, *, length: int, num_examples: int, seed: int) -> Iterator[str]:
        """The ids of the examples that :meth:`examples` makes with these arguments, without making them; lazily."""
        stem = f"{self.name}-{self.fingerprint}-{length}-{seed}"
        return (f"{stem}-{index}" for index in range(num_examples))

    def check(self) -> None:
        """Read the files that examples are made of, before a model is loaded.

        Raises:
            UserError: a file is missing or malformed; the line is named.
        """
        next(iter(self.example_ids(length=1, num_examples=1, seed=0)), None)

    @property
    def label(self) -> str:
        """The name, with the parameters that are not the default ones: ``needle_multikey(num_keys=8)``."""
        return changed_parameters(self, self.name)

    def to_dict(self) -> dict[str, object]:
        """Plain values: ``name`` and every parameter. ``task_from_dict`` reads them back."""
        parameters = dataclasses.fields(self)  # type: ignore[arg-type]
        return {"name": self.name} | {item.name: _plain(getattr(self, item.name)) for item in parameters}

    @classmethod
    def from_dict(cls, parameters: Mapping[str, object]) -> Self:
        """The task with these parameters; those left out have their defaults.

        Raises:
            UserError: a parameter is unknown (the nearest is suggested) or has a wrong value.
        """
        return build(cls, parameters, cls.name)


@dataclass(frozen=True)
class GradedTask(Task):
    """A task that lets its user choose the grader.

    Attributes:
        grader: what grades generated answers: a grader, its name, or a mapping of its name and parameters.
    """

    grader: Grader = field(default=parse_grader("recall"), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grader", parse_grader(self.grader))

    @property
    def fingerprint(self) -> str:
        """As of :class:`Task`; whoever grades them, examples are the same."""
        parameters = self.to_dict()
        del parameters["grader"]
        return digest_of(parameters)


def digest_of(values: Mapping[str, object]) -> str:
    """Eight hexadecimal digits that stand for JSON-able ``values``, whatever their order."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def changed_parameters(value: object, name: str) -> str:
    """``name(parameter=value, ...)`` with the fields of a dataclass that have not their default; ``name`` if all do."""
    fields = dataclasses.fields(value)  # type: ignore[arg-type]
    changed = [item.name for item in fields if getattr(value, item.name) != _default(item)]
    said = ", ".join(f"{field}={_said(getattr(value, field))}" for field in changed)
    return f"{name}({said})" if said else name


def _default(item: dataclasses.Field[object]) -> object:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def _said(value: object) -> object:
    """A parameter in a label: a grader with its own changed ones, a long text (a template) by beginning and digest."""
    if isinstance(value, Grader):
        return changed_parameters(value, value.name)
    if isinstance(value, str) and len(value) > _LONG:
        return f"{value[: _LONG // 2]}... {digest_of({'text': value})}"
    return _plain(value)


def _plain(value: object) -> object:
    """A parameter as YAML has it."""
    if isinstance(value, Grader):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value

"""What a model answered to one prompt: one JSON line, from which the data are sifted without the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swaa.engine.reply import Ending
from swaa.jsonlines import read_lines, to_line
from swaa.report import Key


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt.

    Attributes:
        text: as it came, without the end-of-sequence token.
        tokens: how many it took, the end-of-sequence token included.
        ending: what ended it: ``end``, ``stop`` or ``cut``.
        reply: the text that is graded and kept: up to the stop string.
        score: from 0 to 1, by the task's grader.
        correct: whether the grader found everything.
        control: whether the reply spells a special token of the tokenizer, such as the beginning of a turn.
    """

    text: str
    tokens: int
    ending: Ending
    reply: str
    score: float
    correct: bool
    control: bool


@dataclass(frozen=True)
class PromptAnswers:
    """A prompt and all answers to it.

    Attributes:
        recipe_hash: of what answered.
        task, length, example: of which task, length and example the prompt is.
        seed: of the examples.
        prompt: the user's message.
        answer_prefix: the beginning of the reply, which was given.
        reference: the reference answer.
        metadata: facts about the example, from its task.
        prompt_tokens: real tokens of the prompt as the model got it.
        answers: in the order of their draws.
        git, versions: the code that ran.
    """

    recipe_hash: str
    task: str
    length: int
    example: str
    seed: int
    prompt: str
    answer_prefix: str
    reference: str
    metadata: Mapping[str, object]
    prompt_tokens: int
    answers: tuple[Answer, ...]
    git: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What identifies the prompt."""
        return Key(self.recipe_hash, self.task, self.length, self.example)

    def to_json(self) -> str:
        """One line of JSON, without the line's end."""
        return to_line(self)

    @classmethod
    def from_json(cls, line: str) -> PromptAnswers:
        """The prompt and answers that a line holds.

        Raises:
            ValueError: the line is not JSON or holds something else.
        """
        values = json.loads(line)
        try:
            return cls(**{**values, "answers": tuple(Answer(**answer) for answer in values["answers"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a prompt with its answers: {error}") from error


def read_answers(path: Path) -> list[PromptAnswers]:
    """The lines of a file, in order; none where there is no file. A last line without its end is left out.

    Raises:
        UserError: another line cannot be read; the line is named.
    """
    mend = "Remove this line to ask its prompt again, or begin anew with --fresh."
    return list(read_lines(path, PromptAnswers.from_json, fault="holds no answers", mend=mend))

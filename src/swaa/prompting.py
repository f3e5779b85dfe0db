"""Ways of asking: directly, with a chain of thought, or with a model's native thinking; and where the answer is.

Chain of thought is one of the five methods of the sliding-window adaptation paper (arXiv 2512.10411): what a model
writes down while decoding is near when it answers. It costs tokens, so whether the answer was reached within
``max_new_tokens`` is part of the result.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from swaa.errors import UserError
from swaa.reading import build, check_choice, check_text, check_whole

DIRECT, CHAIN_OF_THOUGHT, THINKING = "direct", "chain_of_thought", "thinking"
PROMPTINGS = (DIRECT, CHAIN_OF_THOUGHT, THINKING)

INSTRUCTION = (
    "Think step by step before you answer, and write your steps down. Then write a last line that begins with "
    '"Answer:" and gives the answer alone.'
)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_DEFAULTS = {DIRECT: ("", ""), CHAIN_OF_THOUGHT: (INSTRUCTION, "Answer:"), THINKING: ("", "</think>")}


@dataclass(frozen=True)
class Final:
    """What is graded of a reply.

    Attributes:
        text: the final answer.
        reached: whether there is one; False where the reply was cut in the midst of its reasoning.
    """

    text: str
    reached: bool


@dataclass(frozen=True)
class Prompting:
    """A way of asking.

    - ``direct``: the question, and the beginning of the answer where the task gives one.
    - ``chain_of_thought``: the question and ``instruction``; the final answer follows the last ``marker`` that begins a
      line, up to a blank line. A reply that ends by itself without a marker answers in its last line.
    - ``thinking``: the chat template's own switch is on; the final answer follows the last ``marker``.

    Attributes:
        name: one of ``PROMPTINGS``.
        instruction: what is added to the question, after a blank line.
        marker: what the final answer follows; letter case does not matter.
        budget: tokens of reasoning after which ``marker`` is written for the model, so that it answers after all
            (budget forcing, arXiv 2501.19393); None lets it go on until ``max_new_tokens``.
    """

    name: str = DIRECT
    instruction: str = ""
    marker: str = ""
    budget: int | None = None

    texts: ClassVar[tuple[str, ...]] = ("instruction", "marker")

    def __post_init__(self) -> None:
        check_choice("Prompting.name", self.name, PROMPTINGS)
        for field, default in zip(self.texts, _DEFAULTS[self.name], strict=True):
            value = getattr(self, field)
            if value == "":
                object.__setattr__(self, field, default)
            elif not default:
                raise UserError(f"Prompting.{field}: {self.name!r} has none, got {value!r}. Leave it out.")
            else:
                check_text(f"Prompting.{field}", value)
        if self.budget is not None:
            check_whole("Prompting.budget", self.budget, minimum=0)
            if not self.reasons:
                raise UserError(f"Prompting.budget: {self.name!r} does not reason, got {self.budget}. Leave it out.")

    @classmethod
    def parse(cls, value: object, path: str) -> Prompting:
        """The prompting that a name or a mapping of the fields above stands for; ``path`` names it in errors."""
        if isinstance(value, Prompting):
            return value
        if isinstance(value, str):
            check_choice(path, value, PROMPTINGS)
            return cls(value)
        return build(cls, value, path)

    def to_value(self) -> object:
        """Its name where nothing else is told, or a mapping; :meth:`parse` reads both."""
        return self.name if self == Prompting(self.name) else dataclasses.asdict(self)

    @property
    def reasons(self) -> bool:
        """Whether the reply has more than the answer."""
        return self.name != DIRECT

    @property
    def label(self) -> str:
        """As in the names of rows."""
        return "CoT" if self.name == CHAIN_OF_THOUGHT else self.name

    @property
    def thinks(self) -> bool:
        """Whether the chat template's own switch is on."""
        return self.name == THINKING

    def ask(self, question: str) -> str:
        """The user's message."""
        return f"{question}\n\n{self.instruction}" if self.instruction else question

    def reply_prefix(self, answer_prefix: str) -> str:
        """The beginning of the reply that the prompt gives; a model that reasons begins by itself."""
        return "" if self.reasons else answer_prefix

    def closing(self, answer_prefix: str) -> str:
        """What ends the reasoning and begins the answer."""
        return f"\n{self.marker}\n\n{answer_prefix}" if self.thinks else f"\n{self.marker} {answer_prefix}".rstrip()

    def reference_reply(self, answer: str, reasoning: str) -> str:
        """What a model should say: ``reasoning``, then ``answer`` where :meth:`final` finds it.

        Raises:
            UserError: a native thinking has no form that could be written for every model.
        """
        if self.thinks:
            raise UserError("Prompting.name: there is no reference reply for 'thinking'. Distil one: swaa distill.")
        return f"{reasoning}\n{self.marker} {answer.strip()}" if self.reasons else answer

    @property
    def _mark(self) -> re.Pattern[str]:
        """The marker where it counts: that of a chain of thought begins a line, perhaps in bold."""
        if self.thinks:
            return re.compile(re.escape(self.marker), re.IGNORECASE)
        word, colon, rest = self.marker.partition(":")
        bold = rf"[*_]*{colon}" if colon and not rest else ""
        text = f"{re.escape(word)}{bold}" if bold else re.escape(self.marker)
        return re.compile(rf"^[ \t*_#>-]*{text}", re.IGNORECASE | re.MULTILINE)

    def marked(self, tail: str, *, whole: bool) -> bool:
        """Whether the end of a reply holds the marker.

        Args:
            tail: the last part of the reply, long enough for the marker and what stands before it on its line.
            whole: whether that is all of the reply; otherwise its first line may have begun earlier.
        """
        return any(whole or self.thinks or "\n" in tail[: mark.end()] for mark in self._mark.finditer(tail))

    def before_stop(self, reply: str, stop: Sequence[str]) -> str:
        """A reply that a stop string ended, up to that string; reasoning may hold such strings."""
        marks = list(self._mark.finditer(reply)) if self.reasons else []
        start = marks[-1].end() if marks else 0
        answer = reply[start:].lstrip() if marks else reply
        start = len(reply) - len(answer)
        return reply[:start] + up_to_stop(answer, stop)

    def final(self, reply: str, *, cut: bool, prompt: str = "") -> Final:
        """The final answer of a reply.

        Args:
            reply: what was generated.
            cut: whether ``max_new_tokens`` ended it.
            prompt: the rendered prompt, where a chat template may have begun the thinking.
        """
        if not self.reasons:
            return Final(reply, True)
        marks = list(self._mark.finditer(reply))
        if marks:
            after = reply[marks[-1].end() :]
            last = _plain(after if self.thinks else _BLANK_LINE.split(after.lstrip(), maxsplit=1)[0])
            return Final(last, bool(last) or not cut)
        if self.thinks:
            opening = self.marker.replace("/", "")
            thought = opening in reply or prompt.rstrip().endswith(opening)
            return Final("", False) if thought else Final(reply, True)
        if cut:
            return Final("", False)
        return Final(_plain(reply.strip().rpartition("\n")[2]), True)


def _plain(text: str) -> str:
    """``text`` without the bold marks around it, or of what stood before it: ``**Answer:** 42``, ``**Answer: 42**``."""
    text = text.strip()
    if text.count("**") % 2:  # the other one of a pair stands before the text
        text = text.removeprefix("**") if text.startswith("**") else text.removesuffix("**")
    text = text.strip()
    wrapped = text.count("**") == 2 and text.startswith("**") and text.endswith("**")
    return text[2:-2].strip() if wrapped else text


def up_to_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` before the first of the stop strings in it."""
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))]

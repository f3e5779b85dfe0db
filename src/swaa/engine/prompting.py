"""From an example to tokens: the only place that applies a chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swaa.errors import UserError
from swaa.tasks import Example


@dataclass(frozen=True)
class Prompt:
    """An example as the model gets it.

    Attributes:
        text: the rendered prompt, up to where the answer begins.
        ids: its tokens.
        answer_ids: the tokens of the reference answer that follow it; at least one.
    """

    text: str
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def render(tokenizer: Any, prompt: str, answer_prefix: str) -> str:
    """The text that the model continues: the chat template around ``prompt``, then the beginning of the answer.

    A tokenizer without a chat template gets the prompt as it is, a line end, and the beginning of the answer.
    """
    if tokenizer.chat_template is None:
        return f"{prompt}\n{answer_prefix}"
    turn = [{"role": "user", "content": prompt}]
    # "direct" prompting: templates of hybrid models end their thinking at once; others ignore the switch
    head = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return f"{head}{answer_prefix}"


def encode(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a rendered text; special tokens are added only where no chat template has written them."""
    ids: list[int] = tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
    return ids


def count_tokens(tokenizer: Any, prompt: str, answer_prefix: str) -> int:
    """How many tokens the rendered prompt has: what tasks aim their lengths at."""
    return len(encode(tokenizer, render(tokenizer, prompt, answer_prefix)))


def prepare(tokenizer: Any, example: Example) -> Prompt:
    """The tokens of an example's prompt and of its answer.

    The answer's tokens are those that follow the prompt's when both are tokenised as one text. Where that would change
    the prompt's own last token, they are tokenised apart, so that generating and scoring see the same prompt.

    Raises:
        UserError: the answer has no tokens.
    """
    text = render(tokenizer, example.prompt, example.answer_prefix)
    ids = encode(tokenizer, text)
    whole = encode(tokenizer, text + example.answer)
    if whole[: len(ids)] == ids:
        answer = whole[len(ids) :]
    else:
        answer = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    if not answer:
        raise UserError(f"example {example.id}: its answer {example.answer!r} has no tokens. Give it an answer.")
    return Prompt(text, tuple(ids), tuple(answer))

"""From an example to tokens: the only place that applies a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swaa.errors import UserError
from swaa.prompting import Prompting
from swaa.tasks import Example
from swaa.tasks.conversations import Turn


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


def render(tokenizer: Any, prompt: str, answer_prefix: str, prompting: Prompting | None = None) -> str:
    """The text that the model continues: the chat template around ``prompt``, then the beginning of the answer.

    A tokenizer without a chat template gets the prompt as it is, a line end, and the beginning of the answer.

    Raises:
        UserError: the model has no native thinking, and the prompting asks for it.
    """
    prompting = prompting or Prompting()
    if prompting.thinks:
        check_thinks(tokenizer)
    turns = [Turn("user", prompting.ask(prompt))]
    asked = render_turns(tokenizer, turns, reply=True, thinking=prompting.thinks)
    return f"{asked}{prompting.reply_prefix(answer_prefix)}"


def check_thinks(tokenizer: Any) -> None:
    """Refuse native thinking where the chat template knows nothing of it.

    A template either has the switch ``enable_thinking``, or always begins to think (its prompt ends with ``<think>``).
    """
    template = tokenizer.chat_template
    if template is None or not ("enable_thinking" in str(template) or "<think>" in str(template)):
        raise UserError(
            "prompting 'thinking': the model's chat template has no switch for it (enable_thinking). "
            "Use prompting: chain_of_thought, or a model that thinks."
        )


def render_turns(tokenizer: Any, turns: Sequence[Turn], *, reply: bool, thinking: bool = False) -> str:
    """The text of a conversation's first turns: with ``reply``, up to where the assistant's next reply begins.

    Without a chat template every turn is its text and a line end; a reply ends with the end-of-sequence token.
    Templates of models that can think get told whether to; others ignore it.

    Raises:
        UserError: the template refuses these turns (many refuse a system turn), or there is none, a reply must end,
            and the tokenizer has no end-of-sequence token.
    """
    if tokenizer.chat_template is None:
        return "".join(f"{_plain(tokenizer, turn)}\n" for turn in turns)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    options = {"tokenize": False, "add_generation_prompt": reply, "enable_thinking": thinking}
    try:
        text: str = tokenizer.apply_chat_template(messages, **options)
    except Exception as error:
        # a template refuses by raising jinja2's TemplateError, which belongs to no library of ours
        if type(error).__module__.partition(".")[0] != "jinja2":
            raise
        roles = ", ".join(turn.role for turn in turns)
        mend = "Give it turns that it takes."
        raise UserError(f"the chat template refuses the turns {roles} ({error}). {mend}") from error
    return text


def _plain(tokenizer: Any, turn: Turn) -> str:
    return f"{turn.content}{end_of_sequence(tokenizer)}" if turn.role == "assistant" else turn.content


def end_of_sequence(tokenizer: Any) -> str:
    """The end-of-sequence token, as text, for a reply that no chat template ends.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.eos_token is None:
        mend = "Give the tokenizer an eos_token, or a chat template that ends a reply."
        raise UserError(f"nothing ends a reply: no chat template does, and there is no end-of-sequence token. {mend}")
    return str(tokenizer.eos_token)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a rendered text; special tokens are added only where no chat template has written them."""
    ids: list[int] = tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
    return ids


def encode_parts(tokenizer: Any, parts: Sequence[str]) -> list[list[int]]:
    """The tokens of a text that comes in parts, part by part.

    A part's tokens are those that follow the earlier parts' when all are tokenised as one text. Where that would change
    the earlier ones, the part is tokenised apart, and what follows goes by it. So the tokens of a part never depend on
    what comes after it: a prompt has the same ones with its answer and without.
    """
    found: list[list[int]] = []
    text, special = "", tokenizer.chat_template is None
    ids: list[int] = []  # of ``text``
    for part in parts:
        whole: list[int] = tokenizer(text + part, add_special_tokens=special)["input_ids"]
        if whole[: len(ids)] == ids:
            text, new = text + part, whole[len(ids) :]
        else:
            text, special = part, False
            new = whole = tokenizer(part, add_special_tokens=False)["input_ids"]
        ids = whole
        found.append(new)
    return found


def count_tokens(tokenizer: Any, prompt: str, answer_prefix: str) -> int:
    """How many tokens the rendered prompt has: what tasks aim their lengths at."""
    return len(encode(tokenizer, render(tokenizer, prompt, answer_prefix)))


def prepare(tokenizer: Any, example: Example, prompting: Prompting | None = None) -> Prompt:
    """The tokens of an example's prompt, as ``prompting`` asks it (default: directly), and of its answer.

    The answer's tokens are those that follow the prompt's when both are tokenised as one text. Where that would change
    the prompt's own last token, they are tokenised apart, so that generating and scoring see the same prompt.

    Raises:
        UserError: the answer has no tokens.
    """
    text = render(tokenizer, example.prompt, example.answer_prefix, prompting)
    ids, answer = encode_parts(tokenizer, [text, example.answer])
    if not answer:
        raise UserError(f"example {example.id}: its answer {example.answer!r} has no tokens. Give it an answer.")
    return Prompt(text, tuple(ids), tuple(answer))


def evidence_distance(tokenizer: Any, example: Example, prompt: Prompt) -> int | None:
    """Tokens from the beginning of the farthest evidence to the end of the prompt; None where it is not known.

    The first one holds the evidence's first character, and often the space before it.

    Evidence that is farther away than a window is seen by no answer token, unless a layer carries it on.
    """
    spans = example.metadata.get("spans")
    if not isinstance(spans, Sequence) or not spans:
        return None
    start = prompt.text.find(example.prompt)
    if start < 0:  # a template that rewrites the question (trims it, say) moves the offsets
        return None
    before = encode(tokenizer, prompt.text[: start + min(int(span[0]) for span in spans)])
    differs = (place for place, (one, other) in enumerate(zip(before, prompt.ids, strict=False)) if one != other)
    return len(prompt.ids) - next(differs, len(before))  # the token that differs holds the end of what is before, too

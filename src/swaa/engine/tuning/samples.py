"""From a conversation to the tokens that are trained on: which of them are answers, and in which phase each query is.

Tokens are S, of all turns; an answer is a half-open span of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from swaa.engine.prompting import encode_parts, end_of_sequence, render_turns
from swaa.errors import UserError
from swaa.reading import check_choice
from swaa.tasks.conversations import Conversation, Turn

NO_TARGET = -100
"""The target of a token after which nothing is learnt; torch's cross-entropy leaves it out."""
TOO_LONG = ("error", "drop")
_PLAIN = "Plainly said"  # a reply that no template has a reason to rewrite
_MARK = 64  # characters of the longest mark that a prompt may leave open
_NAMED = 3  # ids that an error lists


@dataclass(frozen=True)
class TrainingSample:
    """A conversation as tokens.

    Attributes:
        id: the conversation's.
        ids: the S tokens of all turns, up to the last answer's end.
        answers: half-open spans of ``ids``, in order: the assistant's answers, each with its end-of-turn token.
    """

    id: str
    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        edges = [0, *(edge for span in self.answers for edge in span), len(self.ids)]
        starts = all(start > 0 for start, _ in self.answers)  # something has to predict the first token
        if not self.answers or not starts or edges != sorted(edges) or any(start == end for start, end in self.answers):
            raise ValueError(f"sample {self.id}: {self.answers} are no spans in order of {len(self.ids)} tokens")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_answer_tokens(self) -> int:
        """How many tokens are predicted."""
        return sum(end - start for start, end in self.answers)

    @property
    def targets(self) -> list[int]:
        """S tokens to predict: the next one where that belongs to an answer, else ``NO_TARGET``."""
        targets = [NO_TARGET] * len(self.ids)
        for start, end in self.answers:
            targets[start - 1 : end - 1] = self.ids[start:end]
        return targets

    @property
    def decode_mask(self) -> list[bool]:
        """S truths: the token decodes. It does if it and the next one belong to the same answer.

        An answer's last token is never fed back while that answer is generated: where another turn follows, it is
        prefilled with that turn.
        """
        decodes = [False] * len(self.ids)
        for start, end in self.answers:
            decodes[start : end - 1] = [True] * (end - 1 - start)
        return decodes


def make_sample(tokenizer: Any, conversation: Conversation) -> TrainingSample:
    """The tokens of a conversation, with the chat template around its turns.

    The prompt of a single turn has the very tokens of :func:`swaa.engine.prompting.prepare`. An answer ends with the
    token that ends a turn: the first special token that the template writes after it. What the template writes behind
    that (mostly a line end) opens the next prompt and is not trained on. The end-of-sequence token is appended where
    the template ends the last turn with no special token, and where there is no template.

    Where the template writes a reply otherwise than its prompt for a reply begins (those of models that think often
    cut the thought out of a reply that is given), the reply is trained on as it is given, behind that prompt, with the
    end that the template gives a reply without marks: that is what the model would have said.

    Raises:
        UserError: an answer has no tokens; the template rewrites every reply, or earlier turns when another follows;
            the template refuses the turns; nothing ends the answer. The conversation is named.
    """
    try:
        parts = list(_parts(tokenizer, conversation))
        ids: list[int] = []
        answers = []
        for index, tokens in enumerate(encode_parts(tokenizer, parts)):
            if index % 2 == 1:
                answers.append((len(ids), len(ids) + len(tokens)))
            ids += tokens
    except UserError as error:
        raise UserError(f"conversation {conversation.id}: {error}") from error
    return TrainingSample(conversation.id, tuple(ids), tuple(answers))


def fit(
    samples: Sequence[TrainingSample], max_length: int, too_long: str
) -> tuple[list[TrainingSample], tuple[str, ...]]:
    """The samples of at most ``max_length`` tokens, and the ids of the others.

    Args:
        samples: at least one.
        max_length: tokens.
        too_long: what to do with a longer one: ``error`` or ``drop``.

    Raises:
        UserError: one is too long and ``too_long`` is ``error``, or all are.
    """
    check_choice("too_long", too_long, TOO_LONG)
    kept = [sample for sample in samples if len(sample) <= max_length]
    dropped = [sample for sample in samples if len(sample) > max_length]
    if dropped and (too_long == "error" or not kept):
        longest = max(dropped, key=len)
        names = ", ".join(sample.id for sample in dropped[:_NAMED]) + (", ..." if len(dropped) > _NAMED else "")
        mend = "Raise max_length, up to the model's context"
        mend += ", or say too_long: drop to train on the others." if kept else ", or give shorter conversations."
        raise UserError(
            f"max_length: {len(dropped)} of {len(samples)} samples have more than {max_length} tokens ({names}); "
            f"the longest, {longest.id}, has {len(longest)}. {mend}"
        )
    return kept, tuple(sample.id for sample in dropped)


def _parts(tokenizer: Any, conversation: Conversation) -> Iterator[str]:
    """The text of a conversation as prompt, answer, prompt, answer and so on; an answer with what ends its turn.

    What the template writes around a reply is found by rendering the conversation up to it and with it.
    """
    turns, special = conversation.turns, _special_tokens(tokenizer)
    written = ""  # the text of the turns before, as far as it has been handed out
    places = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    for place, following in pairwise([*places, None]):
        assert place is not None
        content = turns[place].content
        head = render_turns(tokenizer, turns[:place], reply=True)
        whole = render_turns(tokenizer, turns[: place + 1], reply=False)
        prefix = conversation.answer_prefix if following is None else ""
        if not head.startswith(written):
            raise UserError(
                f"the chat template rewrites earlier turns once turn {place} follows, so that they cannot be trained "
                f"on as they are generated. Train each turn as its own conversation."
            )
        reply = _reply(content, whole[len(head) :]) if whole.startswith(head) else None
        if reply is None:
            end = _plain_end(tokenizer, turns[:place])
            if end is None:
                raise UserError(
                    f"turn {place + 1}: the chat template writes this reply otherwise than its prompt for a reply "
                    f"begins ({head[-30:]!r}), and it is not to be seen how it ends one. Train with another template."
                )
            # as history it is rewritten (templates cut thoughts out), but the model was prompted so, and said that
            reply = content if prefix else _continued(head, whole, content)
            whole = head + reply + end
        answer = reply[len(prefix) :] if reply.startswith(prefix) else content[len(prefix) :]
        if not tokenizer(answer, add_special_tokens=False)["input_ids"]:
            raise UserError(f"turn {place + 1}: its answer {answer!r} has no tokens. Give it an answer.")
        yield head[len(written) :] + prefix
        tail = whole[len(head) + len(reply) :]
        if following is not None:
            ahead = render_turns(tokenizer, turns[:following], reply=True)
            if not tail.strip() and ahead.startswith(whole):
                tail += _opening(ahead[len(whole) :], special)  # some templates end a turn only by opening the next
        found = special.search(tail) if special is not None else None
        end = tail[: found.end()] if found else ""
        written = head + reply + end
        yield answer + (end if found or following is not None else end_of_sequence(tokenizer))


def _reply(content: str, rest: str) -> str | None:
    """What the template makes of a reply that ``rest`` begins with: it may trim it, or put white space before it."""
    if rest.startswith(content):
        return content
    core = content.strip()
    start = rest.find(core)
    return rest[: start + len(core)] if start >= 0 and not rest[:start].strip() else None


def _plain_end(tokenizer: Any, turns: Sequence[Turn]) -> str | None:
    """What the template writes behind a reply with no marks in it; None if it does not write such a reply as it is."""
    rendered = render_turns(tokenizer, [*turns, Turn("assistant", _PLAIN)], reply=False)
    _, found, end = rendered.rpartition(_PLAIN)
    return end if found else None


def _continued(head: str, whole: str, content: str) -> str:
    """A reply without its beginning where the prompt ``head`` has written that already (an opened ``<think>``, say)."""
    for size in range(min(len(head), len(content), _MARK), 0, -1):
        rest = content[size:]
        if head.endswith(content[:size]) and content[:size].strip() and rest.strip():
            return rest if whole.startswith(head) and _reply(rest, whole[len(head) :]) is not None else content
    return content


def _opening(text: str, special: re.Pattern[str] | None) -> str:
    """The special token that a text opens with, or nothing."""
    found = special.match(text.lstrip()) if special is not None else None
    return text[: len(text) - len(text.lstrip())] + found.group() if found else ""


def _special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the first special token of a text, the longest where several begin there."""
    names = set(tokenizer.all_special_tokens)
    names |= {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    longest_first = sorted(filter(None, names), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

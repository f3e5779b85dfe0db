"""One answer as it grows, token by token: when it ends, and where its reasoning does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from swaa.engine.batch import Sample
from swaa.recipe import Decoding

Ending = Literal["end", "stop", "cut"]
"""What ended an answer: its end-of-sequence token, a stop string, or ``max_new_tokens``."""
_SLACK = 12
"""Tokens for what may stand around a marker or a stop string: bold marks, and text that shares a token with it."""


class Reply:
    """The answer to one sample.

    A reply that reasons before it answers is not ended by stop strings in its reasoning, nor by blank lines between its
    marker and its answer. Where the prompting has a budget, the reasoning is closed when it is spent, or when the model
    would end without an answer: the marker and the beginning of the answer are written for it, token by token (budget
    forcing, arXiv 2501.19393).

    Args:
        tokenizer: the model's.
        sample: what is answered.
        decoding: its stop strings.
        ends: the end-of-sequence tokens.

    Attributes:
        tokens: so far.
        ending: what ended the answer; ``cut`` until something else does.
        closed: whether the budget closed the reasoning.
    """

    def __init__(self, tokenizer: Any, sample: Sample, decoding: Decoding, ends: Collection[int]) -> None:
        self._tokenizer, self._sample, self._stop, self._ends = tokenizer, sample, decoding.stop, ends
        self._prompting = sample.prompting
        self._answer_from = None if self._prompting.reasons else 0  # the first token of what stop strings may end
        self._forced: list[int] = []
        self.tokens: list[int] = []
        self.ending: Ending = "cut"
        self.closed = False

    @property
    def running(self) -> bool:
        """Whether a token is still to come."""
        return self.ending == "cut"

    def take(self, chosen: int) -> int:
        """Take the token that was chosen; the one that is really written."""
        budget = self._prompting.budget
        if self._answer_from is None and not self._forced and budget is not None:
            spent = len(self.tokens) >= budget
            if spent or chosen in self._ends:
                self.closed = spent
                self._forced = self._closing()
        forced = bool(self._forced)
        token = self._forced.pop(0) if forced else chosen
        self.tokens.append(token)
        if forced:
            self._answer_from = None if self._forced else len(self.tokens)
        elif token in self._ends:
            self.ending = "end"
        elif self._answer_from is None:
            self._answer_from = len(self.tokens) if self._marked() else None
        elif self._prompting.reasons and self._is_blank(self.tokens[self._answer_from]):
            self._answer_from += 1
        elif any(stop in self._tail(stop, self._answer_from) for stop in self._stop):
            self.ending = "stop"
        return token

    @property
    def text(self) -> str:
        """As it came, without end-of-sequence tokens."""
        return self._decode([token for token in self.tokens if token not in self._ends])

    def _marked(self) -> bool:
        size = len(self._prompting.marker.encode()) + _SLACK
        return self._prompting.marked(self._decode(self.tokens[-size:]), whole=len(self.tokens) <= size)

    def _is_blank(self, token: int) -> bool:
        return not self._decode([token]).strip()

    def _tail(self, wanted: str, start: int = 0) -> str:
        """The last tokens from ``start`` on, enough of them to hold ``wanted`` however it was cut into tokens."""
        return self._decode(self.tokens[max(start, len(self.tokens) - len(wanted.encode()) - _SLACK) :])

    def _closing(self) -> list[int]:
        text = self._prompting.closing(self._sample.example.answer_prefix)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens)
        return text

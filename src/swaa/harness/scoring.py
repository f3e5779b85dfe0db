"""Log-likelihoods of continuations: which rows go through the model, and what is read off them.

A request is a context and a continuation. The row that the model reads is both without the last token; the logits at
the context's last token and after predict the continuation. Under a policy the context is the prompt: its tokens
query under the prefill policy, the first prediction of the continuation included, and the continuation's tokens under
the decode policy, as in ``generate()``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Request(NamedTuple):
    """What lm-eval asks: its own triple, so that its search for a batch size takes it, too."""

    strings: tuple[str, str] | None
    """Context and continuation as text: the key of lm-eval's cache. None for a window of a rolling text."""
    context: list[int]
    continuation: list[int]

    @property
    def is_rolling(self) -> bool:
        """Is it a window of a text that is scored as a whole, and so all prompt?"""
        return self.strings is None

    def last(self, number: int) -> Request:
        """The request without the first tokens of its context, so that context and continuation are ``number``."""
        surplus = len(self.context) + len(self.continuation) - number
        return self if surplus <= 0 else self._replace(context=self.context[surplus:])


@dataclass(frozen=True)
class Row:
    """One row of a forward pass, and the requests that are read off it, by their index."""

    request: Request
    """The one of the longest continuation."""
    members: tuple[tuple[int, Request], ...]

    @property
    def tokens(self) -> list[int]:
        """What the model reads."""
        return (self.request.context + self.request.continuation)[:-1]

    def answers(self, logits: Tensor, softmax_dtype: torch.dtype | None) -> Iterator[tuple[int, tuple[float, bool]]]:
        """(index, (log-likelihood in nats, is the continuation the likeliest at each token)) of every member.

        Args:
            logits: ``[S, V]`` of this row; what lies beyond its tokens is padding.
            softmax_dtype: of the log-softmax; None is the logits' own.
        """
        end = len(self.tokens)
        logprobs = logits[end - len(self.request.continuation) : end].log_softmax(-1, dtype=softmax_dtype)
        for index, request in self.members:
            targets = torch.tensor(request.continuation, device=logits.device)
            own = logprobs[-len(targets) :]
            total = own.gather(1, targets[:, None]).sum()
            yield index, (float(total), bool((own.argmax(-1) == targets).all()))


def rows(requests: Sequence[Request], *, by_phase: bool, share: bool) -> list[Row]:
    """The rows that answer the requests, longest first, as lm-eval orders them.

    Requests that read the same tokens share a row, such as choices of one token. Where the phases differ, they must
    agree in where the prompt ends, too.

    Args:
        requests: in the order of their index.
        by_phase: does the policy tell the phases apart?
        share: may requests share a row at all (lm-eval's ``logits_cache``)?
    """
    groups: dict[Any, list[tuple[int, Request]]] = {}
    for index, request in enumerate(requests):
        read = tuple((request.context + request.continuation)[:-1])
        key = (read, len(request.context) if by_phase else None, None if share else index)
        groups.setdefault(key, []).append((index, request))
    found = [Row(max((one for _, one in group), key=_continued), tuple(group)) for group in groups.values()]
    return sorted(found, key=_order)


def padded(chosen: Sequence[Row], device: torch.device) -> Tensor:
    """int64 ``[B, S]``: the tokens of rows, with zeros on the right, which no token before them sees."""
    width = max(len(row.tokens) for row in chosen)
    return torch.tensor([row.tokens + [0] * (width - len(row.tokens)) for row in chosen], device=device)


def prompt_lengths(chosen: Sequence[Row], device: torch.device) -> Tensor:
    """int64 ``[B]``: the tokens of each row that are its prompt. All of a rolling text is."""
    return torch.tensor(
        [len(row.tokens) if row.request.is_rolling else len(row.request.context) for row in chosen], device=device
    )


def _continued(request: Request) -> int:
    return len(request.continuation)


def _order(row: Row) -> tuple[int, list[int]]:
    tokens = row.request.context + row.request.continuation
    return -len(tokens), tokens

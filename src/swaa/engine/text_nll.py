"""How well a model predicts a text: the negative log-likelihood of its tokens, to see what an adaptation breaks."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swaa.errors import UserError
from swaa.hf.ahead import refuse_scored_prompt
from swaa.hf.spec import saved_policy

_BLOCK = 256
"""Positions whose logits are in float32 at a time."""


@dataclass(frozen=True)
class TextNll:
    """The figure and what it is of.

    Attributes:
        nats_per_token: mean over all predicted tokens.
        num_tokens: predicted tokens.
    """

    nats_per_token: float
    num_tokens: int


@dataclass(frozen=True, eq=False)
class TokenText:
    """A text in tokens, to be cut into stretches.

    Attributes:
        lead: int [0] or [1]: the token that the tokenizer begins every text with (BOS), if it does.
        ids: int [N]: the text's own tokens.
    """

    lead: Tensor
    ids: Tensor

    @classmethod
    def of(cls, tokenizer: Any, text: str) -> TokenText:
        """The text as the tokenizer cuts it."""
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
        first = tokenizer(text[:64], verbose=False)["input_ids"][:1]
        begins = bool(first) and first[0] == getattr(tokenizer, "bos_token_id", None)
        return cls(torch.tensor(first if begins else [], dtype=torch.long), ids)

    def room(self, length: int) -> int:
        """Stretches of ``length`` tokens that fit side by side."""
        return len(self.ids) // (length - len(self.lead))

    def stretches(self, number: int, length: int) -> list[Tensor]:
        """``number`` stretches, spread evenly over the text, each int [length]; they begin with the BOS, if any."""
        size = length - len(self.lead)  # tokens of the text in a stretch
        starts = (index * (len(self.ids) - size) // max(1, number - 1) for index in range(number))
        return [torch.cat([self.lead, self.ids[start : start + size]]) for start in starts]


def text_nll(model: Any, tokenizer: Any, text: str, *, num_tokens: int, window: int) -> TextNll:
    """The mean negative log-likelihood of stretches of a text, spread evenly over it, each read from its own first
    token, under whatever policy is on the model. Where the tokenizer begins a text with a token of its own (BOS), so
    does every stretch; it is read and not predicted.

    Args:
        model: in eval mode.
        tokenizer: its own.
        text: what is read.
        num_tokens: tokens read in all; less where the text is shorter.
        window: tokens of a stretch, the BOS among them.

    Raises:
        UserError: the text is shorter than a stretch.
    """
    tokens = TokenText.of(tokenizer, text)
    number = min(max(1, num_tokens // window), tokens.room(window))
    if number == 0:
        size = window - len(tokens.lead)
        raise UserError(f"the text has {len(tokens.ids)} tokens, and a stretch of {size} is wanted. Use a longer text.")
    total = sum(float(token_nll(model, row).sum()) for row in tokens.stretches(number, window))
    count = number * (window - 1)
    return TextNll(total / count, count)


def token_nll(model: Any, ids: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """The negative log-likelihood of each token but the first, given those before it, under the prefill policy.

    The tokens are one prompt: none of them decodes. So a policy that looks ahead in the prompt is refused.

    Args:
        model: in eval mode.
        ids: int [S].
        chunk_size: tokens read at a time, after a cache of the earlier ones, where there are more of them: it bounds
            the logits that are held, and takes a policy on the model. None reads all in one forward pass.

    Returns:
        float64 [S - 1] on the CPU, in nats.
    """
    refuse_scored_prompt(saved_policy(model.config), "the likelihood of a text")
    row, size = ids.unsqueeze(0).to(model.device), len(ids)
    if chunk_size is None or size <= chunk_size:
        with torch.no_grad():
            return _nll(model(input_ids=row, use_cache=False).logits[0, :-1], row[0, 1:])
    parts, cache = [], None
    prompt = torch.tensor([size], device=row.device)
    for start in range(0, size - 1, chunk_size):  # the last token predicts nothing
        piece = row[:, start : min(start + chunk_size, size - 1)]
        with torch.no_grad():
            out = model(input_ids=piece, past_key_values=cache, use_cache=True, prompt_lengths=prompt)
        cache = out.past_key_values
        parts.append(_nll(out.logits[0], row[0, start + 1 : start + 1 + piece.shape[1]]))
    return torch.cat(parts)


def _nll(logits_SV: Tensor, targets_S: Tensor) -> Tensor:
    """float64 [S] on the CPU. A block of positions at a time: in float32, all of them are twice the model's own."""
    pairs = zip(logits_SV.split(_BLOCK), targets_S.split(_BLOCK), strict=True)
    blocks = [F.cross_entropy(logits.float(), targets, reduction="none") for logits, targets in pairs]
    return torch.cat(blocks).double().cpu()


def read_text(file: str | None, *, field: str = "evaluation.text_file") -> str:
    """A text file's content; None is the documentation that comes with Python.

    Raises:
        UserError: the file, which the ``field`` names, cannot be read as UTF-8 text.
    """
    if file is None:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{field}: {file}: cannot be read as UTF-8 text ({error}).") from error

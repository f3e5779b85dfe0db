"""How well a model predicts a text: the negative log-likelihood of its tokens, to see what an adaptation breaks."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from swaa.errors import UserError


@dataclass(frozen=True)
class TextNll:
    """The figure and what it is of.

    Attributes:
        nats_per_token: mean over all predicted tokens.
        num_tokens: predicted tokens.
    """

    nats_per_token: float
    num_tokens: int


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
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    lead = _bos(tokenizer, text)
    size = window - len(lead)  # tokens of the text in a stretch
    stretches = min(max(1, num_tokens // window), len(ids) // size)
    if stretches == 0:
        raise UserError(f"the text has {len(ids)} tokens, and a stretch of {size} is wanted. Use a longer text.")
    total = count = 0.0
    for index in range(stretches):
        start = index * (len(ids) - size) // max(1, stretches - 1)
        row = torch.cat([lead, ids[start : start + size]]).unsqueeze(0).to(model.device)
        with torch.no_grad():
            logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, row[0, 1:], reduction="sum"))
        count += window - 1
    return TextNll(total / count, int(count))


def _bos(tokenizer: Any, text: str) -> torch.Tensor:
    """The token that the tokenizer begins every text with, or none."""
    first = tokenizer(text[:64], verbose=False)["input_ids"][:1]
    begins = bool(first) and first[0] == getattr(tokenizer, "bos_token_id", None)
    return torch.tensor(first if begins else [], dtype=torch.long)


def read_text(file: str | None) -> str:
    """A text file's content; None is the documentation that comes with Python.

    Raises:
        UserError: the file cannot be read as UTF-8 text.
    """
    if file is None:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"evaluation.text_file: {file}: cannot be read as UTF-8 text ({error}).") from error

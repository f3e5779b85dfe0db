"""Token rows and padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf.zoo import WORDS

CLOSE = {"atol": 3e-4, "rtol": 1e-3}
"""Float32 logits by two paths."""


def rows_of(*lengths: int, seed: int = 1) -> list[Tensor]:
    """Random rows of tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, WORDS, (length,), generator=generator) for length in lengths]


def padded(rows: Sequence[Tensor], *, side: str = "left", extra: int = 0) -> dict[str, Tensor]:
    """Rows, padded to the longest and ``extra`` slots more."""
    width = max(map(len, rows)) + extra
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, at] = row
        mask[index, at] = 1
    return {"input_ids": ids, "attention_mask": mask}

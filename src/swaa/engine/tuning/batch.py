"""Training samples as tensors: one a row, padded on the right, or several packed into one row.

Shapes: B rows, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swaa.engine.tuning.samples import NO_TARGET, TrainingSample


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """What runs in one forward and backward pass.

    Attributes:
        input_ids: ``[B, S]`` tokens.
        attention_mask: ``[B, S]`` 1 at real tokens; None where all are, as in a packed row.
        position_ids: ``[B, S]`` index of the token among its sample's; a packed sample begins at 0 again. Padding has
            its sample's last index.
        decode_mask: ``[B, S]`` bool: the token is a query of the decode phase.
        targets: ``[B, S]`` the token to predict, or ``NO_TARGET``.
        sample_ids: of the samples, row by row.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    decode_mask: Tensor
    targets: Tensor
    sample_ids: tuple[str, ...]

    @property
    def answer_tokens(self) -> int:
        """How many tokens are predicted."""
        return int((self.targets != NO_TARGET).sum())

    @property
    def num_tokens(self) -> int:
        """How many tokens there are, padding not counted."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: torch.device | str, **options: Any) -> TrainingBatch:
        """The batch on another device; the options are those of ``Tensor.to``. (Lightning moves what has this.)"""
        names = ("input_ids", "position_ids", "decode_mask", "targets")
        moved = {name: getattr(self, name).to(device, **options) for name in names}
        mask = self.attention_mask
        return replace(self, attention_mask=None if mask is None else mask.to(device, **options), **moved)


def collate(rows: Sequence[Sequence[TrainingSample]], *, pad: int) -> TrainingBatch:
    """Rows of samples as one batch.

    Args:
        rows: B rows: of one sample each, padded on the right with the token ``pad``; or of several each, one behind
            another, in rows of the same number of tokens.
        pad: a token; which one does not matter.

    Raises:
        ValueError: there is no row, a row has no sample, or packed rows differ in their tokens.
    """
    if not rows or not all(rows):
        raise ValueError("collate: expected rows of at least one sample each")
    widths = [sum(map(len, row)) for row in rows]
    width = max(widths)
    padded = min(widths) < width
    if padded and any(len(row) > 1 for row in rows):
        raise ValueError(f"collate: expected packed rows of one length, got {widths}: padding is for single samples")
    ids = [_row((token for sample in row for token in sample.ids), width, pad) for row in rows]
    positions = [[index for sample in row for index in range(len(sample))] for row in rows]
    decodes = [_row((truth for sample in row for truth in sample.decode_mask), width, False) for row in rows]
    # each sample's own last token has no target, so that none crosses into the next document
    targets = [_row((token for sample in row for token in sample.targets), width, NO_TARGET) for row in rows]
    mask = torch.tensor([[1] * real + [0] * (width - real) for real in widths]) if padded else None
    return TrainingBatch(
        input_ids=torch.tensor(ids),
        attention_mask=mask,
        position_ids=torch.tensor([_row(row, width, row[-1]) for row in positions]),
        decode_mask=torch.tensor(decodes),
        targets=torch.tensor(targets),
        sample_ids=tuple(sample.id for row in rows for sample in row),
    )


def _row(values: Any, width: int, fill: int) -> list[int]:
    """The values, filled up at the end."""
    row = list(values)
    return row + [fill] * (width - len(row))

"""Masks as pictures: each distinct effective policy on a grid small enough to look at, as plain data."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from swaa.compiler.cofactors import certain, choices, possible
from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.errors import invalid
from swaa.policies import AttentionPolicy, LayerPolicy, bind

MOST_TOKENS = 8192
"""The longest sequence that is drawn; its dense mask takes 64 MB."""


def fitting_length(policy: AttentionPolicy) -> int:
    """A sequence length, in tokens, at which the policy's largest parameter can be seen at work."""
    numbers = [
        value
        for _, behaviour in policy.normal_form.cells
        for split in (behaviour.prefill, behaviour.decode)
        for _, formula in split.cells
        for atom in formula.atoms
        for value in atom.parameters().values()
        if isinstance(value, int) and not isinstance(value, bool)
    ]
    return min(MOST_TOKENS, max(24, 2 * max(numbers, default=0)))


def mask_pictures(
    policy: AttentionPolicy,
    *,
    num_layers: int,
    num_heads: int,
    length: int,
    prompt_length: int,
    resolution: int,
) -> list[dict[str, Any]]:
    """One picture for every distinct effective policy of layers, and of heads where they differ.

    Args:
        length: tokens of the sequence; the queries from ``prompt_length`` on are decoded.
        resolution: the most cells per side; longer sequences are averaged into cells.

    Returns:
        JSON-able pictures: ``layers``, ``heads`` (None where all are alike), ``prefill`` and ``decode`` (the policies
        as Python), ``note`` (what a reader must know, or None), ``length``, ``prompt_length``, and ``cells``: rows of
        queries with the visible share of each cell of keys, 0 to 1, of the pairs that are not in the future or looked
        ahead to; None where there is none.

    Raises:
        UserError: the lengths make no picture, or the policy names a layer or head that the model lacks.
    """
    if not 1 <= length <= MOST_TOKENS:
        mend = "Draw a shorter sequence; masks of long ones look alike."
        raise invalid("seq_len", accepted=f"1 to {MOST_TOKENS} tokens", got=length, mend=mend)
    if not 0 <= prompt_length <= length:
        raise invalid("prompt_len", accepted=f"0 to seq_len ({length})", got=prompt_length, mend="Make it shorter.")
    layout = TokenLayout.contiguous(length, prompt_lengths=prompt_length)
    size = -(-length // resolution)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    pictures = []
    for layer, indices in bind(policy, num_layers, num_heads).distinct.items():
        for heads, head in layer.groups:
            alone = LayerPolicy(((heads, head),), num_heads)
            readings = (possible(alone), certain(alone)) if head.by_content else (alone,)
            masks = [dense_mask(reading, layout)[0, 0] for reading in readings]
            visible = _cells(torch.stack(masks).float().mean(0), size)
            pairs = _cells((masks[0] | causal).float(), size)
            share = torch.where(pairs > 0, visible / pairs.clamp(min=1), torch.nan)
            pictures.append(
                {
                    "layers": list(indices),
                    "heads": list(heads) if layer.by_head else None,
                    "prefill": alone.describe("prefill"),
                    "decode": alone.describe("decode"),
                    "note": f"half visible: {reason}" if (reason := _depends_on(alone)) else None,
                    "length": length,
                    "prompt_length": prompt_length,
                    "cells": [[None if cell != cell else cell for cell in row] for row in share.tolist()],
                }
            )
    return pictures


def _depends_on(layer: LayerPolicy) -> str | None:
    """Why it cannot be told what a policy shows; pairs that may be visible are then drawn as half visible."""
    names = ", ".join(repr(choice) for choice in choices(layer))
    return f"what {names} chooses by content" if names else None


def _cells(grid: torch.Tensor, size: int) -> torch.Tensor:
    """Sums over squares of ``size`` tokens."""
    short = -len(grid) % size
    padded = F.pad(grid, (0, short, 0, short))
    summed: torch.Tensor = padded.unflatten(0, (-1, size)).unflatten(-1, (-1, size)).sum((1, 3))
    return summed

"""How far a policy looks ahead: may a prompt be read in pieces?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swaa.compiler.evaluate import evaluate
from swaa.compiler.interval import Interval, UnknownOperation, untraced
from swaa.policies import AttentionPolicy


@untraced
def looks_across(policy: AttentionPolicy, split_B: Tensor, end_B: Tensor) -> Tensor:
    """May a query before ``split`` see a key from ``split`` on, in a prompt of ``end`` tokens?

    Then the tokens before the split have to be read together with those behind it.

    Args:
        split_B: int64 logical positions.
        end_B: int64 lengths of the prompts.

    Returns:
        bool [B], on any layer and head. Never false where it is so; exact for what intervals know.
    """
    before, behind = (
        Interval(torch.zeros_like(split_B), (split_B - 1).clamp(min=0)),
        Interval(split_B, (end_B - 1).maximum(split_B)),
    )
    across_B = torch.zeros_like(split_B, dtype=torch.bool)
    for _, behaviour in policy.normal_form.cells:
        for _, formula in behaviour.prefill.cells:
            try:
                truth: Any = evaluate(formula.beyond, before, behind)
            except UnknownOperation:
                truth = True
            across_B = across_B | (truth if isinstance(truth, bool) else truth.may)
    return across_B & (split_B > 0) & (split_B < end_B)

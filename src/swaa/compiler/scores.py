"""Score modifications on the tensors of one layout: for the plain-tensor kernels, and as FlexAttention's ``score_mod``.

Modifications see logical positions, and only pairs with ``0 <= k <= q``, so that no author meets a distance below 0. Of
a later key, which some policies show, they are asked as if it were the query: as far ahead counts as far back.

Shape suffixes: B samples (1 where all are laid out alike), H heads, Q queries, K keys.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from swaa.compiler.layout import TokenLayout
from swaa.errors import UserError
from swaa.policies.scores import LayerScores, ScoreMod

ScoreModFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class PlacedScores:
    """The modifications of a layer with their numbers as tensors, and the positions of one layout.

    Args:
        scores: of the heads that attention is computed for.
        dtype: of their numbers: that of the scores.
    """

    def __init__(self, scores: LayerScores, layout: TokenLayout, dtype: torch.dtype) -> None:
        check_scores(scores)
        device = layout.device
        self.query_positions_BQ = layout.query_positions_BQ
        self.key_positions_BK = layout.key_positions_BK
        self._number_H = torch.tensor(scores.heads, device=device)
        self._groups = [
            (_membership(heads, len(scores.heads), device), [_with_tensors(mod, dtype, device) for mod in mods])
            for heads, mods in ((heads, scores.bound(mods)) for heads, mods in scores.changes)
        ]

    def modify(self, score: Tensor, q: Tensor, k: Tensor, head: Tensor) -> Tensor:
        """The new scores for positions and heads that broadcast against them; ``head`` counts the layer's own heads."""
        q, k = q.clamp(min=0), k.clamp(min=0)
        q, k = torch.maximum(q, k), torch.minimum(q, k)
        number = self._number_H[head]
        result = score
        for membership_H, mods in self._groups:
            changed = score
            for mod in mods:
                changed = mod.modify(changed, q, k, number)
            result = changed if len(self._groups) == 1 else torch.where(membership_H[head], changed, result)
        return result.to(score.dtype)

    def on_grid(self, score_BHQK: Tensor) -> Tensor:
        """The new scores of all queries and keys of the layout."""
        heads_H11 = torch.arange(score_BHQK.shape[1], device=score_BHQK.device).view(-1, 1, 1)
        q_B1Q1 = self.query_positions_BQ[:, None, :, None]
        return self.modify(score_BHQK, q_B1Q1, self.key_positions_BK[:, None, None, :], heads_H11)


def score_mod(placed: PlacedScores) -> ScoreModFunction:
    """``score_mod(score, b, h, q_index, k_index)`` over slots, for FlexAttention."""
    query_positions_BQ, key_positions_BK = placed.query_positions_BQ, placed.key_positions_BK
    batch = max(len(query_positions_BQ), len(key_positions_BK))
    query_positions_BQ = query_positions_BQ.expand(batch, -1).contiguous()
    key_positions_BK = key_positions_BK.expand(batch, -1).contiguous()

    def change(score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        row = b if batch > 1 else torch.zeros_like(b)
        return placed.modify(score, query_positions_BQ[row, q_index], key_positions_BK[row, k_index], h)

    return change


def joined_sinks(
    scores: LayerScores | None, own_H: Tensor | None, learned_H: Tensor | None, device: torch.device
) -> Tensor | None:
    """One logit for each head that does what all its sink logits do together; None where no head has any.

    Args:
        own_H: those of the model.
        learned_H: the parameter for the learned ones; None takes the values that they begin with.
    """
    if scores is None or not any(scores.sinks):
        return own_H
    fixed = scores.sinks if learned_H is None else scores.fixed_sinks
    logits = [] if own_H is None else [own_H.float()]
    for place in range(max(map(len, fixed))):
        values = [of_head[place] if place < len(of_head) else float("-inf") for of_head in fixed]
        logits.append(torch.tensor(values, device=device))
    if learned_H is not None and any(scores.learned_sinks):
        learns_H = torch.tensor([bool(values) for values in scores.learned_sinks], device=device)
        logits.append(learned_H.float().masked_fill(~learns_H, float("-inf")))
    return logits[0] if len(logits) == 1 else torch.logsumexp(torch.stack(logits), 0)


def check_scores(scores: LayerScores) -> None:
    """Refuse modifications that fail on tensors, before anything is computed with them.

    Raises:
        UserError: names the modification, and what it raised or returned.
    """
    for _, mods in scores.changes:
        for mod in scores.bound(mods):
            _check_mod(mod, scores.model_heads)


@lru_cache(maxsize=1024)
def _check_mod(mod: ScoreMod, num_heads: int) -> None:
    few = torch.arange(3)
    score = torch.zeros(1, num_heads, 3, 3)
    heads = torch.arange(num_heads).view(-1, 1, 1)
    owner = f"{type(mod).__name__}.modify"
    k = torch.minimum(few, few.unsqueeze(-1))
    try:
        changed: Any = _with_tensors(mod, score.dtype, score.device).modify(score, few.unsqueeze(-1), k, heads)
    except Exception as error:  # whatever the author's code raises is the author's to mend
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise UserError(
            f"{owner}: fails on tensors ({reason}). Use operators and methods of tensors; no if, and, or, min and max."
        ) from error
    if not isinstance(changed, Tensor) or changed.shape != score.shape or not changed.is_floating_point():
        got = f"{changed.dtype} of {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise UserError(
            f"{owner}: expected a new score for each of {tuple(score.shape)} pairs, got {got}. Return for example "
            f"score - (q - k)."
        )
    if not bool(changed.isfinite().all()):
        raise UserError(
            f"{owner}: gives a score that is not finite for a query and key among the first three tokens. Scores "
            f"change; what is hidden is the policy's to say."
        )


def _with_tensors(mod: ScoreMod, dtype: torch.dtype, device: torch.device) -> ScoreMod:
    """The modification with its numbers as tensors: baked into a compiled kernel, each value would compile anew."""
    with_tensors = copy.copy(mod)  # not replace(): the fields would be validated as Python numbers
    for name, value in mod.parameters().items():
        if isinstance(value, bool | str) or value is None:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        whole = all(isinstance(number, int) for number in numbers)
        tensor = torch.tensor(value, dtype=torch.int64 if whole else dtype, device=device)
        object.__setattr__(with_tensors, name, tensor)
    return with_tensors


def _membership(heads: tuple[int, ...], num_heads: int, device: torch.device) -> Tensor:
    member = torch.zeros(num_heads, dtype=torch.bool)
    member[list(heads)] = True
    return member.to(device)

"""Rotary positions that count the slots of a cache: exact on every kernel, by one head that is twice as wide.

Whether a key is a sink does not depend on the query. So each query is written down twice, as it is and turned back to
the position from which it looks at sinks, and each key in the half that it is to be multiplied with, with zeros in
the other: one product then gives the right score for either kind.

Shape suffixes: B samples (of positions: 1 where all are laid out alike), H query heads, G key-value heads, Q queries,
K keys, D head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from swaa.compiler.layout import TokenLayout
from swaa.policies.scores.cache_positions import CachePositions

TurnBack = Callable[[Tensor, Tensor], Tensor]
"""(query_BHQD, how many positions back, int [B, Q]) -> the query as if it stood there."""


def at_cache_positions(
    query_BHQD: Tensor, key_BGKD: Tensor, layout: TokenLayout, positions: CachePositions, turn_back: TurnBack
) -> tuple[Tensor, Tensor]:
    """Queries [B, H, Q, 2D] and keys [B, G, K, 2D] whose products are the scores at the positions of a cache.

    The scale of attention stays that of D.
    """
    back_BQ = (layout.query_positions_BQ - positions.last_position).clamp(min=0)
    turned_BHQD = turn_back(query_BHQD, back_BQ.expand(len(query_BHQD), -1))
    is_sink_B1K1 = (layout.key_positions_BK < positions.num_sinks)[:, None, :, None]
    keys = (key_BGKD.masked_fill(is_sink_B1K1, 0), key_BGKD.masked_fill(~is_sink_B1K1, 0))
    return torch.cat([query_BHQD, turned_BHQD], -1), torch.cat(keys, -1)

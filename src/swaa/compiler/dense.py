"""The dense reading: the mask as a boolean tensor, for short sequences, drawings and as the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from swaa.compiler.evaluate import check_predicates, evaluate_ahead, evaluate_phases
from swaa.compiler.layout import TokenLayout
from swaa.policies.bound import LayerPolicy


def dense_mask(layer: LayerPolicy, layout: TokenLayout) -> Tensor:
    """Which query sees which key, under the layer's policy, causality, padding and packing.

    Returns:
        bool [B, H, Q, K]; B is 1 where all samples are laid out alike, H is 1 where heads do not differ.
    """
    check_predicates(layer)
    q_BQ1 = layout.query_positions_BQ.unsqueeze(-1)
    k_B1K = layout.key_positions_BK.unsqueeze(-2)
    own_BQK = k_B1K >= 0
    if layout.query_documents_BQ is not None and layout.key_documents_BK is not None:
        own_BQK = own_BQK & (layout.query_documents_BQ.unsqueeze(-1) == layout.key_documents_BK.unsqueeze(-2))
    bound_BQK = own_BQK & (k_B1K <= q_BQ1)
    decodes_BQ1 = layout.query_decodes_BQ.unsqueeze(-1)
    masks = [bound_BQK & evaluate_phases(*head.formulas, q_BQ1, k_B1K, decodes_BQ1) for _, head in layer.groups]
    if layer.looks_ahead:
        limits_BQ1 = layout.query_limits_BQ.unsqueeze(-1)
        ahead = [evaluate_ahead(head.prefill.beyond, q_BQ1, k_B1K, limits_BQ1) for _, head in layer.groups]
        masks = [mask | (own_BQK & later) for mask, later in zip(masks, ahead, strict=True)]
    if not layer.by_head:
        shared: Tensor = masks[0].unsqueeze(1)
        return shared
    group_of_head = torch.empty(layer.num_heads, dtype=torch.long, device=layout.device)
    for group, (heads, _) in enumerate(layer.groups):
        group_of_head[list(heads)] = group
    by_group: Tensor = torch.stack(torch.broadcast_tensors(*masks), dim=1)
    return by_group[:, group_of_head]

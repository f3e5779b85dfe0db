"""``BlockMask`` from interval verdicts: O(blocks) work and memory where torch's own builder needs O(Q x K)."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from swaa.compiler.interval import UnknownOperation
from swaa.compiler.kernel import mask_mod
from swaa.compiler.layout import TokenLayout
from swaa.compiler.refine import block_verdicts
from swaa.policies.bound import LayerPolicy

log = logging.getLogger(__name__)

DEFAULT_BLOCK_SIZE = 128


def block_mask(
    layer: LayerPolicy,
    layout: TokenLayout,
    *,
    block_size: int | tuple[int, int] = DEFAULT_BLOCK_SIZE,
    with_backward: bool = False,
) -> BlockMask:
    """The FlexAttention block mask of a layer's policy under a layout.

    Args:
        block_size: slots of a block, one int or *(queries, keys)*.
        with_backward: also list the query blocks of each key block, as FlexAttention's backward pass needs.

    Returns:
        A BlockMask over [B, H, Q, K]: B is None where all samples are laid out alike, H where heads do not differ.
        Its lists of partial and full blocks equal those of :func:`torch.nn.attention.flex_attention.create_block_mask`.
    """
    sizes = (block_size, block_size) if isinstance(block_size, int) else block_size
    predicate = mask_mod(layer, layout)
    try:
        verdicts = [block_verdicts(head, layout, sizes) for _, head in layer.groups]
    except UnknownOperation as reason:
        _say_once(layer.describe("prefill"), str(reason))
        return _torch_block_mask(layer, layout, sizes)
    group_of_head = [0]
    if layer.by_head:
        group_of_head = [
            next(group for group, (heads, _) in enumerate(layer.groups) if head in heads)
            for head in range(layer.num_heads)
        ]
    full = _ordered(torch.stack([verdicts[group].full_BMN for group in group_of_head], 1))
    partial = _ordered(torch.stack([verdicts[group].partial_BMN for group in group_of_head], 1))
    return BlockMask.from_kv_blocks(
        *partial,
        *full,
        BLOCK_SIZE=sizes,
        mask_mod=predicate,
        seq_lengths=(layout.query_length, layout.key_length),
        compute_q_blocks=with_backward,
    )


@functools.cache
def _say_once(policy: str, reason: str) -> None:
    log.warning("%s: %s; its block mask is built by torch's create_block_mask", policy, reason)


def _torch_block_mask(layer: LayerPolicy, layout: TokenLayout, sizes: tuple[int, int]) -> BlockMask:
    return create_block_mask(
        mask_mod(layer, layout),
        B=layout.batch_size if layout.batch_size > 1 else None,
        H=layer.num_heads if layer.by_head else None,
        Q_LEN=layout.query_length,
        KV_LEN=layout.key_length,
        device=str(layout.device),
        BLOCK_SIZE=sizes,
    )


def _ordered(blocks_BHMN: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are set, and their columns in order (the rest of the row holds the others)."""
    counts = blocks_BHMN.sum(-1, dtype=torch.int32)
    columns = torch.argsort(blocks_BHMN.to(torch.int8), dim=-1, descending=True, stable=True)
    return counts, columns.to(torch.int32).contiguous()

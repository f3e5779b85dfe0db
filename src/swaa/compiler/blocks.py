"""``BlockMask`` from interval verdicts: O(blocks) work and memory where torch's own builder needs O(Q x K)."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from swaa.compiler.interval import UnknownOperation
from swaa.compiler.kernel import MaskMod, mask_mod
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
        visible_BHMN, full_BHMN = layer_verdicts(layer, layout, sizes)
    except UnknownOperation as reason:
        batch = layout.batch_size if layout.batch_size > 1 else None
        heads = layer.num_heads if layer.by_head else None
        return torch_block_mask(layer, str(reason), predicate, batch, heads, layout, sizes)
    return block_mask_of(visible_BHMN, full_BHMN, predicate, layout, sizes, with_backward=with_backward)


def layer_verdicts(layer: LayerPolicy, layout: TokenLayout, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which blocks hold a visible pair, and which nothing else, bool [B, H, M, N]; H is 1 where heads do not differ.

    Raises:
        UnknownOperation: a predicate uses an operation that intervals do not know.
    """
    verdicts = [block_verdicts(head, layout, sizes) for _, head in layer.groups]
    group_of_head = [0]
    if layer.by_head:
        group_of_head = [
            next(group for group, (heads, _) in enumerate(layer.groups) if head in heads)
            for head in range(layer.num_heads)
        ]
    visible = torch.stack([verdicts[group].visible_BMN for group in group_of_head], 1)
    return visible, torch.stack([verdicts[group].full_BMN for group in group_of_head], 1)


def block_mask_of(
    visible_BHMN: Tensor,
    full_BHMN: Tensor,
    predicate: MaskMod,
    layout: TokenLayout,
    sizes: tuple[int, int],
    *,
    with_backward: bool,
) -> BlockMask:
    """The block mask with these verdicts."""
    return BlockMask.from_kv_blocks(
        *_ordered(visible_BHMN & ~full_BHMN),
        *_ordered(full_BHMN),
        BLOCK_SIZE=sizes,
        mask_mod=predicate,
        seq_lengths=(layout.query_length, layout.key_length),
        compute_q_blocks=with_backward,
    )


@functools.cache
def _say_once(policy: str, reason: str) -> None:
    log.warning("%s: %s; its block mask is built by torch's create_block_mask", policy, reason)


def torch_block_mask(
    layer: LayerPolicy,
    reason: str,
    predicate: MaskMod,
    batch: int | None,
    heads: int | None,
    layout: TokenLayout,
    sizes: tuple[int, int],
) -> BlockMask:
    """The block mask from all single pairs, where intervals cannot tell for the reason given; said in the log."""
    _say_once(layer.describe("prefill"), reason)
    return create_block_mask(
        predicate,
        B=batch,
        H=heads,
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

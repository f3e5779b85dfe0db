"""Sink logits in FlexAttention: one more key slot, which every query sees, whose score is the logit and value zero.

FlexAttention could also return log-sum-exps, from which the share of a sink follows; on CPU it does not (torch 2.13).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from swaa.compiler.scores import ScoreModFunction


def with_sink_slot(block_mask: BlockMask) -> BlockMask:
    """The mask with one more block of keys behind the others, of which all queries see the first slot, and no other."""
    queries, keys = block_mask.seq_lengths
    query_block, key_block = block_mask.BLOCK_SIZE
    inner = block_mask.mask_mod

    def visible(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        seen: Tensor = inner(b, h, q_index, k_index.clamp(max=keys - 1)) & (k_index < keys)
        return seen | (k_index == keys)

    columns = block_mask.kv_indices.shape[-1]
    counts = block_mask.kv_num_blocks
    indices = F.pad(block_mask.kv_indices, (0, 1))
    last = torch.full_like(counts, columns).unsqueeze(-1)
    indices = indices.scatter(-1, counts.unsqueeze(-1).long(), last)
    full = block_mask.full_kv_indices
    return BlockMask.from_kv_blocks(
        counts + 1,
        indices,
        block_mask.full_kv_num_blocks,
        None if full is None else F.pad(full, (0, 1)),
        BLOCK_SIZE=(query_block, key_block),
        mask_mod=visible,
        seq_lengths=(queries, keys + key_block),
        compute_q_blocks=block_mask.q_indices is not None,
    )


def sink_score_mod(inner: ScoreModFunction | None, slot: int, logits_H: Tensor) -> ScoreModFunction:
    """The score modification that gives the slot its logits, and leaves the others to ``inner``."""
    # a length is no constant of the kernel: it would compile once more for each
    at = torch.tensor(slot, device=logits_H.device)

    def change(score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        changed = score if inner is None else inner(score, b, h, q_index, torch.minimum(k_index, at - 1))
        return torch.where(k_index == at, logits_H[h].to(score.dtype), changed)

    return change

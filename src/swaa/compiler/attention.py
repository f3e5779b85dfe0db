"""Attention under a compiled policy: the kernels of :mod:`swaa.compiler.plan`, all with equal results.

A query that may see nothing (padding, or a policy that leaves it nothing) gets zeros, on every kernel.

Shape suffixes: B samples, H query heads, G key-value heads, Q queries, K keys, D head size.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from swaa.compiler.scores import PlacedScores, ScoreModFunction, score_mod
from swaa.compiler.sinkslot import sink_score_mod, with_sink_slot

_GRAPHS = 256  # kernels kept for distinct policies' structures and lengths; past torch's own limit of 8 Flex is unfused


def causal_attention(
    query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, *, scale: float | None, dropout: float = 0.0
) -> Tensor:
    """Plain causal attention on fused kernels, without a mask; the queries are the last of the keys. [B, H, Q, D]."""
    num_queries, num_keys = query_BHQD.shape[2], key_BGKD.shape[2]
    grouped = key_BGKD.shape[1] != query_BHQD.shape[1]
    if num_queries in (1, num_keys):
        is_causal = num_queries > 1
        return F.scaled_dot_product_attention(
            query_BHQD, key_BGKD, value_BGKD, is_causal=is_causal, scale=scale, dropout_p=dropout, enable_gqa=grouped
        )
    tensors = (query_BHQD, key_BGKD, value_BGKD)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    fused = query_BHQD.device.type == "cpu" and value_BGKD.shape[-1] == query_BHQD.shape[-1]
    if fused and not dropout and not needs_grad and not torch.is_autocast_enabled("cpu"):
        return _causal_after_cache(query_BHQD, key_BGKD, value_BGKD, scale)
    if grouped and not _takes_groups(query_BHQD, key_BGKD, value_BGKD, dropout):
        groups = query_BHQD.shape[1] // key_BGKD.shape[1]
        key_BGKD, value_BGKD = key_BGKD.repeat_interleave(groups, dim=1), value_BGKD.repeat_interleave(groups, dim=1)
        grouped = False
    bias: Any = causal_lower_right(num_queries, num_keys)  # fused on CUDA; elsewhere it becomes a mask
    return F.scaled_dot_product_attention(
        query_BHQD, key_BGKD, value_BGKD, bias, scale=scale, dropout_p=dropout, enable_gqa=grouped
    )


def _causal_after_cache(query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, scale: float | None) -> Tensor:
    """On CPU: the keys before the first query, which all queries see, and the causal rest apart; then both as one.

    The CPU kernel takes a mask, or is causal from the first key on. A mask for 2,048 queries after 100,000 keys is
    600 MB by the time the kernel has made numbers of it, and makes a layer half as slow again.
    """
    batch, heads, num_queries, size = query_BHQD.shape
    kv_heads, before = key_BGKD.shape[1], key_BGKD.shape[2] - num_queries
    groups = heads // kv_heads
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # SDPA itself does not tell the log-sum-exp
    early, early_lse = kernel(
        query_BHQD.reshape(batch, kv_heads, groups * num_queries, size),
        key_BGKD[:, :, :before],
        value_BGKD[:, :, :before],
        scale=scale,
    )
    late_key, late_value = (t[:, :, before:].repeat_interleave(groups, dim=1) for t in (key_BGKD, value_BGKD))
    late, late_lse = kernel(query_BHQD, late_key, late_value, 0.0, True, scale=scale)
    early, early_lse = early.reshape(query_BHQD.shape), early_lse.reshape(batch, heads, num_queries)
    share = torch.sigmoid(early_lse - late_lse.view_as(early_lse)).unsqueeze(-1)
    return torch.lerp(late.to(share.dtype), early.to(share.dtype), share).to(query_BHQD.dtype)


def _takes_groups(query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, dropout: float) -> bool:
    """Do query heads share keys without a copy in torch's lower-right causal attention?"""
    if query_BHQD.device.type != "cuda":
        return True
    parameters = torch.backends.cuda.SDPAParams(query_BHQD, key_BGKD, value_BGKD, None, dropout, False, True)
    return torch.backends.cuda.can_use_flash_attention(parameters)


def dense_attention(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    mask_BHQK: Tensor | None,
    *,
    scale: float | None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sink_logits_H: Tensor | None = None,
    scores: PlacedScores | None = None,
    hidden_BHQ1: Tensor | None = None,
) -> Tensor:
    """Attention under a boolean mask (None: every query sees every key). Returns [B, H, Q, D].

    Args:
        hidden_BHQ1: the queries that see nothing, where the caller knows them; otherwise the mask is searched.
        softcap: scores become ``softcap * tanh(score / softcap)`` (Gemma 2).
        scores: what changes them after that.
        sink_logits_H: a logit per head that takes part in the softmax and carries no value (GPT-OSS).
    """
    groups = query_BHQD.shape[1] // key_BGKD.shape[1]
    unmodified = softcap is None and sink_logits_H is None and scores is None
    # copying a cache for each query head would cost more than a decode step; on CUDA no fused kernel takes a mask so
    grouped = groups > 1 and unmodified and (mask_BHQK is None or query_BHQD.device.type == "cpu")
    if groups > 1 and not grouped:  # G is H from here on
        key_BGKD, value_BGKD = key_BGKD.repeat_interleave(groups, dim=1), value_BGKD.repeat_interleave(groups, dim=1)
    if unmodified:
        out = F.scaled_dot_product_attention(
            query_BHQD, key_BGKD, value_BGKD, mask_BHQK, scale=scale, dropout_p=dropout, enable_gqa=grouped
        )
    else:
        changes = (softcap, scores, sink_logits_H)
        out = _modified_attention(query_BHQD, key_BGKD, value_BGKD, mask_BHQK, scale, dropout, *changes)
    if mask_BHQK is None:
        return out
    return out.masked_fill(~mask_BHQK.any(-1, keepdim=True) if hidden_BHQ1 is None else hidden_BHQ1, 0.0)


def _modified_attention(
    query_BHQD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    mask_BHQK: Tensor | None,
    scale: float | None,
    dropout: float,
    softcap: float | None,
    scores: PlacedScores | None,
    sink_logits_H: Tensor | None,
) -> Tensor:
    scale = query_BHQD.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(query_BHQD.dtype, torch.float32)
    scores_BHQK = (query_BHQD @ key_BHKD.transpose(-1, -2)).to(wide) * scale
    if softcap is not None:
        scores_BHQK = softcap * torch.tanh(scores_BHQK / softcap)
    if scores is not None:
        scores_BHQK = scores.on_grid(scores_BHQK)
    if mask_BHQK is not None:
        scores_BHQK = scores_BHQK.masked_fill(~mask_BHQK, torch.finfo(scores_BHQK.dtype).min)
    if sink_logits_H is not None:
        sinks = sink_logits_H.to(wide).view(1, -1, 1, 1).expand(*scores_BHQK.shape[:-1], 1)
        scores_BHQK = torch.cat([scores_BHQK, sinks], -1)
    weights_BHQK = scores_BHQK.softmax(-1)[..., : key_BHKD.shape[2]].to(value_BHKD.dtype)
    out: Tensor = F.dropout(weights_BHQK, dropout) @ value_BHKD
    return out


def blocksparse_attention(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    block_mask: BlockMask,
    *,
    scale: float | None,
    softcap: float | None = None,
    sink_logits_H: Tensor | None = None,
    scores: PlacedScores | None = None,
) -> Tensor:
    """FlexAttention, compiled. Returns [B, H, Q, D].

    The block mask may be longer than the tensors (see :func:`bucket_length`): they are padded to it, and the result
    is cut back, so that many lengths share a compiled kernel.

    Args:
        softcap: as in :func:`dense_attention`, and the sink logits, too.
        scores: placed on a layout as long as the block mask.
    """
    change = _changes(softcap, scores)
    if sink_logits_H is not None:
        change = sink_score_mod(change, block_mask.seq_lengths[1], sink_logits_H)
        block_mask = with_sink_slot(block_mask)
    queries, keys = block_mask.seq_lengths
    padded = [_pad(query_BHQD, queries), _pad(key_BGKD, keys), _pad(value_BGKD, keys)]
    # the limit is torch's guard against runaway compiling; one graph per policy structure and bucket is meant here
    with torch._dynamo.config.patch(recompile_limit=_GRAPHS, accumulated_recompile_limit=4 * _GRAPHS):
        out: Tensor = _compiled_flex()(
            *padded,
            score_mod=change,
            block_mask=block_mask,
            scale=scale,
            enable_gqa=key_BGKD.shape[1] != query_BHQD.shape[1],
        )
    return out[:, :, : query_BHQD.shape[2]]


def bucket_length(length: int, block_size: int = 128) -> int:
    """The least length of the form (4 to 7) x 2^n blocks that holds ``length``: at most a quarter more, few shapes."""
    blocks = -(-length // block_size)
    power = max(0, (blocks - 1).bit_length() - 3)
    step = 1 << power
    return -(-blocks // step) * step * block_size


def _pad(tensor: Tensor, length: int) -> Tensor:
    extra = length - tensor.shape[2]
    return F.pad(tensor, (0, 0, 0, extra)) if extra else tensor


def _changes(softcap: float | None, scores: PlacedScores | None) -> ScoreModFunction | None:
    """The model's soft cap, then the modifications."""
    changed = None if scores is None else score_mod(scores)
    if softcap is None:
        return changed

    def cap(score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        capped = softcap * torch.tanh(score / softcap)
        return capped if changed is None else changed(capped, b, h, q_index, k_index)

    return cap


@functools.cache
def _compiled_flex() -> Any:
    # fullgraph: an operation that cannot be compiled is an error, not a silent and slow unfused run
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)

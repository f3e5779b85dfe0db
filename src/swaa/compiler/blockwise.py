"""Blockwise attention: the second executor of a ``BlockMask``, in plain tensor operations.

For the rows of query blocks that :class:`swaa.compiler.blockrows.BlockRows` lists, the visible key blocks are gathered
and SDPA runs on them: no compiler, any device, gradients, and work in proportion to the visible blocks. Nothing
gathered outlives its batch of rows: the backward pass gathers and computes each batch again, so that memory is linear
in the sequence length however many keys a row sees.

Shape suffixes as in :mod:`swaa.compiler.blockrows`, and B samples, H query heads, G key-value heads, S slots, D head
size; inside a batch G are the key-value heads of a row and F its queries, those of all heads of a group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from swaa.compiler.blockrows import BlockRows, RowBatch


def blockwise_attention(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    block_mask: BlockMask | BlockRows,
    *,
    scale: float | None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sink_logits_H: Tensor | None = None,
) -> Tensor:
    """Attention under a block mask, without compiling anything.

    Args:
        block_mask: for exactly these lengths; or its rows, worked out before, where many layers share it.
        scale: what scores are multiplied with; by default ``D ** -0.5``.
        dropout: the probability of dropping an attention weight.
        softcap: scores become ``softcap * tanh(score / softcap)`` (Gemma 2).
        sink_logits_H: a logit per head that takes part in the softmax and carries no value (GPT-OSS).

    Returns:
        [B, H, Q, D of the values]. Queries that see nothing get zeros.
    """
    batch_size, num_heads = query_BHQD.shape[:2]
    rows = block_mask
    if isinstance(rows, BlockMask):
        rows = BlockRows.of(rows, batch_size=batch_size, num_heads=num_heads, num_kv_heads=key_BGKD.shape[1])
    device_type = query_BHQD.device.type
    if torch.is_autocast_enabled(device_type):  # as SDPA does, whose backward pass runs outside of autocast here
        dtype = torch.get_autocast_dtype(device_type)
        query_BHQD, key_BGKD, value_BGKD = query_BHQD.to(dtype), key_BGKD.to(dtype), value_BGKD.to(dtype)
    options = _Options(query_BHQD.shape[-1] ** -0.5 if scale is None else scale, dropout, softcap)
    query_RGFD = _split_queries(query_BHQD, rows)
    key_BGKD, value_BGKD = (_pad(tensor, rows.shape[3] * rows.block_size[1]) for tensor in (key_BGKD, value_BGKD))
    sinks_XGF = None if sink_logits_H is None else _split_sinks(sink_logits_H, rows)
    tensors = (query_RGFD, key_BGKD, value_BGKD, sinks_XGF)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        out_RGFD = _Blockwise.apply(*tensors, rows, options)  # type: ignore[no-untyped-call]
    else:
        out_RGFD = _forward(*tensors, rows, options)
    return _join_queries(out_RGFD, rows)[:, :, : query_BHQD.shape[2]]


class _Options:
    """What changes the scores."""

    def __init__(self, scale: float, dropout: float, softcap: float | None) -> None:
        self.scale = scale
        self.dropout = dropout
        self.softcap = softcap


# ---------------------------------------------------------------------------------------- from heads to rows


def _split_queries(query_BHQD: Tensor, rows: BlockRows) -> Tensor:
    """[rows, key-value heads of a row, queries of all its heads, D]."""
    batch_size, kv_heads, num_rows, _ = rows.shape
    query_BHQD = _pad(query_BHQD, num_rows * rows.block_size[0])
    if rows.mask_heads > 1:
        return query_BHQD.reshape(-1, 1, rows.block_size[0], query_BHQD.shape[-1])
    by_group = query_BHQD.reshape(batch_size, kv_heads, rows.folded, num_rows, rows.block_size[0], -1)
    return by_group.permute(0, 3, 1, 2, 4, 5).reshape(batch_size * num_rows, kv_heads, -1, query_BHQD.shape[-1])


def _join_queries(out_RGFD: Tensor, rows: BlockRows) -> Tensor:
    """[B, H, Q, D]; in memory Q comes before H, as models want it next."""
    batch_size, kv_heads, num_rows, _ = rows.shape
    height, size = rows.block_size[0], out_RGFD.shape[-1]
    if rows.mask_heads > 1:
        return out_RGFD.reshape(batch_size, rows.mask_heads, num_rows * height, size)
    by_row = out_RGFD.view(batch_size, num_rows, kv_heads, rows.folded, height, size).permute(0, 1, 4, 2, 3, 5)
    return by_row.reshape(batch_size, num_rows * height, -1, size).transpose(1, 2)


def _split_sinks(sink_logits_H: Tensor, rows: BlockRows) -> Tensor:
    """The sink logit of every query of a row, [mask heads, key-value heads of a row, F], float32 or wider."""
    wide = sink_logits_H.to(torch.promote_types(sink_logits_H.dtype, torch.float32))
    by_head = wide.view(rows.mask_heads, -1, rows.folded)
    return by_head.repeat_interleave(rows.block_size[0], dim=-1)


def _pad(tensor: Tensor, length: int) -> Tensor:
    extra = length - tensor.shape[2]
    return F.pad(tensor, (0, 0, 0, extra)) if extra else tensor


def _blocks(tensor_BGKD: Tensor, rows: BlockRows) -> Tensor:
    """All key blocks of all samples and heads, one after the other, each a line of numbers."""
    return tensor_BGKD.reshape(-1, rows.block_size[1] * tensor_BGKD.shape[-1])


def _gather(tensor_BGKD: Tensor, blocks: Tensor, batch: RowBatch, rows: BlockRows) -> Tensor:
    """The keys or values of a batch, [R, G, L, D]."""
    if batch.at is not None:
        sample, first, last, start, stop = batch.at
        return tensor_BGKD[sample : sample + 1, first:last, start:stop]
    assert batch.gathered is not None
    gathered = blocks.index_select(0, batch.gathered)
    return gathered.view(len(batch.rows_R), -1, batch.width * rows.block_size[1], tensor_BGKD.shape[-1])


def _give_back(grad_BGKD: Tensor, blocks: Tensor, grad_RGLD: Tensor, batch: RowBatch) -> None:
    """Add the gradients of gathered keys or values where they came from."""
    if batch.at is not None:
        sample, first, last, start, stop = batch.at
        grad_BGKD[sample : sample + 1, first:last, start:stop] += grad_RGLD
        return
    assert batch.gathered is not None
    blocks.index_add_(0, batch.gathered, grad_RGLD.reshape(len(batch.gathered), -1).to(blocks.dtype))


# --------------------------------------------------------------------------------------------- forward, backward


def _attend(
    query_RGFD: Tensor,
    key_RGLD: Tensor,
    value_RGLD: Tensor,
    sinks_RGF: Tensor | None,
    batch: RowBatch,
    bias: Tensor | None,
    options: _Options,
) -> Tensor:
    """One batch of rows: [R, G, F, D]."""
    if options.softcap is None and sinks_RGF is None:
        out = F.scaled_dot_product_attention(
            query_RGFD, key_RGLD, value_RGLD, bias, dropout_p=options.dropout, scale=options.scale
        )
    else:
        wide = torch.promote_types(query_RGFD.dtype, torch.float32)
        scores_RGFL = (query_RGFD @ key_RGLD.transpose(-1, -2)).to(wide) * options.scale
        if options.softcap is not None:
            scores_RGFL = options.softcap * torch.tanh(scores_RGFL / options.softcap)
        if bias is not None:
            scores_RGFL = scores_RGFL + bias
        if sinks_RGF is not None:
            scores_RGFL = torch.cat([scores_RGFL, sinks_RGF.unsqueeze(-1).to(wide)], -1)
        weights_RGFL = scores_RGFL.softmax(-1)[..., : key_RGLD.shape[2]].to(value_RGLD.dtype)
        out = F.dropout(weights_RGFL, options.dropout) @ value_RGLD
    if batch.hidden_RQ is not None:
        repeated = out.shape[2] // batch.hidden_RQ.shape[1]
        out = out.masked_fill(batch.hidden_RQ.repeat(1, repeated)[:, None, :, None], 0.0)
    return out


def _forward(
    query_RGFD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    sinks_XGF: Tensor | None,
    rows: BlockRows,
    options: _Options,
) -> Tensor:
    out_RGFD = query_RGFD.new_empty(*query_RGFD.shape[:3], value_BGKD.shape[-1])
    if not rows.covers:
        out_RGFD.zero_()  # rows without a visible block are in no batch
    key_blocks, value_blocks = _blocks(key_BGKD, rows), _blocks(value_BGKD, rows)
    for number, batch in enumerate(rows.batches):
        out_RGFD[batch.rows_R] = _attend(
            query_RGFD[batch.rows_R],
            _gather(key_BGKD, key_blocks, batch, rows),
            _gather(value_BGKD, value_blocks, batch, rows),
            None if sinks_XGF is None else sinks_XGF[batch.heads_R],
            batch,
            rows.bias(number, query_RGFD.dtype),
            options,
        )
    return out_RGFD


class _Blockwise(torch.autograd.Function):
    """Keeps the tensors it was given, and nothing that was gathered."""

    @staticmethod
    def forward(
        ctx: Any,
        query_RGFD: Tensor,
        key_BGKD: Tensor,
        value_BGKD: Tensor,
        sinks_XGF: Tensor | None,
        rows: BlockRows,
        options: _Options,
    ) -> Tensor:
        ctx.rows, ctx.options = rows, options
        ctx.random = _random_state(query_RGFD.device) if options.dropout else None
        ctx.save_for_backward(query_RGFD, key_BGKD, value_BGKD, sinks_XGF)
        return _forward(query_RGFD, key_BGKD, value_BGKD, sinks_XGF, rows, options)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RGFD: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks = ctx.saved_tensors
        rows, options = ctx.rows, ctx.options
        grad_query = torch.zeros_like(query)
        # many rows add to one key, to a sink token all rows: the sums are kept in float32
        wide = torch.promote_types(query.dtype, torch.float32)
        grads = [torch.zeros(t.shape, dtype=wide, device=t.device) for t in (key, value)]
        grad_blocks = [_blocks(grad, rows) for grad in grads]
        grad_sinks = None if sinks is None else torch.zeros_like(sinks)
        key_blocks, value_blocks = _blocks(key, rows), _blocks(value, rows)
        with _replayed(ctx.random, query.device):
            for number, batch in enumerate(rows.batches):
                inputs = [
                    query[batch.rows_R],
                    _gather(key, key_blocks, batch, rows),
                    _gather(value, value_blocks, batch, rows),
                    *([] if sinks is None else [sinks[batch.heads_R]]),
                ]
                inputs = [tensor.detach().requires_grad_() for tensor in inputs]
                with torch.enable_grad():
                    bias = rows.bias(number, query.dtype)
                    sink = None if sinks is None else inputs[3]
                    out = _attend(inputs[0], inputs[1], inputs[2], sink, batch, bias, options)
                found = torch.autograd.grad(out, inputs, grad_RGFD[batch.rows_R])
                grad_query[batch.rows_R] = found[0]
                for grad, blocks, part in zip(grads, grad_blocks, found[1:3], strict=True):
                    _give_back(grad, blocks, part, batch)
                if grad_sinks is not None:
                    grad_sinks.index_add_(0, batch.heads_R, found[3])
        return grad_query, grads[0].to(key.dtype), grads[1].to(value.dtype), grad_sinks, None, None


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextlib.contextmanager
def _replayed(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draw the numbers again that the forward pass drew, so that the same weights are dropped."""
    if state is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield

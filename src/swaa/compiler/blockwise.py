"""Blockwise attention: the second executor of a ``BlockMask``, in plain tensor operations.

For the rows of query blocks that :class:`swaa.compiler.blockrows.BlockRows` lists, the visible key blocks are gathered
and SDPA runs on them: no compiler, any device, gradients, and work in proportion to the visible blocks. Nothing
gathered outlives its batch of rows: the backward pass gathers and computes each batch again, so that memory is linear
in the sequence length however many keys a row sees.

Shape suffixes as in :mod:`swaa.compiler.blockrows`, and B samples, H query heads, G key-value heads, S slots, D head
size. Queries are seen as [lines, rows, H, Q, D], without moving them; in a line of one head, H and G are 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from swaa.compiler.blockrows import BlockRows, RowBatch
from swaa.compiler.layout import PADDING
from swaa.compiler.scores import PlacedScores

_SCORES = 1 << 20
"""Scores that are spelled out at a time: a few MB, which the allocator hands out again without asking the system."""


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
    scores: PlacedScores | None = None,
) -> Tensor:
    """Attention under a block mask, without compiling anything.

    Args:
        block_mask: for exactly these lengths; or its rows, worked out before, where many layers share it.
        scale: what scores are multiplied with; by default ``D ** -0.5``.
        dropout: the probability of dropping an attention weight.
        softcap: scores become ``softcap * tanh(score / softcap)`` (Gemma 2).
        sink_logits_H: a logit per head that takes part in the softmax and carries no value (GPT-OSS).
        scores: what changes them after the soft cap.

    Returns:
        [B, H, Q, D of the values]. Queries that see nothing get zeros.
    """
    batch_size, num_heads, num_queries = query_BHQD.shape[:3]
    rows = block_mask
    if isinstance(rows, BlockMask):
        rows = BlockRows.of(rows, batch_size=batch_size, num_heads=num_heads, num_kv_heads=key_BGKD.shape[1])
    device_type = query_BHQD.device.type
    if torch.is_autocast_enabled(device_type):  # as SDPA does; the backward pass runs outside of autocast
        dtype = torch.get_autocast_dtype(device_type)
        query_BHQD, key_BGKD, value_BGKD = query_BHQD.to(dtype), key_BGKD.to(dtype), value_BGKD.to(dtype)
    options = _Options(query_BHQD.shape[-1] ** -0.5 if scale is None else scale, dropout, softcap, scores)
    query_BHQD = _pad(query_BHQD, rows.shape[2] * rows.block_size[0])
    key_BGKD, value_BGKD = (_pad(tensor, rows.shape[3] * rows.block_size[1]) for tensor in (key_BGKD, value_BGKD))
    tensors = (query_BHQD, key_BGKD, value_BGKD, sink_logits_H)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        out_BHQD: Tensor = _Blockwise.apply(*tensors, rows, options)  # type: ignore[no-untyped-call]
    else:
        out_BHQD = _forward(*tensors, rows, options)
    return out_BHQD[:, :, :num_queries]


@dataclass(frozen=True)
class _Options:
    """What changes the scores."""

    scale: float
    dropout: float
    softcap: float | None
    scores: PlacedScores | None

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.scores is None


@dataclass(frozen=True)
class _Places:
    """Where the scores of some rows stand, as tensors that broadcast against [R, H, Q, L]."""

    q_R1Q1: Tensor
    k_R11L: Tensor
    head_RH11: Tensor

    def of(self, some: slice) -> tuple[Tensor, Tensor, Tensor]:
        """For some of the rows."""
        heads = self.head_RH11 if len(self.head_RH11) == 1 else self.head_RH11[some]
        return self.q_R1Q1[some], self.k_R11L[some], heads


def _places(batch: RowBatch, rows: BlockRows, num_heads: int, options: _Options) -> _Places | None:
    """The positions and heads of a batch, where scores change by them."""
    if options.scores is None:
        return None
    sample_R, head_R = batch.lines_R // rows.mask_heads, batch.lines_R % rows.mask_heads
    queries_BMQ, keys_BNK = (
        F.pad(table, (0, blocks * size - table.shape[1]), value=PADDING).unflatten(1, (blocks, size))
        for table, blocks, size in zip(
            (options.scores.query_positions_BQ, options.scores.key_positions_BK),
            rows.shape[2:],
            rows.block_size,
            strict=True,
        )
    )
    q_RQ = queries_BMQ[sample_R if len(queries_BMQ) > 1 else torch.zeros_like(sample_R), batch.rows_R]
    sample_R1 = (sample_R if len(keys_BNK) > 1 else torch.zeros_like(sample_R)).unsqueeze(-1)
    k_RL = keys_BNK[sample_R1, batch.columns_RC(rows)].flatten(1)
    heads = torch.arange(num_heads, device=head_R.device).unsqueeze(0) if rows.mask_heads == 1 else head_R.unsqueeze(1)
    return _Places(q_RQ[:, None, :, None], k_RL[:, None, None, :], heads[:, :, None, None])


def _pad(tensor: Tensor, length: int) -> Tensor:
    extra = length - tensor.shape[2]
    return F.pad(tensor, (0, 0, 0, extra)) if extra else tensor


# ------------------------------------------------------------------------------------------- rows in and out


def _in_rows(tensor_BHSD: Tensor, rows: BlockRows) -> Tensor:
    """A view of queries, or of what has their shape: [lines, M, H, Q, D]."""
    batch_size, num_heads, _, size = tensor_BHSD.shape
    blocks: Tensor = tensor_BHSD.unflatten(2, (rows.shape[2], rows.block_size[0]))
    if rows.mask_heads > 1:
        return blocks.reshape(batch_size * num_heads, rows.shape[2], 1, rows.block_size[0], size)
    return blocks.transpose(1, 2)


def _new_queries(like_BHSD: Tensor, size: int, rows: BlockRows, fill: bool) -> Tensor:
    """A tensor for results, [B, H, S, D]. In memory S comes before H, as SDPA makes it and models want it next."""
    batch_size, num_heads, length, _ = like_BHSD.shape
    make = torch.zeros if fill else torch.empty
    if rows.mask_heads > 1:
        return make(batch_size, num_heads, length, size, dtype=like_BHSD.dtype, device=like_BHSD.device)
    return make(batch_size, length, num_heads, size, dtype=like_BHSD.dtype, device=like_BHSD.device).transpose(1, 2)


def _take(rows_LMHQD: Tensor, batch: RowBatch) -> Tensor:
    """The rows of a batch, [R, H, Q, D]."""
    if batch.run is None:
        return rows_LMHQD[batch.lines_R, batch.rows_R]
    line, start, stop = batch.run
    return rows_LMHQD[line, start:stop]


def _put(rows_LMHQD: Tensor, batch: RowBatch, values_RHQD: Tensor) -> None:
    if batch.run is None:
        rows_LMHQD[batch.lines_R, batch.rows_R] = values_RHQD
    else:
        line, start, stop = batch.run
        rows_LMHQD[line, start:stop] = values_RHQD


def _blocks(tensor_BGSD: Tensor, rows: BlockRows) -> Tensor:
    """All key blocks of all samples and heads, one after the other, each as one run of numbers."""
    return tensor_BGSD.reshape(-1, rows.block_size[1] * tensor_BGSD.shape[-1])


def _gather(tensor_BGSD: Tensor, blocks: Tensor, batch: RowBatch, rows: BlockRows) -> Tensor:
    """The keys or values of a batch, [R, G, L, D]."""
    if batch.gathered is None:
        assert batch.at is not None
        sample, first, last, start, stop = batch.at
        return tensor_BGSD[sample : sample + 1, first:last, start:stop]
    gathered = blocks.index_select(0, batch.gathered)
    return gathered.view(len(batch.rows_R), -1, batch.width * rows.block_size[1], tensor_BGSD.shape[-1])


def _give_back(grad_BGSD: Tensor, blocks: Tensor, grad_RGLD: Tensor, batch: RowBatch) -> None:
    """Add the gradients of gathered keys or values where these came from."""
    if batch.gathered is None:
        assert batch.at is not None
        sample, first, last, start, stop = batch.at
        grad_BGSD[sample : sample + 1, first:last, start:stop] += grad_RGLD
    else:
        blocks.index_add_(0, batch.gathered, grad_RGLD.reshape(len(batch.gathered), -1).to(blocks.dtype))


# --------------------------------------------------------------------------------------------- forward, backward


def _attend(
    query_RHQD: Tensor,
    key_RGLD: Tensor,
    value_RGLD: Tensor,
    sinks_RH: Tensor | None,
    bias_R1QL: Tensor | None,
    places: _Places | None,
    options: _Options,
) -> Tensor:
    """One batch of rows, [R, H, Q, D]."""
    rows, heads, queries, _ = query_RHQD.shape
    groups = heads // key_RGLD.shape[1]
    plain = options.is_plain and sinks_RH is None
    if plain and query_RHQD.device.type == "cpu" and not torch.is_grad_enabled() and not options.dropout:
        return F.scaled_dot_product_attention(
            query_RHQD, key_RGLD, value_RGLD, bias_R1QL, scale=options.scale, enable_gqa=groups > 1
        )
    # Query heads that share keys become more queries of one head: no copy of the keys for each of them where there is
    # no kernel for shared ones (CUDA's take no mask), and a third off the backward pass on CPU.
    query_RGFD = query_RHQD.reshape(rows, -1, groups * queries, query_RHQD.shape[-1])
    bias_R1FL = None if bias_R1QL is None else bias_R1QL.repeat(1, 1, groups, 1)
    if plain:
        out_RGFD = F.scaled_dot_product_attention(
            query_RGFD, key_RGLD, value_RGLD, bias_R1FL, options.dropout, scale=options.scale
        )
    else:
        sinks_RGF = None
        if sinks_RH is not None:
            sinks_RGF = sinks_RH.unflatten(1, (-1, groups)).repeat_interleave(queries, -1)
        out_RGFD = _modified(query_RGFD, key_RGLD, value_RGLD, sinks_RGF, bias_R1FL, places, options)
    return out_RGFD.reshape(rows, heads, queries, -1)


def _modified(
    query_RGFD: Tensor,
    key_RGLD: Tensor,
    value_RGLD: Tensor,
    sinks_RGF: Tensor | None,
    bias_R1FL: Tensor | None,
    places: _Places | None,
    options: _Options,
) -> Tensor:
    """Spelled out, as no fused kernel changes scores; some rows at a time, so that their scores stay in cache."""
    rows, kv_heads, queries, _ = query_RGFD.shape
    wide = torch.promote_types(query_RGFD.dtype, torch.float32)
    outs = []
    step = max(1, _SCORES // (kv_heads * queries * key_RGLD.shape[2]))
    for start in range(0, rows, step):
        some = slice(start, start + step)
        scores_RGFL = (query_RGFD[some] @ key_RGLD[some].transpose(-1, -2)).to(wide) * options.scale
        if options.softcap is not None:
            scores_RGFL = options.softcap * torch.tanh(scores_RGFL / options.softcap)
        if options.scores is not None and places is not None:
            q_R1Q1, k_R11L, head_RH11 = places.of(some)
            scores_RHQL = scores_RGFL.reshape(len(q_R1Q1), -1, q_R1Q1.shape[2], scores_RGFL.shape[-1])
            scores_RGFL = options.scores.modify(scores_RHQL, q_R1Q1, k_R11L, head_RH11).view_as(scores_RGFL)
        if bias_R1FL is not None:
            scores_RGFL = scores_RGFL + (bias_R1FL if len(bias_R1FL) == 1 else bias_R1FL[some])
        if sinks_RGF is not None:
            scores_RGFL = torch.cat([scores_RGFL, sinks_RGF[some].unsqueeze(-1).to(wide)], -1)
        weights_RGFL = scores_RGFL.softmax(-1)[..., : key_RGLD.shape[2]].to(value_RGLD.dtype)
        outs.append(F.dropout(weights_RGFL, options.dropout) @ value_RGLD[some])
    return torch.cat(outs)


def _sinks(sink_logits_H: Tensor | None, batch: RowBatch, rows: BlockRows) -> Tensor | None:
    """The sink logits of each row's heads, [R, H]."""
    if sink_logits_H is None:
        return None
    return sink_logits_H.view(rows.mask_heads, -1)[batch.lines_R % rows.mask_heads]


def _forward(
    query_BHSD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    sink_logits_H: Tensor | None,
    rows: BlockRows,
    options: _Options,
) -> Tensor:
    out_BHSD = _new_queries(query_BHSD, value_BGSD.shape[-1], rows, fill=not rows.covers)
    query, out = _in_rows(query_BHSD, rows), _in_rows(out_BHSD, rows)
    key_blocks, value_blocks = _blocks(key_BGSD, rows), _blocks(value_BGSD, rows)
    for number, batch in enumerate(rows.batches):
        out_RHQD = _attend(
            _take(query, batch),
            _gather(key_BGSD, key_blocks, batch, rows),
            _gather(value_BGSD, value_blocks, batch, rows),
            _sinks(sink_logits_H, batch, rows),
            rows.bias(number, query.dtype),
            _places(batch, rows, query.shape[2], options),
            options,
        )
        _put(out, batch, _without_hidden(out_RHQD, batch))
    return out_BHSD


def _without_hidden(out_RHQD: Tensor, batch: RowBatch) -> Tensor:
    """Zeros, and no gradient, for the queries that see nothing."""
    return out_RHQD if batch.hidden_RQ is None else out_RHQD.masked_fill(batch.hidden_RQ[:, None, :, None], 0.0)


class _Blockwise(torch.autograd.Function):
    """Keeps the tensors it was given, and nothing that was gathered."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BHSD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        sink_logits_H: Tensor | None,
        rows: BlockRows,
        options: _Options,
    ) -> Tensor:
        ctx.rows, ctx.options = rows, options
        ctx.random = _random_state(query_BHSD.device) if options.dropout else None
        ctx.save_for_backward(query_BHSD, key_BGSD, value_BGSD, sink_logits_H)
        return _forward(query_BHSD, key_BGSD, value_BGSD, sink_logits_H, rows, options)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHSD: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sink_logits = ctx.saved_tensors
        rows, options = ctx.rows, ctx.options
        grad_query = _new_queries(query, query.shape[-1], rows, fill=not rows.covers)
        # many rows add to one key, to a sink token all rows: such sums are kept in float32
        wide = torch.promote_types(query.dtype, torch.float32)
        grad_key, grad_value = (torch.zeros(t.shape, dtype=wide, device=t.device) for t in (key, value))
        grad_sinks = None if sink_logits is None else torch.zeros_like(sink_logits, dtype=wide)
        query_rows, grad_rows, grad_query_rows = (_in_rows(t, rows) for t in (query, grad_BHSD, grad_query))
        blocks = [_blocks(tensor, rows) for tensor in (key, value, grad_key, grad_value)]
        with _replayed(ctx.random, query.device):
            for number, batch in enumerate(rows.batches):
                inputs = [_take(query_rows, batch)]
                inputs += [_gather(key, blocks[0], batch, rows), _gather(value, blocks[1], batch, rows)]
                sinks = _sinks(sink_logits, batch, rows)
                inputs += [] if sinks is None else [sinks]
                inputs = [tensor.detach().requires_grad_() for tensor in inputs]
                with torch.enable_grad():
                    bias = rows.bias(number, query.dtype)
                    places = _places(batch, rows, query_rows.shape[2], options)
                    out = _attend(
                        inputs[0], inputs[1], inputs[2], inputs[3] if len(inputs) > 3 else None, bias, places, options
                    )
                    out = _without_hidden(out, batch)
                found = torch.autograd.grad(out, inputs, _take(grad_rows, batch))
                _put(grad_query_rows, batch, found[0])
                _give_back(grad_key, blocks[2], found[1], batch)
                _give_back(grad_value, blocks[3], found[2], batch)
                if grad_sinks is not None:
                    by_head = grad_sinks.view(rows.mask_heads, -1)
                    by_head.index_add_(0, batch.lines_R % rows.mask_heads, found[3].to(wide))
        grad_sinks = None if grad_sinks is None else grad_sinks.to(sink_logits.dtype)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), grad_sinks, None, None


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextlib.contextmanager
def _replayed(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draw the numbers again that the forward pass drew, so that the same weights are dropped."""
    if state is None:
        yield
        return
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        if on_cuda:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield

"""What blockwise attention needs to know of a block mask, worked out once and used by every layer that shares the mask.

A *row* is one block of queries with the key blocks that it sees. Rows that see about as many blocks are done together,
and rows that see them through the same local mask share that mask: in a sliding window nearly all rows do. Only
partial blocks have their mask evaluated; equal ones are kept once.

Shape suffixes: B samples, X mask heads (1 where all heads share the mask), H query heads, G key-value heads, M query
blocks, N key blocks, R rows, C key blocks of a row, E visible blocks, U distinct block masks, P pairs of a block, Q
queries and K keys of a block, L keys of a row. A *line* is what has M rows: one sample, or one head of one sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

_EVALUATED = 1 << 21  # pairs of partial blocks evaluated at a time: bounds the memory of building a plan
_GATHERED = 1 << 15  # keys gathered at a time, over all heads: some MB, which is what a core's cache holds
_SHARED_BY = 4  # rows with one local mask that are worth a call of their own
_KEPT_BYTES = 64 << 20  # local masks kept from layer to layer; beyond that they are put together anew each time
_HIDDEN, _FULL = 0, 1  # the first two block masks; those of partial blocks follow


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Rows that are done in one call.

    Attributes:
        lines_R: the line of each row.
        rows_R: the place of each row in its line.
        run: *(line, first row, last row + 1)* where the rows follow each other, so that they need no gathering.
        gathered: flat indices [R * G * C] of the key blocks among those of all samples and heads, or None where
            ``at`` holds them all.
        at: *(sample, first head, last head + 1, first key, last key + 1)* of a single row whose keys lie in one run.
        width: C, key blocks of a row.
        blocks_RC: the block masks of each row, by number; one row where all have the same; None where all are full.
        hidden_RQ: the queries that see nothing, one row where all rows are alike; None where there are none.
    """

    lines_R: Tensor
    rows_R: Tensor
    run: tuple[int, int, int] | None
    gathered: Tensor | None
    at: tuple[int, int, int, int, int] | None
    width: int
    blocks_RC: Tensor | None
    hidden_RQ: Tensor | None

    def columns_RC(self, rows: BlockRows) -> Tensor:
        """The places of each row's key blocks among those of its sample."""
        if self.gathered is not None:
            return self.gathered.view(len(self.rows_R), -1, self.width)[:, 0] % rows.shape[3]
        assert self.at is not None
        first = self.at[3] // rows.block_size[1]
        return torch.arange(first, first + self.width, device=self.rows_R.device).unsqueeze(0)


@dataclass(eq=False)
class BlockRows:
    """The rows of a block mask for tensors of given batch size and heads, in batches.

    Attributes:
        block_size: *(queries, keys)* of a block.
        shape: B, G, M, N.
        mask_heads: X.
        blocks_UQK: bool, the distinct masks of blocks; the first hides and the second shows everything.
        batches: every row that sees something, once.
        covers: do the batches hold all rows?
    """

    block_size: tuple[int, int]
    shape: tuple[int, int, int, int]
    mask_heads: int
    blocks_UQK: Tensor
    batches: list[RowBatch]
    covers: bool
    _biases: dict[torch.dtype, Tensor] = field(default_factory=dict)
    _kept: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)
    _kept_bytes: int = 0

    @classmethod
    def of(cls, block_mask: BlockMask, *, batch_size: int, num_heads: int, num_kv_heads: int) -> BlockRows:
        """The rows of a mask over [1 or B, 1 or H, queries, keys]."""
        counts = block_mask.kv_num_blocks
        if counts.shape[0] not in (1, batch_size) or counts.shape[1] not in (1, num_heads):
            raise ValueError(
                f"a block mask over {tuple(counts.shape[:2])} samples and heads for {batch_size} and {num_heads}"
            )
        mask_heads = counts.shape[1]
        rows_E, columns_E, is_full_E = _visible_blocks(block_mask)
        blocks_UQK, partial = _block_masks(block_mask, rows_E[~is_full_E], columns_E[~is_full_E])
        masks_E = torch.full_like(rows_E, _FULL)
        masks_E[~is_full_E] = partial
        shape = (batch_size, num_kv_heads, counts.shape[2], block_mask.kv_indices.shape[3])
        per_mask_E = _Visible(rows_E, columns_E, masks_E, counts.numel())
        batches = [
            batch
            for rows_R, width in per_mask_E.groups()
            for batch in _batches(per_mask_E, rows_R, width, blocks_UQK, shape, counts.shape[0], mask_heads)
        ]
        sizes = block_mask.BLOCK_SIZE
        covers = sum(len(batch.rows_R) for batch in batches) == batch_size * mask_heads * shape[2]
        return cls((int(sizes[0]), int(sizes[1])), shape, mask_heads, blocks_UQK, batches, covers)

    def bias(self, number: int, dtype: torch.dtype) -> Tensor | None:
        """What batch ``number`` adds to its scores: [R or 1, 1, Q, L], 0 or -inf; None where that is nothing.

        A query that sees nothing gets 0 throughout, so that no kernel divides by zero: its output is for zeroing.
        """
        batch = self.batches[number]
        if batch.blocks_RC is None:
            return None
        key = (number, dtype)
        if key in self._kept:
            return self._kept[key]
        if dtype not in self._biases:
            nothing = torch.zeros(self.blocks_UQK.shape, dtype=dtype, device=self.blocks_UQK.device)
            self._biases[dtype] = nothing.masked_fill_(~self.blocks_UQK, float("-inf"))
        bias_RQL = self._biases[dtype][batch.blocks_RC].transpose(1, 2).flatten(2)
        if batch.hidden_RQ is not None:
            bias_RQL = bias_RQL.masked_fill_(batch.hidden_RQ.unsqueeze(-1), 0.0)
        bias = bias_RQL.unsqueeze(1)
        if self._kept_bytes + bias.nbytes <= _KEPT_BYTES:
            self._kept[key] = bias
            self._kept_bytes += bias.nbytes
        return bias


def _visible_blocks(block_mask: BlockMask) -> tuple[Tensor, Tensor, Tensor]:
    """All visible blocks in order: row, column, and whether the block is full."""
    rows, columns, is_full = [], [], []
    for full, counts, indices in (
        (False, block_mask.kv_num_blocks, block_mask.kv_indices),
        (True, block_mask.full_kv_num_blocks, block_mask.full_kv_indices),
    ):
        if counts is None or indices is None:
            continue
        places = torch.arange(indices.shape[-1], device=indices.device) < counts.unsqueeze(-1)
        rows.append(places.flatten(0, 2).nonzero()[:, 0])
        columns.append(indices[places].long())
        is_full.append(torch.full_like(rows[-1], full, dtype=torch.bool))
    row, column = torch.cat(rows), torch.cat(columns)
    order = torch.argsort(row * block_mask.kv_indices.shape[-1] + column)
    return row[order], column[order], torch.cat(is_full)[order]


def _block_masks(block_mask: BlockMask, rows_E: Tensor, columns_E: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct masks of these blocks, after those that hide and show everything; and which one each block has."""
    height, width = block_mask.BLOCK_SIZE
    device = rows_E.device
    num_queries, num_keys = block_mask.seq_lengths
    _, heads, query_blocks = block_mask.kv_num_blocks.shape
    blocks_UP = torch.zeros(2, height * width, dtype=torch.bool, device=device)
    blocks_UP[_FULL] = True
    numbers: list[Tensor] = []
    down, across = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device)
    step = max(1, _EVALUATED // (height * width))
    for row, column in zip(rows_E.split(step), columns_E.split(step), strict=True):
        sample, head = row // (heads * query_blocks), row // query_blocks % heads
        queries = (row % query_blocks).view(-1, 1, 1) * height + down
        keys = column.view(-1, 1, 1) * width + across
        visible = block_mask.mask_mod(
            sample.view(-1, 1, 1),
            head.view(-1, 1, 1),
            queries.clamp(max=num_queries - 1),
            keys.clamp(max=num_keys - 1),
        )
        visible = (visible & (queries < num_queries) & (keys < num_keys)).expand(-1, height, width).flatten(1)
        known = len(blocks_UP)
        blocks_UP, number = _distinct(torch.cat([blocks_UP, visible]))
        numbers.append(number[known:])
    return blocks_UP.unflatten(1, (height, width)), torch.cat(numbers) if numbers else rows_E


def _distinct(masks_EP: Tensor) -> tuple[Tensor, Tensor]:
    """Equal masks once, in order of first appearance, and the number of each mask among them.

    Equal masks have equal fingerprints and so end up as neighbours, which are then compared in full.
    """
    random = torch.Generator().manual_seed(0)
    factors_P = torch.randint(-(1 << 62), 1 << 62, (masks_EP.shape[1],), generator=random).to(masks_EP.device)
    # in integers, which wrap around: sums of equal masks are equal in whatever order they are taken
    fingerprints_E = torch.cat([(part * factors_P).sum(-1) for part in masks_EP.split(256)])
    order = torch.argsort(fingerprints_E, stable=True)
    is_new = torch.ones(len(order), dtype=torch.bool, device=order.device)
    is_new[1:] = (masks_EP[order[1:]] != masks_EP[order[:-1]]).any(-1)
    number_E = torch.empty_like(order)
    number_E[order] = is_new.cumsum(0) - 1
    firsts = order[is_new]  # stable: the first of each
    by_appearance = torch.argsort(firsts)
    return masks_EP[firsts[by_appearance]], torch.argsort(by_appearance)[number_E]


@dataclass(frozen=True, eq=False)
class _Visible:
    """The visible blocks of a mask, in order of rows and columns."""

    rows_E: Tensor
    columns_E: Tensor
    masks_E: Tensor
    num_rows: int

    @property
    def counts_R(self) -> Tensor:
        return torch.bincount(self.rows_E, minlength=self.num_rows)

    def groups(self) -> list[tuple[Tensor, int]]:
        """Rows to be done with one width each, in key blocks.

        A group's padding is at most an eighth of its work, or a 64th of all work, so that no handful of short rows
        needs a call of its own, and one row that sees everything makes no other row longer.
        """
        counts_R = self.counts_R
        order = torch.argsort(counts_R, stable=True)
        sizes = counts_R[order].tolist()
        slack, groups = sum(sizes) // 64, []
        start = next((place for place, size in enumerate(sizes) if size), len(sizes))
        work = 0
        for place in range(start, len(sizes)):
            wider = (place + 1 - start) * sizes[place] - (work + sizes[place])
            if wider > max((work + sizes[place]) // 8, slack):
                groups.append((order[start:place], sizes[place - 1]))
                start, work = place, 0
            work += sizes[place]
        if start < len(sizes):
            groups.append((order[start:], sizes[-1]))
        return groups

    def padded(self, rows_R: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The columns and block masks [R, width] of some rows; what is added to short rows is hidden."""
        counts_R = self.counts_R
        first_R = (counts_R.cumsum(0) - counts_R)[rows_R].unsqueeze(-1)
        steps = torch.arange(width, device=rows_R.device)
        count_R1 = counts_R[rows_R].unsqueeze(-1)
        places_RC = first_R + torch.minimum(steps, count_R1 - 1)
        return self.columns_E[places_RC], self.masks_E[places_RC].masked_fill(steps >= count_R1, _HIDDEN)


def _batches(
    visible: _Visible,
    rows_R: Tensor,
    width: int,
    blocks_UQK: Tensor,
    shape: tuple[int, int, int, int],
    mask_samples: int,
    mask_heads: int,
) -> list[RowBatch]:
    """The batches of a group: rows with one local mask apart where they are many, the others mixed."""
    batch_size, kv_heads, num_rows, num_columns = shape
    columns_RC, masks_RC = visible.padded(rows_R, width)
    if batch_size > mask_samples:  # one mask for all samples
        starts = torch.arange(batch_size, device=rows_R.device) * mask_heads * num_rows
        rows_R = (starts.unsqueeze(-1) + rows_R).flatten()
        columns_RC, masks_RC = columns_RC.repeat(batch_size, 1), masks_RC.repeat(batch_size, 1)
    patterns_TC, pattern_R = torch.unique(masks_RC, dim=0, return_inverse=True)
    heads = kv_heads if mask_heads == 1 else 1
    most = max(1, _GATHERED // (heads * width * blocks_UQK.shape[2]))
    # by pattern, the rare ones behind all others
    rare_T = torch.bincount(pattern_R) < min(_SHARED_BY, most)
    kind_R = torch.where(rare_T[pattern_R], len(patterns_TC), pattern_R)
    order = torch.argsort(kind_R, stable=True)
    batches = []
    for part in torch.split(order, torch.bincount(kind_R)[torch.unique(kind_R)].tolist()):
        for chosen in part.sort().values.split(most):
            masks = masks_RC[chosen]
            is_shared = bool((masks == masks[:1]).all())
            masks = masks[:1] if is_shared else masks
            hidden_RQ = ~(blocks_UQK.any(-1)[masks]).any(1)
            line_R, row_R = rows_R[chosen] // num_rows, rows_R[chosen] % num_rows
            column_RC = columns_RC[chosen]
            first_R1 = (line_R * kv_heads // mask_heads).unsqueeze(-1)
            at = _key_run(column_RC, first_R1, heads, kv_heads, blocks_UQK.shape[2])
            places_RG = first_R1 + torch.arange(heads, device=row_R.device)
            places_RGC = places_RG.unsqueeze(-1) * num_columns + column_RC.unsqueeze(1)
            batches.append(
                RowBatch(
                    lines_R=line_R,
                    rows_R=row_R,
                    run=_row_run(line_R, row_R),
                    gathered=places_RGC.flatten() if at is None else None,
                    at=at,
                    width=width,
                    blocks_RC=None if bool((masks == _FULL).all()) else masks,
                    hidden_RQ=hidden_RQ if bool(hidden_RQ.any()) else None,
                )
            )
    return batches


def _row_run(lines_R: Tensor, rows_R: Tensor) -> tuple[int, int, int] | None:
    """Where the rows lie, if they follow each other in one line."""
    if bool((lines_R != lines_R[0]).any()) or bool((rows_R.diff() != 1).any()):
        return None
    start = int(rows_R[0])
    return int(lines_R[0]), start, start + len(rows_R)


def _key_run(
    columns_RC: Tensor, first_R1: Tensor, heads: int, kv_heads: int, width: int
) -> tuple[int, int, int, int, int] | None:
    """Where the keys lie, if it is one row and its key blocks follow each other: they need no gathering."""
    if len(columns_RC) > 1 or bool((columns_RC.diff() != 1).any()):
        return None
    sample, head = divmod(int(first_R1), kv_heads)
    start = int(columns_RC[0, 0]) * width
    return sample, head, head + heads, start, start + columns_RC.shape[1] * width

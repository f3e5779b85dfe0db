"""Interval verdicts on the blocks of a mask, made exact by splitting only the blocks left undecided.

The grid of blocks is judged at once. A block whose verdict is undecided is split into smaller spans, and those are
judged; it is *partial* as soon as one span is known to be visible and another to be hidden, which for the usual masks
is after one split. On single positions verdicts are exact, so the splitting ends with the truth for every predicate
that the intervals know.

Shape suffixes: B samples, M query blocks, N key blocks, U undecided spans, C children of a span.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from swaa.compiler.interval import UnknownOperation, Verdict, untraced
from swaa.compiler.layout import TokenLayout
from swaa.compiler.spans import SpanTable, judge
from swaa.policies.bound import HeadPolicy

_SPLIT = 4  # children per side
# Verdicts at a time. Bounds the memory, whatever the context length; and below torch's grain size of 32,768 elements
# an operation runs on one thread, in cache: handing such small ones to several threads costs more than it saves, and
# on a busy machine a hundred times more.
_CHUNK = 32_000
_TO_THE_END = 1 << 20  # single positions at a time, of blocks that have to be split to the end


@dataclass(frozen=True, eq=False)
class BlockVerdicts:
    """What each block of the mask holds.

    Attributes:
        visible_BMN: bool, some pair of the block is visible.
        full_BMN: bool, every pair is; a block that hangs over the end of the sequence is never full.
        block_size: slots of a block, *(queries, keys)*.
    """

    visible_BMN: Tensor
    full_BMN: Tensor
    block_size: tuple[int, int]

    @property
    def partial_BMN(self) -> Tensor:
        """Some pairs are visible, not all."""
        return self.visible_BMN & ~self.full_BMN


@untraced
def block_verdicts(head: HeadPolicy, layout: TokenLayout, block_size: tuple[int, int]) -> BlockVerdicts:
    """Judge every block of the mask, exactly.

    Raises:
        UnknownOperation: the predicate uses an operation that intervals do not know.
    """
    table = _table(head, layout, block_size)
    verdict = _judge_grid(head, table)
    visible, full = verdict.must.clone(), verdict.must.clone()
    undecided = (verdict.may & ~verdict.must).nonzero()
    if len(undecided):
        seen, hidden = _refine(head, layout, block_size, undecided)
        at = undecided.unbind(-1)
        visible[at] = seen
        full[at] = ~hidden
    return BlockVerdicts(visible, full, block_size)


def count_visible(head: HeadPolicy, layout: TokenLayout, *, block_size: int = 128) -> Tensor:
    """The exact number of visible pairs of each sample, int64 [B], without a dense mask.

    Raises:
        UnknownOperation: the predicate uses an operation that intervals do not know.
    """
    size = (block_size, block_size)
    verdict = _judge_grid(head, _table(head, layout, size))
    total_B = verdict.must.sum((-2, -1)) * block_size**2
    for parents, spans, level in _levels(head, layout, size, (verdict.may & ~verdict.must).nonzero()):
        total_B.index_add_(0, parents[:, 0], spans.must.sum(-1) * level[0] * level[1])
    return total_B


def _table(head: HeadPolicy, layout: TokenLayout, size: tuple[int, int]) -> SpanTable:
    return SpanTable.of(layout, *size, looks_ahead=head.looks_ahead)


def _judge_grid(head: HeadPolicy, table: SpanTable) -> Verdict:
    """Verdicts [B, M, N], some rows of blocks at a time."""
    batch, num_keys = table.keys.positions.lo.shape
    num_queries = table.queries.positions.lo.shape[-1]
    rows = max(1, _CHUNK // (batch * num_keys))
    keys = table.keys[:, None, :]
    parts = [judge(head, table.queries[:, start : start + rows, None], keys) for start in range(0, num_queries, rows)]
    shape = (batch, num_queries, num_keys)
    may = torch.cat([part.may for part in parts], 1) if len(parts) > 1 else parts[0].may
    must = torch.cat([part.must for part in parts], 1) if len(parts) > 1 else parts[0].must
    return Verdict(may.expand(shape), must.expand(shape))


def _refine(
    head: HeadPolicy, layout: TokenLayout, block_size: tuple[int, int], undecided_U3: Tensor
) -> tuple[Tensor, Tensor]:
    """For each undecided block: is some pair visible, is some pair hidden? Both bool [U].

    Spans are split for as long as that decides most of them, as it does for the usual masks. Where it does not
    (dilated masks and the like), the blocks are looked at along a few lines of single positions, which nearly always
    show a pair of each kind; what is left is split to the end, a few blocks at a time. So the work and the memory
    stay small where every block of the mask is partial, too.
    """
    found = _Found.nothing(undecided_U3)
    owner, spans, size = torch.arange(len(undecided_U3), device=undecided_U3.device), undecided_U3, block_size
    while len(owner):
        size, split = _smaller(size)
        judged = len(owner) * split[0] * split[1]
        owner, spans = _split_once(head, _table(head, layout, size), split, owner, spans, found)
        if size != (1, 1) and 2 * len(owner) > judged:
            blocks = owner.unique()
            _look_along_lines(head, _table(head, layout, (1, 1)), block_size, blocks, undecided_U3[blocks], found)
            unsettled = ~found.settled[owner]
            owner, spans = owner[unsettled], spans[unsettled]
            break
    few = max(1, _TO_THE_END // (block_size[0] * block_size[1]))
    for batch in owner.unique().split(few):
        mine = torch.isin(owner, batch)
        own, parts, at = owner[mine], spans[mine], size
        while len(own):
            at, split = _smaller(at)
            own, parts = _split_once(head, _table(head, layout, at), split, own, parts, found)
    return found.seen, found.hidden


@dataclass(frozen=True, eq=False)
class _Found:
    """What is known so far of each undecided block, bool [U]; filled in place."""

    seen: Tensor
    hidden: Tensor

    @classmethod
    def nothing(cls, blocks_U3: Tensor) -> _Found:
        return cls(*torch.zeros(2, len(blocks_U3), dtype=torch.bool, device=blocks_U3.device))

    @property
    def settled(self) -> Tensor:
        return self.seen & self.hidden

    def note(self, owner_P: Tensor, verdict_PC: Verdict) -> None:
        """Learn from the verdicts on parts of the blocks ``owner_P``."""
        self.seen[owner_P[verdict_PC.must.any(-1)]] = True
        self.hidden[owner_P[(~verdict_PC.may).any(-1)]] = True


def _split_once(
    head: HeadPolicy, table: SpanTable, split: tuple[int, int], owner_P: Tensor, spans_P3: Tensor, found: _Found
) -> tuple[Tensor, Tensor]:
    """Judge the children of each span. Returns those still open, and the blocks that they belong to."""
    open_owner, open_spans = [], []
    step = max(1, _CHUNK // (split[0] * split[1]))
    for owner, spans in zip(owner_P.split(step), spans_P3.split(step), strict=True):
        children_PC, verdict_PC = _children(head, table, spans, split)
        found.note(owner, verdict_PC)
        open_PC = (verdict_PC.may & ~verdict_PC.must) & ~found.settled[owner].unsqueeze(-1)
        open_owner.append(owner.unsqueeze(-1).expand_as(open_PC)[open_PC])
        open_spans.append(children_PC[open_PC])
    return torch.cat(open_owner), torch.cat(open_spans)


def _look_along_lines(
    head: HeadPolicy, singles: SpanTable, size: tuple[int, int], owner_P: Tensor, blocks_P3: Tensor, found: _Found
) -> None:
    """Judge the single positions along the first row, the first column and the diagonal of each block."""
    height, width = size
    down, across = torch.arange(height), torch.arange(width)
    query_C = torch.cat([torch.zeros_like(across), down, down]).to(owner_P.device)
    key_C = torch.cat([across, torch.zeros_like(down), down * width // height]).to(owner_P.device)
    step = max(1, _CHUNK // len(query_C))
    for owner, blocks in zip(owner_P.split(step), blocks_P3.split(step), strict=True):
        batch, row, column = (part.unsqueeze(-1) for part in blocks.unbind(-1))
        queries, keys = row * height + query_C, column * width + key_C
        found.note(owner, _judge_inside(head, singles, batch, queries, keys))


def _levels(
    head: HeadPolicy, layout: TokenLayout, block_size: tuple[int, int], spans: Tensor
) -> Iterator[tuple[Tensor, Verdict, tuple[int, int]]]:
    """Split undecided spans down to single pairs, yielding *(parents, verdicts of their children, child size)*."""
    size = block_size
    while len(spans):
        size, split = _smaller(size)
        table = _table(head, layout, size)
        undecided = []
        for parents in spans.split(max(1, _CHUNK // (split[0] * split[1]))):
            children_UC, verdict_UC = _children(head, table, parents, split)
            yield parents, verdict_UC, size
            undecided.append(children_UC[verdict_UC.may & ~verdict_UC.must])
        spans = torch.cat(undecided)


def _smaller(size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The next smaller span size, and how many of them make up one of the present size, per side."""
    if size == (1, 1):
        raise UnknownOperation("the predicate is undecided on single positions")
    split = tuple(next(factor for factor in (_SPLIT, 2, 3, 5, 7, side) if side % factor == 0) for side in size)
    return (size[0] // split[0], size[1] // split[1]), (split[0], split[1])


def _children(head: HeadPolicy, table: SpanTable, spans_U3: Tensor, split: tuple[int, int]) -> tuple[Tensor, Verdict]:
    """The spans of ``table`` inside each given larger span: their places [U, C, 3] and verdicts [U, C]."""
    batch, query, key = spans_U3.unbind(-1)
    device = spans_U3.device
    queries = query[:, None, None] * split[0] + torch.arange(split[0], device=device)[:, None]
    keys = key[:, None, None] * split[1] + torch.arange(split[1], device=device)
    places = torch.stack(torch.broadcast_tensors(batch[:, None, None], queries, keys), -1).flatten(1, 2)
    return places, _judge_inside(head, table, *places.unbind(-1))


def _judge_inside(head: HeadPolicy, table: SpanTable, batch: Tensor, queries: Tensor, keys: Tensor) -> Verdict:
    """Verdicts on spans of which some may lie beyond the end (a block hangs over it): nothing is there."""
    inside = (queries < table.queries.real.may.shape[-1]) & (keys < table.keys.real.may.shape[-1])
    safe_queries, safe_keys = torch.where(inside, queries, 0), torch.where(inside, keys, 0)
    verdict = judge(head, table.queries[batch, safe_queries], table.keys[batch, safe_keys])
    return Verdict(verdict.may & inside, verdict.must & inside)

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

from swaa.compiler.interval import UnknownOperation, Verdict
from swaa.compiler.layout import TokenLayout
from swaa.compiler.spans import SpanTable, judge
from swaa.policies.bound import HeadPolicy

_SPLIT = 4  # children per side
_CHUNK = 1 << 20  # verdicts at a time: bounds the memory, whatever the context length


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


def block_verdicts(head: HeadPolicy, layout: TokenLayout, block_size: tuple[int, int]) -> BlockVerdicts:
    """Judge every block of the mask, exactly.

    Raises:
        UnknownOperation: the predicate uses an operation that intervals do not know.
    """
    table = SpanTable.of(layout, *block_size)
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
    verdict = _judge_grid(head, SpanTable.of(layout, *size))
    total_B = verdict.must.sum((-2, -1)) * block_size**2
    for parents, spans, level in _levels(head, layout, size, (verdict.may & ~verdict.must).nonzero()):
        total_B.index_add_(0, parents[:, 0], spans.must.sum(-1) * level[0] * level[1])
    return total_B


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
    """For each undecided block: is some pair visible, is some pair hidden? Both bool [U]."""
    seen = torch.zeros(len(undecided_U3), dtype=torch.bool, device=undecided_U3.device)
    hidden = torch.zeros_like(seen)
    owner = torch.arange(len(undecided_U3), device=undecided_U3.device)
    spans, size = undecided_U3, block_size
    while len(spans):
        size, split = _smaller(size)
        children_UC, verdict_UC = _children(head, SpanTable.of(layout, *size), spans, split)
        seen[owner[verdict_UC.must.any(-1)]] = True
        hidden[owner[(~verdict_UC.may).any(-1)]] = True
        open_UC = (verdict_UC.may & ~verdict_UC.must) & ~(seen & hidden)[owner].unsqueeze(-1)
        owner = owner.unsqueeze(-1).expand_as(open_UC)[open_UC]
        spans = children_UC[open_UC]
    return seen, hidden


def _levels(
    head: HeadPolicy, layout: TokenLayout, block_size: tuple[int, int], spans: Tensor
) -> Iterator[tuple[Tensor, Verdict, tuple[int, int]]]:
    """Split undecided spans down to single pairs, yielding *(parents, verdicts of their children, child size)*."""
    size = block_size
    while len(spans):
        size, split = _smaller(size)
        table = SpanTable.of(layout, *size)
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
    # a block that hangs over the end has children beyond it, which the table does not list: nothing is there
    inside = (places[..., 1] < table.queries.real.may.shape[-1]) & (places[..., 2] < table.keys.real.may.shape[-1])
    safe = torch.where(inside.unsqueeze(-1), places, 0)
    verdict = judge(head, table.queries[safe[..., 0], safe[..., 1]], table.keys[safe[..., 0], safe[..., 2]])
    return places, Verdict(verdict.may & inside, verdict.must & inside)

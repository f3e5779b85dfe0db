"""Runs of neighbouring slots, summarised: what an interval evaluation needs to know of a block.

Shape suffixes: B samples, T slots, N spans (of ``size`` slots each; the last one may hang over the end).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swaa.compiler.evaluate import evaluate_ahead, evaluate_phases
from swaa.compiler.interval import Interval, Verdict
from swaa.compiler.layout import TokenLayout
from swaa.policies.bound import HeadPolicy


@dataclass(frozen=True, eq=False)
class Spans:
    """One entry per span; all tensors of one shape, [B, N] or what indexing makes of it."""

    positions: Interval
    documents: Interval | None
    decodes: Verdict
    real: Verdict  # may: some slot holds a token; must: every slot does
    limits: Interval | None = None  # how far queries look ahead, where a policy does

    @classmethod
    def of(
        cls,
        positions_BT: Tensor,
        documents_BT: Tensor | None,
        decodes_BT: Tensor | None,
        size: int,
        limits_BT: Tensor | None = None,
    ) -> Spans:
        """Summaries of spans of ``size`` slots; slots beyond the end count as empty."""
        real_BT = positions_BT >= 0
        # where every slot of every span holds a token, most of the work is saved
        all_real = positions_BT.shape[-1] % size == 0 and bool(real_BT.all())
        real_BNs = None if all_real else _split(real_BT, size, False)
        positions = _range(positions_BT, real_BNs, size)
        yes, no = torch.ones_like(positions.lo, dtype=torch.bool), torch.zeros_like(positions.lo, dtype=torch.bool)
        return cls(
            positions,
            None if documents_BT is None else _range(documents_BT, real_BNs, size),
            Verdict(no, no) if decodes_BT is None or not bool(decodes_BT.any()) else _truth(decodes_BT, real_BNs, size),
            Verdict(yes, yes) if real_BNs is None else Verdict(real_BNs.any(-1), real_BNs.all(-1)),
            None if limits_BT is None else _range(limits_BT, real_BNs, size),
        )

    def __getitem__(self, index: Any) -> Spans:
        """The same selection of every tensor."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index]

        return Spans(
            Interval(pick(self.positions.lo), pick(self.positions.hi)),
            None if self.documents is None else Interval(pick(self.documents.lo), pick(self.documents.hi)),
            Verdict(pick(self.decodes.may), pick(self.decodes.must)),
            Verdict(pick(self.real.may), pick(self.real.must)),
            None if self.limits is None else Interval(pick(self.limits.lo), pick(self.limits.hi)),
        )


@dataclass(frozen=True, eq=False)
class SpanTable:
    """A layout's queries and keys, summarised at one span size."""

    queries: Spans
    keys: Spans

    @classmethod
    def of(cls, layout: TokenLayout, query_size: int, key_size: int, *, looks_ahead: bool) -> SpanTable:
        """All samples' spans, [B, N], with B the layout's batch size; how far queries look ahead only on request."""
        batch = layout.batch_size

        def rows(table: Tensor | None) -> Tensor | None:
            return None if table is None else table.expand(batch, -1)

        queries, keys = rows(layout.query_positions_BQ), rows(layout.key_positions_BK)
        assert queries is not None
        assert keys is not None
        return cls(
            Spans.of(
                queries,
                rows(layout.query_documents_BQ),
                rows(layout.query_decodes_BQ),
                query_size,
                rows(layout.query_limits_BQ) if looks_ahead else None,
            ),
            Spans.of(keys, rows(layout.key_documents_BK), None, key_size),
        )


def judge(head: HeadPolicy, queries: Spans, keys: Spans) -> Verdict:
    """May some, must every pair of a query and a key of these spans be visible? Causality and binding included."""
    q, k = queries.positions, keys.positions
    verdict: Verdict = (k <= q) & evaluate_phases(*head.formulas, q, k, queries.decodes)
    if head.looks_ahead:
        verdict = verdict | evaluate_ahead(head.prefill.beyond, q, k, queries.limits)
    verdict = verdict & queries.real & keys.real
    if queries.documents is not None and keys.documents is not None:
        verdict = verdict & (queries.documents == keys.documents)
    return verdict


def _split(table_BT: Tensor, size: int, fill: int | bool) -> Tensor:
    short = -table_BT.shape[-1] % size
    split: Tensor = F.pad(table_BT, (0, short), value=fill).unflatten(-1, (-1, size))
    return split


def _truth(table_BT: Tensor, only_BNs: Tensor | None, size: int) -> Verdict:
    """Is some value of each span true, is every one, among the slots of ``only_BNs``?"""
    values_BNs = _split(table_BT, size, False)
    if only_BNs is None:
        return Verdict(values_BNs.any(-1), values_BNs.all(-1))
    return Verdict((values_BNs & only_BNs).any(-1), (values_BNs | ~only_BNs).all(-1))


def _range(table_BT: Tensor, only_BNs: Tensor | None, size: int) -> Interval:
    """The least and greatest value of each span, among the slots of ``only_BNs`` (0 and 0 where there is none)."""
    values_BNs = _split(table_BT.long(), size, 0)
    if only_BNs is None:
        return Interval(values_BNs.amin(-1), values_BNs.amax(-1))
    far = torch.iinfo(torch.int64).max
    empty_BN = ~only_BNs.any(-1)
    lo = torch.where(only_BNs, values_BNs, far).amin(-1).masked_fill(empty_BN, 0)
    hi = torch.where(only_BNs, values_BNs, -far).amax(-1).masked_fill(empty_BN, 0)
    return Interval(lo, hi)

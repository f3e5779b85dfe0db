"""Full attention without masks: one causal kernel call for each run of tokens.

Padding, packing and a cache in front of the queries do not make full attention sparse; they only cut it into runs: the
tokens of one sample or document, whose queries are the last of its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swaa.compiler.evaluate import evaluate
from swaa.compiler.interval import Interval, UnknownOperation, untraced
from swaa.compiler.layout import TokenLayout
from swaa.policies.bound import LayerPolicy
from swaa.policies.piecewise import Phase

_LEAST_TOKENS = 64
"""Queries of a run, on average, below which a call for each costs more than a mask would."""


@dataclass(frozen=True)
class CausalRun:
    """Slots of queries and keys; the last query stands where the last key stands. ``sample`` None: all samples."""

    sample: int | None
    queries: tuple[int, int]
    keys: tuple[int, int]


def causal_runs(layout: TokenLayout) -> tuple[CausalRun, ...] | None:
    """The runs that full attention falls into; None where it does not, or where they are many and short.

    Queries that are in no run see nothing. Reads the layout's tables on the host.
    """
    batch = layout.batch_size
    runs: list[CausalRun] = []
    rows = [
        None if table is None else table.expand(batch, -1).cpu()
        for table in (
            layout.query_positions_BQ,
            layout.query_documents_BQ,
            layout.key_positions_BK,
            layout.key_documents_BK,
        )
    ]
    if batch > 1 and all(row is None or bool((row == row[:1]).all()) for row in rows):
        batch = 1  # laid out alike after all
    for sample in range(batch):
        queries_Q, query_documents_Q, keys_K, key_documents_K = (None if row is None else row[sample] for row in rows)
        assert queries_Q is not None
        assert keys_K is not None
        query_parts = _parts(queries_Q, query_documents_Q)
        key_parts = _parts(keys_K, key_documents_K)
        if query_parts is None or key_parts is None:
            return None
        for document, (start, stop, position) in query_parts.items():
            if document not in key_parts:
                continue
            key_start, key_stop, key_position = key_parts[document]
            last = key_start + position + (stop - start) - key_position
            if key_position > position or last > key_stop:
                return None
            runs.append(CausalRun(sample if batch > 1 else None, (start, stop), (key_start, last)))
    if not runs or sum(run.queries[1] - run.queries[0] for run in runs) < _LEAST_TOKENS * len(runs):
        return None
    return tuple(runs)


def _parts(positions_T: Tensor, documents_T: Tensor | None) -> dict[int, tuple[int, int, int]] | None:
    """Each document's slots and first position; None where its tokens do not follow each other."""
    real_T = positions_T >= 0
    follows_T = torch.zeros_like(real_T)
    follows_T[1:] = real_T[:-1] & (positions_T[1:] == positions_T[:-1] + 1)
    if documents_T is not None:
        follows_T[1:] &= documents_T[1:] == documents_T[:-1]
    begins_T = real_T & ~follows_T
    ends_T = real_T.clone()
    ends_T[:-1] &= ~(follows_T[1:] & real_T[1:])
    starts, stops = begins_T.nonzero()[:, 0].tolist(), (ends_T.nonzero()[:, 0] + 1).tolist()
    parts: dict[int, tuple[int, int, int]] = {}
    for start, stop in zip(starts, stops, strict=True):
        document = 0 if documents_T is None else int(documents_T[start])
        if document in parts:
            return None
        parts[document] = (start, stop, int(positions_T[start]))
    return parts


def attend_runs(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    runs: Sequence[CausalRun],
    causal: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Full attention run by run, [B, H, Q, D of the values]; zeros for queries that are in none.

    Args:
        causal: attention of queries that are the last of the keys.
    """
    samples: dict[int | None, list[CausalRun]] = {}
    for run in runs:
        samples.setdefault(run.sample, []).append(run)
    whole = None in samples
    length = query_BHQD.shape[2]

    def gap(of: slice, size: int) -> Tensor:
        return query_BHQD[of].new_zeros(*query_BHQD[of].shape[:2], size, value_BGKD.shape[-1])

    parts = []
    for sample in [None] if whole else range(len(query_BHQD)):
        of = slice(None) if sample is None else slice(sample, sample + 1)
        pieces, reached = [], 0
        for run in samples.get(sample, []):
            (start, stop), (first, last) = run.queries, run.keys
            if start > reached:
                pieces.append(gap(of, start - reached))
            pieces.append(
                causal(query_BHQD[of, :, start:stop], key_BGKD[of, :, first:last], value_BGKD[of, :, first:last])
            )
            reached = stop
        if length > reached:
            pieces.append(gap(of, length - reached))
        parts.append(pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@untraced
def hides_nothing(layer: LayerPolicy, layout: TokenLayout) -> bool:
    """Is the policy full attention at these positions, such as a window that is longer than the sequence?

    Never true where it is not; it may be false where it is, as positions are judged all at once.
    """
    if layer.is_full:
        return True
    queries, keys = (
        Interval(table.amin().clamp(min=0), table.amax().clamp(min=0))
        for table in (layout.query_positions_BQ, layout.key_positions_BK)
    )
    phases: list[Phase] = []
    if bool(layout.query_decodes_BQ.any()):
        phases.append("decode")
    if not bool(layout.query_decodes_BQ.all()):
        if layer.looks_ahead:
            return False  # it shows more than full attention does
        phases.append("prefill")
    try:
        truths = [evaluate(head.formula(phase), queries, keys) for _, head in layer.groups for phase in phases]
    except UnknownOperation:
        return False
    return all(truth if isinstance(truth, bool) else bool(truth.must) for truth in truths)

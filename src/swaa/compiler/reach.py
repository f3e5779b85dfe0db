"""The receptive field: which tokens of the prompt can reach the last one's final state, through all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from swaa.compiler.cofactors import possible
from swaa.compiler.dense import dense_mask
from swaa.compiler.interval import UnknownOperation
from swaa.compiler.layout import TokenLayout
from swaa.compiler.spans import Spans, judge
from swaa.policies import BoundPolicy, HeadPolicy, LayerPolicy

_SPAN = 128  # queries followed, and keys judged, at a time


def receptive_field(bound: BoundPolicy, prompt_length: int) -> int:
    """How many of the prompt's tokens can reach the last one's final state, through all layers.

    Layer by layer from the top, the set of positions that matter grows by the keys that they see; each position also
    keeps itself, through the residual stream.
    """
    reached = torch.zeros(prompt_length, dtype=torch.bool)
    reached[-1] = True
    layers = [possible(layer) for layer in bound.layers]
    followed = {layer: torch.zeros_like(reached) for layer in layers}
    for layer in reversed(layers):
        new = reached & ~followed[layer]  # what an equal layer above has followed is in the set already
        followed[layer] |= new
        rows = new.nonzero()[:, 0].flip(0)  # the latest queries see the most keys, which need no second look then
        seen = reached.clone()
        for _, head in layer.groups:
            for some in rows.split(_SPAN):
                if len(some) and not bool(seen[: None if head.looks_ahead else int(some[0])].all()):
                    _follow(head, some, seen)
        reached = seen
    return int(reached.sum())


def _follow(head: HeadPolicy, rows_R: Tensor, seen_K: Tensor) -> None:
    """Add the keys that some of these queries may see to ``seen``. Only spans in doubt are looked at pair by pair."""
    last = len(seen_K) if head.looks_ahead else int(rows_R.max()) + 1
    keys_K = torch.arange(last)
    limits_1R = torch.full_like(rows_R[None], last)
    queries = Spans.of(rows_R[None], None, None, len(rows_R), limits_1R)
    try:
        verdict = judge(head, queries, Spans.of(keys_K[None], None, None, _SPAN))
        must, may = (part[0].repeat_interleave(_SPAN)[:last] for part in (verdict.must, verdict.may))
    except UnknownOperation:  # every key is in doubt then
        must, may = torch.zeros(last, dtype=torch.bool), torch.ones(last, dtype=torch.bool)
    seen_K[:last] |= must
    keys_K = keys_K[may & ~seen_K[:last]]
    layout = TokenLayout(rows_R[None], keys_K[None], torch.zeros(1, len(rows_R), dtype=torch.bool))
    layer = LayerPolicy((((0,), head),), 1)
    seen_K[keys_K] |= dense_mask(layer, layout)[0, 0].any(0)

"""The lazy ratio: how much of the last queries' attention falls on the first tokens and the recent ones.

Measured under full attention, from queries and keys, for the last queries alone: no full attention matrix is made.

Shape suffixes: B rows, H query heads, G KV heads, R last queries, K keys, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swaa.hf.listening import AttentionCall, listening
from swaa.policies import AttentionPolicy, FullAttention, SinkTokens, SlidingWindow
from swaa.search.calibration import Item, make_batches
from swaa.search.probe import Probe


def lazy_ratios(probe: Probe, *, num_sinks: int, recent: int, last_queries: int) -> Tensor:
    """float64 [N, L]: of each item and layer, the share of attention on sinks and recent keys, mean over heads.

    Args:
        probe: model and items; the base policy plays no part.
        num_sinks: first tokens of the prompt.
        recent: keys that count as recent, the query's own among them.
        last_queries: of the prompt; all of them where it has fewer.
    """
    # prompts alone: their last tokens then end the rows
    prompts = [Item(item.id, item.ids, item.answer_ids[:1]) for item in probe.items]
    near = SlidingWindow(recent) | SinkTokens(num_sinks) if num_sinks else SlidingWindow(recent)
    meter = _Meter(near, last_queries)
    found = torch.zeros(len(prompts), probe.num_layers, dtype=torch.float64)
    with torch.no_grad(), probe.under(probe.all_layers), listening(probe.model, meter):
        for batch in make_batches(prompts, batch_size=probe.batch_size):
            probe.logits(batch.to(probe.model.device))
            for layer, shares_B in meter.shares.items():
                found[list(batch.places), layer] = shares_B
    return found


class _Meter:
    """Takes the share of every layer as the model runs."""

    def __init__(self, near: AttentionPolicy, last: int) -> None:
        self._near, self._last = near, last
        self.shares: dict[int, Tensor] = {}
        """By layer, float64 [B]."""

    def __call__(self, call: AttentionCall) -> None:
        query_BHRD = call.query_BHQD[:, :, -self._last :].float()
        key_BGKD = call.key_BGKD.float()
        key_BHKD = key_BGKD.repeat_interleave(query_BHRD.shape[1] // key_BGKD.shape[1], dim=1)
        scores_BHRK = query_BHRD @ key_BHKD.transpose(-1, -2) * call.scale
        if call.softcap is not None:
            scores_BHRK = call.softcap * torch.tanh(scores_BHRK / call.softcap)
        visible = call.visible(FullAttention(), self._last)
        # a padded query sees nothing: its row is NaN, and then nothing
        weights_BHRK = scores_BHRK.masked_fill(~visible, float("-inf")).softmax(-1).nan_to_num(0.0)
        near_BHR = (weights_BHRK * call.visible(self._near, self._last)).sum(-1, dtype=torch.float64)
        real_BHR = visible.any(-1).expand(near_BHR.shape)
        self.shares[call.layer] = (near_BHR.sum((1, 2)) / real_BHR.sum((1, 2))).cpu()

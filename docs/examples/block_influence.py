"""A scorer of one's own: layers that change the hidden states most keep full attention."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity

from swaa.hf.layers import decoder_layers
from swaa.search.scorers import Scorer, register_scorer


@register_scorer
@dataclass(frozen=True)
class BlockInfluence(Scorer):
    """1 - cosine of what enters and leaves a layer, summed over the answers' tokens (ShortGPT, arXiv 2403.03853)."""

    name: ClassVar[str] = "block_influence"

    def score(self, probe):
        layers = list(decoder_layers(probe.model))
        found = [0.0] * len(layers)

        def listen(layer, args, output):
            before, after = args[0], output[0] if isinstance(output, tuple) else output
            turned_BS = 1 - cosine_similarity(before.double(), after.double(), dim=-1)
            answers_BA = turned_BS[:, -batch.answer_mask.shape[1] :]  # the last slots predict the answer
            found[layers.index(layer)] += float(answers_BA[batch.answer_mask].sum())

        hooks = [layer.register_forward_hook(listen) for layer in layers]
        with torch.no_grad(), probe.under(probe.all_layers):  # full attention
            for batch in probe.batches:
                probe.logits(batch)
        for hook in hooks:
            hook.remove()
        return tuple(found)

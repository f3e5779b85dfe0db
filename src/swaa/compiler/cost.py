"""The counted reading: what a policy costs and keeps, exactly, without running a model.

Pairs are query-key pairs that attention computes with; one pair of one head costs ``4 * head_dim`` floating-point
operations (a product with the key, a product with the value: Kaplan et al., arXiv 2001.08361).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

import torch

from swaa.compiler.cofactors import choices, cofactor, possible
from swaa.compiler.dense import dense_mask
from swaa.compiler.interval import UnknownOperation
from swaa.compiler.layout import TokenLayout
from swaa.compiler.refine import count_visible
from swaa.compiler.retention import live_keys
from swaa.compiler.shape import ModelShape
from swaa.errors import invalid
from swaa.policies import AttentionPolicy, HeadPolicy, LayerPolicy, bind

log = logging.getLogger(__name__)

_CELLS = 1 << 21  # query-key pairs of a dense mask at a time, where one is needed


@dataclass(frozen=True)
class LayerCost:
    """Counts of one layer, summed over its heads. Where it chooses by content, pairs are at most so many.

    Attributes:
        prefill_pairs: visible query-key pairs of the prompt.
        decode_pairs: those of the generated tokens.
        kept_keys: cached key vectors that some generated token may still see when decoding begins, over all KV heads.
    """

    prefill_pairs: int
    decode_pairs: int
    kept_keys: int


@dataclass(frozen=True)
class Cost:
    """What a policy costs on a model, next to full attention. Sizes in tokens and bytes."""

    shape: ModelShape
    prompt_length: int
    new_tokens: int
    layers: tuple[LayerCost, ...]
    full: LayerCost

    @property
    def visible_pair_share(self) -> float:
        """Visible pairs as a fraction of full attention's, over all layers, heads and both phases."""
        ours = sum(layer.prefill_pairs + layer.decode_pairs for layer in self.layers)
        return ours / (len(self.layers) * (self.full.prefill_pairs + self.full.decode_pairs))

    @property
    def kv_share(self) -> float:
        """Key-value bytes that must be kept after the prompt, as a fraction of full attention's."""
        return sum(layer.kept_keys for layer in self.layers) / (len(self.layers) * self.full.kept_keys)

    @property
    def prefill_flops(self) -> int:
        """Attention operations of the prompt (projections and MLP not counted)."""
        return self._flops(sum(layer.prefill_pairs for layer in self.layers))

    @property
    def decode_flops(self) -> int:
        """Attention operations of all generated tokens."""
        return self._flops(sum(layer.decode_pairs for layer in self.layers))

    @property
    def full_prefill_flops(self) -> int:
        """Attention operations of the prompt under full attention."""
        return self._flops(len(self.layers) * self.full.prefill_pairs)

    @property
    def full_decode_flops(self) -> int:
        """Attention operations of all generated tokens under full attention."""
        return self._flops(len(self.layers) * self.full.decode_pairs)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that must be kept when decoding begins."""
        return self._bytes(sum(layer.kept_keys for layer in self.layers))

    @property
    def full_kv_bytes(self) -> int:
        """The same under full attention."""
        return self._bytes(len(self.layers) * self.full.kept_keys)

    def _flops(self, pairs: int) -> int:
        return 4 * self.shape.head_dim * pairs

    def _bytes(self, keys: int) -> int:
        return 2 * keys * self.shape.head_dim * self.shape.bytes_per_value


def estimate_cost(policy: AttentionPolicy, shape: ModelShape, prompt_length: int, new_tokens: int = 0) -> Cost:
    """Count what a policy costs for one sample of ``prompt_length`` tokens that generates ``new_tokens``.

    Raises:
        UserError: a length is no int (``prompt_length`` >= 1, ``new_tokens`` >= 0), or the policy names a layer or
            head that the model lacks.
    """
    for name, value, least in (("prompt_length", prompt_length, 1), ("new_tokens", new_tokens, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise invalid(name, accepted=f"an int >= {least} (tokens)", got=value, mend="Count tokens.")
    bound = bind(policy, shape.num_layers, shape.num_heads)
    layers = tuple(_layer_cost(layer, shape.num_kv_heads, prompt_length, new_tokens) for layer in bound.layers)
    prefill = shape.num_heads * prompt_length * (prompt_length + 1) // 2
    decode = shape.num_heads * sum(prompt_length + i + 1 for i in range(new_tokens))
    return Cost(
        shape, prompt_length, new_tokens, layers, LayerCost(prefill, decode, shape.num_kv_heads * prompt_length)
    )


@lru_cache(maxsize=512)
def _layer_cost(layer: LayerPolicy, num_kv_heads: int, prompt_length: int, new_tokens: int) -> LayerCost:
    prefill = decode = 0
    prompt = TokenLayout.contiguous(prompt_length, prompt_lengths=prompt_length)
    answer = TokenLayout.contiguous(new_tokens, offset=prompt_length, prompt_lengths=prompt_length)
    for heads, head in layer.groups:
        prefill += len(heads) * _count(head, prompt)
        if new_tokens:
            decode += len(heads) * _count(head, answer)
    live_1HK = live_keys(
        layer,
        torch.arange(prompt_length).unsqueeze(0),
        torch.tensor([prompt_length]),
        num_kv_heads=num_kv_heads,
    )
    kept = int(live_1HK.sum()) * (num_kv_heads // live_1HK.shape[1])
    return LayerCost(prefill, decode, kept)


def _count(head: HeadPolicy, layout: TokenLayout) -> int:
    if head.by_content:
        return _most_pairs(head, layout)
    try:
        return int(count_visible(head, layout).sum())
    except UnknownOperation as reason:
        layer = LayerPolicy((((0,), head),), 1)
        log.warning("%s: %s; its pairs are counted densely", layer.describe("prefill"), reason)
        rows = max(1, _CELLS // layout.key_length)
        counts = [
            int(dense_mask(layer, layout.queries(start, start + rows)).sum())
            for start in range(0, layout.query_length, rows)
        ]
        return sum(counts)


def _most_pairs(head: HeadPolicy, layout: TokenLayout) -> int:
    """At most so many pairs are visible, whatever is chosen by content. Exact for a single choice alone."""
    layer = LayerPolicy((((0,), head),), 1)
    bound = _count(possible(layer).groups[0][1], layout)
    made = choices(layer)
    most = made[0].most_blocks if len(made) == 1 else None
    if most is None:
        return bound
    size = made[0].block_size
    whatever = cofactor(layer, (False,)).groups[0][1]
    positions = layout.query_positions_BQ
    chosen = int((size * (positions // size).clamp(max=most) + positions % size + 1).sum())
    return min(bound, _count(whatever, layout) + chosen)

"""What the library makes of a policy: its masks and its attention, brought to one form that can be compared.

Shape suffixes: B samples, H query heads, G key-value heads, Q queries, K keys, D head size, M and N blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import swaa.compiler as compiler
from swaa.policies import LayerPolicy
from swaa.testing.scenes import Scene

Reading = Callable[[LayerPolicy, Scene], Tensor]
"""A layer and a scene -> bool [B, H, Q, K]: which query sees which key."""

BLOCK = (8, 4)
"""Queries and keys of the blocks that small shapes are cut into."""


def dense(layer: LayerPolicy, scene: Scene) -> Tensor:
    """The dense mask."""
    return _grown(compiler.dense_mask(layer, scene.layout), layer, scene)


def kernel(layer: LayerPolicy, scene: Scene) -> Tensor:
    """The ``mask_mod`` that FlexAttention is given, called on all slots at once."""
    visible = compiler.mask_mod(layer, scene.layout)
    b, h, q, k = torch.meshgrid(*map(torch.arange, _shape(layer, scene)), indexing="ij")
    return visible(b, h, q, k)


def blocks(layer: LayerPolicy, scene: Scene, size: tuple[int, int] = BLOCK) -> Tensor:
    """The block mask: full blocks are seen whole, partial ones through the ``mask_mod``, others not at all."""
    mask = compiler.block_mask(layer, scene.layout, block_size=size)
    partial = _listed(mask.kv_num_blocks, mask.kv_indices)
    full = torch.zeros_like(partial)
    if mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None:
        full = _listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    exact = kernel(layer, scene)
    grown = [_on_slots(blocks_BHMN, size, exact.shape) for blocks_BHMN in (partial, full)]
    return (grown[0] & exact) | grown[1]


def _listed(counts_BHM: Tensor, columns_BHMN: Tensor) -> Tensor:
    """bool [B, H, M, N] of blocks that are listed by count and column."""
    inside = torch.arange(columns_BHMN.shape[-1]) < counts_BHM.unsqueeze(-1)
    grid = torch.zeros(columns_BHMN.shape, dtype=torch.bool)
    return grid.scatter(-1, columns_BHMN.long(), inside)


def _on_slots(blocks_BHMN: Tensor, size: tuple[int, int], shape: torch.Size) -> Tensor:
    slots = blocks_BHMN.repeat_interleave(size[0], -2).repeat_interleave(size[1], -1)
    return slots[..., : shape[-2], : shape[-1]].expand(shape)


def _shape(layer: LayerPolicy, scene: Scene) -> tuple[int, int, int, int]:
    return len(scene.keys), layer.num_heads, len(scene.queries[0]), len(scene.keys[0])


def _grown(mask: Tensor, layer: LayerPolicy, scene: Scene) -> Tensor:
    return mask.expand(_shape(layer, scene))


MASKS: dict[str, Reading] = {"dense mask": dense, "mask of the kernel": kernel, "block mask": blocks}


def attend(layer: LayerPolicy, scene: Scene, request: str) -> tuple[Tensor, Tensor]:
    """The attention weights of a kernel, and those that random queries and keys ask for before any mask.

    Values are unit vectors, one for each key: so the output of attention is its weights.

    Returns:
        weights [B, H, Q, K], and unmasked scores [B, H, Q, K] in float64.
    """
    batch, heads, queries, keys = _shape(layer, scene)
    size = max(16, 1 << (keys - 1).bit_length())
    query_BHQD, key_BGKD, value_BGKD = inputs(batch, heads, queries, keys, size)
    program = compiler.AttentionProgram(scene.layout, request)
    output_BHQD = program.attend(layer, query_BHQD, key_BGKD, value_BGKD)
    scores = query_BHQD.double() @ key_BGKD.double().transpose(-1, -2) / size**0.5
    return output_BHQD[..., :keys], scores.expand(batch, heads, queries, keys)


def inputs(batch: int, heads: int, queries: int, keys: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries and keys, of one KV head, and a unit vector for each key as its value."""
    draw = torch.Generator().manual_seed(0)
    query_BHQD = torch.randn(batch, heads, queries, size, generator=draw)
    key_BGKD = torch.randn(batch, 1, keys, size, generator=draw)
    return query_BHQD, key_BGKD, torch.eye(keys, size).expand(batch, 1, keys, size).contiguous()


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """The weights that scores and a mask come to; zeros for a query that sees nothing."""
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
    return torch.where(mask.any(-1, keepdim=True), weights, 0.0)

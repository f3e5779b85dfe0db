"""FSDP2: a model's weights, gradients and optimizer states divided over devices, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

_DTYPES = {"bfloat16": torch.bfloat16}


def shard(model: nn.Module, mesh: Any, mixed_precision: str = "none") -> None:
    """Shard in place: each decoder layer is gathered when its turn comes, and the rest with the model itself.

    Args:
        model: a transformers model, with an adapter inside or without; a policy goes on it before.
        mesh: the one-dimensional device mesh of the data-parallel devices.
        mixed_precision: ``none``, or the dtype in which sharded float32 weights compute; gradients are summed in
            float32.
    """
    policy = MixedPrecisionPolicy()
    if mixed_precision != "none":
        policy = MixedPrecisionPolicy(param_dtype=_DTYPES[mixed_precision], reduce_dtype=torch.float32)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers decoder: the longest list of equal modules that it has."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max((list(modules) for modules in lists), key=len, default=[])

"""FSDP2: a model's weights, gradients and optimizer states divided over devices, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

_DTYPES = {"bfloat16": torch.bfloat16}


def shard(model: nn.Module, mesh: Any, mixed_precision: str = "none") -> None:
    """Shard in place: each decoder layer is gathered when its turn comes, and the rest with the model itself.

    A model that is sharded already stays as it is.

    Args:
        model: a transformers model, with an adapter inside or without; a policy goes on it before.
        mesh: the one-dimensional device mesh of the data-parallel devices.
        mixed_precision: ``none``, or the dtype in which sharded float32 weights compute; gradients are summed in
            float32.
    """
    if isinstance(model, FSDPModule):
        return
    policy = MixedPrecisionPolicy()
    if mixed_precision != "none":
        policy = MixedPrecisionPolicy(param_dtype=_DTYPES[mixed_precision], reduce_dtype=torch.float32)
    for module in (*decoder_layers(model), model):
        sharded: Any = fully_shard(module, mesh=mesh, mp_policy=policy)
        if mesh.device_type == "cpu":  # gloo sums, and cannot average
            sharded.set_force_sum_reduction_for_comms(True)


def gather_no_more(model: nn.Module) -> None:
    """Let go of what a forward pass gathered and no backward pass freed, so that ``parameters()`` are the shards."""
    if isinstance(model, FSDPModule):
        model.reshard()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers decoder: the longest list of equal modules that it has."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max((list(modules) for modules in lists), key=len, default=[])


def whole(tensor: Tensor) -> Tensor:
    """The tensor that shards make up; any other as it is. All devices call this together."""
    gathered: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered


def whole_optimizer_state(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """``optimizer.state_dict()`` with whole tensors on the CPU: what the same training on one device has.

    All devices call this together.

    Args:
        optimizer: over weights that are sharded.
        keep: False on a device that only helps to gather, whose result is empty.
    """
    stored = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for index, values in stored["state"].items():
        gathered = {name: _on_cpu(value) if keep else _gathered(value) for name, value in values.items()}
        if keep:
            state[index] = gathered
    return {**stored, "state": state} if keep else {}


def load_optimizer_state(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Put a whole state into an optimizer over sharded weights; every device keeps its part. All call this together.

    Args:
        optimizer: with the groups that the stored one has.
        stored: of :func:`whole_optimizer_state`, or of an optimizer on one device.
    """
    numbers = [number for group in stored["param_groups"] for number in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        number: {name: _like(weight, value) for name, value in stored["state"][number].items()}
        for number, weight in zip(numbers, weights, strict=True)
        if number in stored["state"]
    }
    optimizer.load_state_dict({**stored, "state": state})


def _like(weight: Tensor, value: Any) -> Any:
    """A whole tensor divided as the weight is; a count as it is."""
    if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


def _gathered(value: Any) -> Any:
    return whole(value) if isinstance(value, Tensor) else value


def _on_cpu(value: Any) -> Any:
    return whole(value).cpu() if isinstance(value, Tensor) else value

"""A model's decoder layers: keep what they give in one forward pass, and begin another one above them.

Two passes over the same tokens whose policies differ from some layer on are equal below it. So the outputs of a pass
are kept, and the layers below are replaced, for as long as another one runs, by modules that hand out what is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from swaa.hf.audit_places import layer_index
from swaa.hf.spec import text_config


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The list of the decoder's layers, in order; None where the model keeps them in another way."""
    count = text_config(model.config).num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            found = [{layer_index(part) for part in layer.modules()} - {None} for layer in module]
            if found == [{index} for index in range(count)]:
                return module
    return None


@contextmanager
def keeping_outputs(layers: nn.ModuleList, which: Collection[int], kept: dict[int, Any]) -> Iterator[None]:
    """Inside the block, a forward pass puts what these layers give into ``kept``, on the CPU, by index."""
    with ExitStack() as stack:
        for index in which:

            def keep(module: nn.Module, args: Any, output: Any, index: int = index) -> None:
                kept[index] = _moved(output, torch.device("cpu"))

            stack.callback(layers[index].register_forward_hook(keep).remove)
        yield


@contextmanager
def beginning_after(layers: nn.ModuleList, layer: int, output: Any) -> Iterator[None]:
    """Inside the block, the layers up to ``layer`` compute nothing, and the next one reads ``output``."""
    below = [layers[index] for index in range(layer + 1)]
    try:
        for index, one in enumerate(below):
            layers[index] = _HandsOut(one, output)
        yield
    finally:
        for index, one in enumerate(below):
            layers[index] = one


@contextmanager
def ending_after(layers: nn.ModuleList, layer: int, found: list[Any]) -> Iterator[None]:
    """The block, a forward pass, ends with what this layer gives, which goes into ``found``, on the CPU."""

    def end(module: nn.Module, args: Any, output: Any) -> None:
        found.append(_moved(output, torch.device("cpu")))
        raise _Enough

    hook = layers[layer].register_forward_hook(end)
    try:
        yield
    except _Enough:
        return
    finally:
        hook.remove()


class _Enough(Exception):
    """A pass has come to the layer up to which it was wanted."""


class _HandsOut(nn.Module):
    """Stands for a layer, and gives what was kept; all else that is asked of it, the layer itself answers."""

    def __init__(self, layer: nn.Module, output: Any) -> None:
        super().__init__()
        self.__dict__["_stands_for"] = layer  # no submodule: it stays where it is
        self.__dict__["_output"] = output

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _moved(self._output, hidden_states.device)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stands_for"], name)  # the kind of its attention, say


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors on the device; a layer gives one, or a tuple with one."""
    if isinstance(value, Tensor):
        return value.detach().to(device)
    return tuple(_moved(one, device) for one in value) if isinstance(value, tuple) else value

"""Where a model attends: its attention modules, found by their structure, and the layers that have none.

An attention module knows its layer (``layer_idx``), is called attention by its class or by its owner, and holds linear
projections of its own. Which of these is the output projection shows when it runs: it is the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from swaa.errors import UserError, invalid
from swaa.hf.apply import NO_ATTENTION
from swaa.hf.spec import text_config


@dataclass(frozen=True, eq=False)
class AttentionPlace:
    """The attention module of one layer.

    Attributes:
        layer: its index.
        name: its dotted name in the model, for messages.
        module: what is called with hidden states [B, T, E].
        projections: its own linear children; the last to run is the output projection.
    """

    layer: int
    name: str
    module: nn.Module
    projections: tuple[nn.Module, ...]


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside its wrappers (torch.compile, PEFT), checked to generate text by itself.

    Raises:
        UserError: it is none, or has an encoder.
    """
    base: Any = getattr(model, "_orig_mod", model)
    base = getattr(base, "get_base_model", lambda: base)()
    if not isinstance(base, PreTrainedModel) or not base.can_generate():
        mend = "Give a language model with its output head, such as AutoModelForCausalLM loads."
        raise invalid("model", accepted="a transformers model that generates", got=type(base).__name__, mend=mend)
    if base.config.is_encoder_decoder:
        raise UserError(f"{type(base).__name__}: has an encoder and cross attention. Audit a decoder-only model.")
    return base


def attention_places(base: PreTrainedModel) -> tuple[list[AttentionPlace], dict[int, str]]:
    """The attention module of every layer that attends, and for each other layer what it is instead.

    Raises:
        UserError: a layer has no module that looks like attention, or has two.
    """
    config = text_config(base.config)
    decoder = base.get_decoder()
    root = decoder if isinstance(decoder, nn.Module) else base
    kinds = getattr(config, "layer_types", None) or ()
    others = {index: kind for index, kind in enumerate(kinds) if kind in NO_ATTENTION}
    found: dict[int, AttentionPlace] = {}
    for place in _candidates(root):
        if place.layer in others:
            continue
        known = found.get(place.layer)
        if known is None or place.name.startswith(f"{known.name}."):  # the inner of two is the one that computes
            found[place.layer] = place
        elif not known.name.startswith(f"{place.name}."):
            raise UserError(
                f"{type(base).__name__}: layer {place.layer} has two attention modules, {known.name} and {place.name}, "
                f"so which one the declared mask is of is unknown. Audit a model with one for each layer."
            )
    for index in range(config.num_hidden_layers):
        if index not in found and index not in others:
            others[index] = _what_else(root, index)
    if not found:
        raise UserError(
            f"{type(base).__name__}: no attention found. Expected modules with a layer_idx, 'attention' or 'attn' in "
            f"their name and linear projections of their own. Give the attention modules of your model a layer_idx."
        )
    return [found[index] for index in sorted(found)], others


def _candidates(root: nn.Module) -> Iterator[AttentionPlace]:
    for name, module in root.named_modules():
        layer = layer_index(module)
        projections = tuple(child for child in module.children() if _is_linear(child))
        convolves = any(isinstance(child, nn.Conv1d) for child in module.children())  # a recurrent mixer
        called = f"{type(module).__name__} {name.rpartition('.')[2]}".lower()
        crosses = getattr(module, "is_cross_attention", False)
        if layer is not None and len(projections) > 1 and not convolves and not crosses and "att" in called:
            yield AttentionPlace(layer, name, module, projections)


def layer_index(module: nn.Module) -> int | None:
    """The index of the layer that a module says it belongs to."""
    index = getattr(module, "layer_idx", getattr(module, "layer_id", None))
    return index if isinstance(index, int) else None


def _is_linear(module: nn.Module) -> bool:
    """A projection: nn.Linear, GPT-2's Conv1D, a quantised one, or PEFT's wrapper around one of these."""
    wrapped = getattr(module, "base_layer", module)
    weight = getattr(wrapped, "weight", None)
    return weight is not None and weight.dim() == 2 and not isinstance(wrapped, nn.Embedding)


def _what_else(root: nn.Module, index: int) -> str:
    """What a layer without attention mixes tokens with.

    Raises:
        UserError: nothing says that it belongs to this layer.
    """
    others = [module for module in root.modules() if layer_index(module) == index]
    if not others:
        raise UserError(
            f"{type(root).__name__}: nothing in it has layer_idx={index}, so the attention of layer {index} cannot be "
            f"found. Give the attention modules of your model a layer_idx."
        )
    return type(others[-1]).__name__

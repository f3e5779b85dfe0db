"""Learned sink logits on a model: a parameter of each attention layer that has some, saved and loaded with the weights.

The parameter is an ordinary one of the attention module, [H] in the model's dtype: optimizers find it,
``save_pretrained`` writes it, and :func:`swaa.load` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from swaa.errors import UserError
from swaa.policies.scores import LayerScores

PARAMETER = "swaa_sink_logits"
"""The parameter's name on an attention module."""


def add_sinks(decoder: PreTrainedModel, layers: Sequence[LayerScores]) -> list[nn.Module]:
    """Register the parameters of the layers that learn, with the values that they begin with.

    A layer that has one already, from a checkpoint or from scores applied before, keeps it with what it has learned.

    Args:
        layers: the score modifications of every layer.

    Returns:
        The attention modules that got one.

    Raises:
        UserError: a layer has no attention module that knows its number, or has several.
    """
    learning = {index: layer for index, layer in enumerate(layers) if layer.learns}
    if not learning:
        return []
    found = _attention_modules(decoder)
    for index in learning:
        if len(found.get(index, ())) != 1:
            raise UserError(
                f"SinkLogits: layer {index} of {type(decoder).__name__} has {len(found.get(index, ()))} attention "
                f"modules that know their layer_idx, and learned logits need one. Leave out learned=True."
            )
    new = {index: found[index][0] for index in learning if not hasattr(found[index][0], PARAMETER)}
    for index, module in new.items():
        layer = learning[index]
        begins = torch.tensor([values[0] if values else 0.0 for values in layer.learned_sinks])
        like = next(parameter for parameter in module.parameters() if parameter.is_floating_point())
        module.register_parameter(PARAMETER, nn.Parameter(begins.to(like.device, decoder.dtype)))
    return list(new.values())


def remove_sinks(modules: Sequence[nn.Module]) -> None:
    """Take the parameters off."""
    for module in modules:
        module._parameters.pop(PARAMETER, None)


def check_sinks(decoder: PreTrainedModel, layers: Sequence[LayerScores]) -> None:
    """Refuse scores that would learn where the model has no parameters for it.

    Raises:
        UserError: names the layer.
    """
    found = _attention_modules(decoder)
    for index, layer in enumerate(layers):
        if layer.learns and not any(hasattr(module, PARAMETER) for module in found.get(index, ())):
            raise UserError(
                f"SinkLogits: layer {index} has no learned logits. Apply them with swaa.apply_policy(model, policy, "
                f"scores) first; using() puts no parameters on a model."
            )


def restore_sinks(model: PreTrainedModel, source: str) -> None:
    """Read the parameters of a model from the checkpoint that its other weights came from.

    Args:
        source: a folder or hub id.

    Raises:
        UserError: the checkpoint lacks one of them, or has one of another size.
    """
    wanted = {name: parameter for name, parameter in model.named_parameters() if name.endswith(f".{PARAMETER}")}
    if not wanted:
        return
    for name, saved in _saved(source, wanted).items():
        parameter = wanted.pop(name)
        if saved.shape != parameter.shape:
            raise UserError(
                f"{source}: {name} has the shape {tuple(saved.shape)}, and the model has {len(parameter)} query heads. "
                f"Save the model again."
            )
        with torch.no_grad():
            parameter.copy_(saved)
    if wanted:
        raise UserError(
            f"{source}: the checkpoint's scores learn sink logits, and it lacks {min(wanted)!r}. Save the model again, "
            f"or load it with scores of your own."
        )


def _saved(source: str, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of these names, as far as the checkpoint has them."""
    index = cached_file(source, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    files = ["model.safetensors"]
    if index is not None:
        places = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({places[name] for name in wanted if name in places})
    tensors: dict[str, Tensor] = {}
    for file in files:
        path = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            with safe_open(path, framework="pt") as content:
                tensors |= {name: content.get_tensor(name) for name in set(content.keys()) & wanted.keys()}
    return tensors


def _attention_modules(decoder: PreTrainedModel) -> dict[int, list[nn.Module]]:
    """By layer, the modules that are called attention and know their layer; of two nested ones, the inner."""
    found: dict[int, dict[str, nn.Module]] = {}
    for name, module in decoder.named_modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and any(word in type(module).__name__.lower() for word in ("attention", "attn")):
            of_layer = found.setdefault(index, {})
            found[index] = {known: one for known, one in of_layer.items() if not name.startswith(f"{known}.")}
            found[index][name] = module
    return {index: list(modules.values()) for index, modules in found.items()}

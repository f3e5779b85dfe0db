"""A model's sizes, read off the model itself or off its config."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from swaa.compiler.shape import ModelShape
from swaa.errors import UserError
from swaa.hf.spec import text_config


def model_shape(model: Any) -> ModelShape:
    """The sizes of a transformers model (or PEFT wrapper) that costs depend on."""
    config = text_config(model.config)
    heads = config.num_attention_heads
    dtype = getattr(model, "dtype", torch.float32)
    layer_weights, head_weights = _weights(model, config)
    return ModelShape(
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        bytes_per_value=dtype.itemsize,
        hidden_size=config.hidden_size,
        layer_weights=layer_weights,
        head_weights=head_weights,
    )


def shape_of(source: str | Path | Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> ModelShape:
    """The sizes of a model that is not loaded: a catalogue name, a folder or a hub id, or the fields of a config.

    A name of the catalogue is fetched; of a folder or hub id the config alone is read.

    Raises:
        UserError: there is no such model, or no model can be made of its config.
    """
    from swaa.hf.baselines import make_config
    from swaa.hf.loading import model_source

    if isinstance(source, Mapping):
        config: Any = make_config(source)
    else:
        place = model_source(source)
        try:
            config = AutoConfig.from_pretrained(place)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"model {str(source)!r}: its config cannot be read ({reason}). Check the name.") from error
    try:
        with torch.device("meta"):  # the weights' sizes without the weights
            return model_shape(AutoModelForCausalLM.from_config(config, dtype=dtype))
    except (ValueError, AttributeError, TypeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        name = str(source) if not isinstance(source, Mapping) else config.model_type
        raise UserError(
            f"model {name!r}: its config makes no causal language model with attention ({reason}). Use a decoder."
        ) from error


def _weights(model: Any, config: Any) -> tuple[int, int]:
    """Weights of a layer that each token is multiplied with, mean over the layers, and those of the output head."""
    inputs, head = model.get_input_embeddings(), None
    with contextlib.suppress(AttributeError, NotImplementedError):
        head = model.get_output_embeddings()
    head_weights = head.weight.numel() if head is not None else 0
    aside = {id(inputs.weight)} | ({id(head.weight)} if head is not None else set())
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    share = chosen / experts if experts and chosen else 1.0
    total = sum(
        parameter.numel() * (share if ".experts." in name else 1.0)
        for name, parameter in model.named_parameters()
        if id(parameter) not in aside and parameter.dim() > 1 and "lora_" not in name
    )
    return int(total / config.num_hidden_layers), head_weights

"""A model's sizes, read off its config."""

from __future__ import annotations

from typing import Any

import torch

from swaa.compiler.shape import ModelShape
from swaa.hf.spec import text_config


def model_shape(model: Any) -> ModelShape:
    """The sizes of a transformers model (or PEFT wrapper) that costs depend on."""
    config = text_config(model.config)
    heads = config.num_attention_heads
    dtype = getattr(model, "dtype", torch.float32)
    return ModelShape(
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        bytes_per_value=dtype.itemsize,
    )

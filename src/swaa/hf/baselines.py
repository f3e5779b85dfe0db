"""Models to compare with: random weights in a given shape, transformers' own attention, its own window, none at all."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from swaa.errors import UserError, unknown
from swaa.hf.loading import DTYPES
from swaa.hf.spec import text_config

NO_ATTENTION = "swaa_no_attention"
"""The name under which attention that does nothing is registered with transformers."""


def no_attention(
    module: nn.Module, query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Zeros [B, Q, H, D of the values]: a model with it costs what everything but attention costs."""
    samples, heads, queries, _ = query_BHQD.shape
    return query_BHQD.new_zeros(samples, queries, heads, value_BGKD.shape[-1]), None


AttentionInterface.register(NO_ATTENTION, no_attention)


def random_model(config: Mapping[str, Any], *, dtype: str, device: str, seed: int) -> PreTrainedModel:
    """A model with random weights, in eval mode.

    Args:
        config: fields of a transformers config, ``model_type`` among them.
        dtype: a name of ``swaa.hf.loading.DTYPES``.
        device: a torch device, or "auto": CUDA if there is a CUDA device, else the CPU.
        seed: of the weights.

    Raises:
        UserError: transformers knows no such config, or the device cannot be had.
    """
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    made = make_config(config)
    try:
        with torch.random.fork_rng(), torch.device(place):
            torch.manual_seed(seed)
            model: Any = AutoModelForCausalLM.from_config(made, dtype=DTYPES[dtype])
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        kind, reason = made.model_type, _reason(error)
        raise UserError(f"model.config: no {kind!r} model can be made of it on {place} ({reason}). Mend it.") from error
    placed: PreTrainedModel = model.to(place).eval()
    return placed


def make_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The transformers config of these fields, ``model_type`` among them.

    Raises:
        UserError: an unknown model type or field (transformers would only keep it), or a value that is refused.
    """
    fields = dict(config)
    kind = fields.pop("model_type")
    try:
        made: PreTrainedConfig = AutoConfig.for_model(kind, **fields)
        known = AutoConfig.for_model(kind).to_dict()
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"model.config: {_reason(error)}. Mend this value.") from error
    for name in fields:
        if name not in known:
            raise unknown("field", f"model.config.{name}", [f"model.config.{key}" for key in known])
    return made


def _reason(error: Exception) -> str:
    """The first sentence of a message that may go on for pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0].rstrip(".")[:300]


@contextlib.contextmanager
def attention(model: Any, implementation: str) -> Iterator[None]:
    """Inside, the model's attention runs on one of transformers' implementations, without a policy."""
    config = text_config(model.config)
    before = config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def native_window_model(model: Any, window_size: int) -> PreTrainedModel:
    """The same weights under transformers' own sliding window in every layer; the weights are shared, not copied.

    It has a window and nothing else: no sink tokens, no layers or phases that differ from it, and SDPA computes all
    pairs under a dense mask. A Llama becomes a Mistral, whose layers are the same; a model type that has
    ``sliding_window`` and ``layer_types`` is built again with these.

    Raises:
        UserError: the model's type has no window of its own.
    """
    config = copy.deepcopy(text_config(model.config))
    if config.model_type == "llama" and not getattr(config, "attention_bias", False):
        fields = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
        config = MistralConfig(**{**fields, "sliding_window": window_size})
    elif hasattr(config, "sliding_window"):
        config.sliding_window = window_size
        if hasattr(config, "use_sliding_window"):
            config.use_sliding_window = True
        if getattr(config, "layer_types", None):
            config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    else:
        kind = config.model_type
        raise UserError(f"native_window: model type {kind!r} has no window in transformers. Leave this baseline out.")
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    with init_empty_weights(include_buffers=False):
        windowed: Any = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    windowed.load_state_dict(model.state_dict(), strict=True, assign=True)
    windowed.tie_weights()
    placed: PreTrainedModel = windowed.to(model.device).eval()
    return placed

"""The model of a fine-tuning: loaded, with its adapter and its policy on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swaa.config import FineTuning
from swaa.hf import apply_policy
from swaa.hf.apply import PolicyHandle
from swaa.hf.loading import load
from swaa.hf.lora import add_lora
from swaa.policies import FullAttention


@dataclass(frozen=True)
class Prepared:
    """What trains.

    Attributes:
        model: the transformers model, its adapter inside.
        wrapped: its PEFT wrapper; the model itself where all weights are trained.
        tokenizer: its own.
        handle: the policy on it.
    """

    model: Any
    wrapped: Any
    tokenizer: Any
    handle: PolicyHandle


def prepare_model(config: FineTuning, *, device: str) -> Prepared:
    """Load the model, put the adapter in and the policy on.

    Raises:
        UserError: the model cannot be loaded, an adapter's target is unknown, or the policy does not fit.
    """
    model, tokenizer = load(config.model.name, FullAttention(), dtype=config.model.dtype, device=device)
    model.requires_grad_(config.lora is None)
    wrapped: Any = model
    if config.lora is not None:
        lora = config.lora
        wrapped = add_lora(
            model,
            r=lora.r,
            alpha=lora.alpha,
            rslora=lora.rslora,
            dropout=lora.dropout,
            targets=lora.targets,
            seed=config.seed,
            in_float32=lora.dtype == "float32",
        )
    if config.trainer.gradient_checkpointing:
        # reentrant checkpointing needs inputs with gradients, which frozen embeddings do not give
        kwargs = {"use_reentrant": False}
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        else:  # its name in transformers up to 5.17
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    handle = apply_policy(model, config.policy, kernel=config.model.kernel)
    return Prepared(model, wrapped, tokenizer, handle)

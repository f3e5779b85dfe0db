"""A model's rotary embedding, turned back: what :class:`swaa.CachePositions` asks of a model.

Shape suffixes: B samples, H heads, Q queries, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swaa.compiler.positions import TurnBack
from swaa.errors import UserError
from swaa.policies.scores import LayerScores

TURNABLE = frozenset(
    {
        *("cohere", "gemma", "gemma2", "granite", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3"),
        *("qwen3_moe", "seed_oss", "starcoder2"),
    }
)
"""Model types that rotate every layer's queries and keys by one function of the position; tests prove it of each."""

_FIXED = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary embedding whose frequencies do not change with the length of the text."""


def check_turnable(decoder: PreTrainedModel, layers: Sequence[LayerScores]) -> None:
    """Refuse positions of a cache on a model whose rotation cannot be turned back exactly.

    Raises:
        UserError: names the model type, or the kind of rotary embedding.
    """
    if not any(layer.positions for layer in layers):
        return
    config: Any = decoder.config
    if config.model_type not in TURNABLE:
        raise UserError(
            f"CachePositions: expected a model type whose rotation swaa turns back, got {config.model_type!r}. They "
            f"are: {', '.join(sorted(TURNABLE))}. Leave CachePositions out: the keys that are seen are the same."
        )
    kind = decoder.get_submodule("rotary_emb").rope_type
    if kind not in _FIXED:
        raise UserError(
            f"CachePositions: expected a rotary embedding of fixed frequencies ({', '.join(sorted(_FIXED))}), got "
            f"{kind!r}, whose frequencies follow the length of the text. Leave CachePositions out."
        )
    _rotation(decoder)


def turn_back(decoder: nn.Module) -> TurnBack:
    """The function that turns the decoder's rotated queries back, by its own rotation."""
    embedding: Any = decoder.get_submodule("rotary_emb")
    rotate = _rotation(decoder)

    def turn(query_BHQD: Tensor, back_BQ: Tensor) -> Tensor:
        exact = query_BHQD.to(torch.promote_types(query_BHQD.dtype, torch.float32))
        cos, sin = embedding(exact, back_BQ.to(exact.device))
        scale = embedding.attention_scaling  # of the frequencies' kind; the queries have it already
        return rotate(exact, exact[:, :1], cos / scale, -sin / scale)[0].to(query_BHQD.dtype)

    return turn


def _rotation(decoder: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The rotation that the file of the decoder's class defines."""
    for owner in type(decoder).__mro__:  # FSDP derives a class of its own, from elsewhere
        found = vars(sys.modules[owner.__module__])
        if "apply_rotary_pos_emb" in found:
            rotate: Callable[..., tuple[Tensor, Tensor]] = found["apply_rotary_pos_emb"]
            return rotate
    raise UserError(
        f"CachePositions: the file of {type(decoder).__name__} has no apply_rotary_pos_emb, so its rotation cannot be "
        f"turned back. Use a model of transformers' own code, or leave CachePositions out."
    )

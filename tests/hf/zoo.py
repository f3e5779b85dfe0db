"""Tiny random models of many architectures: four query heads, three or four layers, forty words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

WORDS = 40
WINDOW = 7
"""Tokens of the native windows and chunks."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model type, its config, and the masks that it brings along."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    windowed: tuple[int, ...] = ()
    """Layers with a native sliding window."""
    chunked: tuple[int, ...] = ()
    """Layers with native chunks."""
    drops_kwargs: bool = False
    """Do keyword arguments of the model not reach attention, so that no policy can differ by phase?"""

    def __str__(self) -> str:
        return self.model_type

    def build(self, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        """A new random model; weights large enough for logits that differ."""
        config = AutoConfig.for_model(self.model_type, **(SMALL | self.config | overrides))
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() >= 2:
                    torch.nn.init.normal_(parameter, std=0.25)
                elif "sink" in name:
                    torch.nn.init.normal_(parameter)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model

    @property
    def native(self) -> dict[int, Callable[[Any], bool]]:
        """By layer, the mask that the model brings along, for :mod:`hf.reference`."""
        windows: dict[int, Callable[[Any], bool]] = dict.fromkeys(self.windowed, _window)
        return windows | dict.fromkeys(self.chunked, _chunk)


def _window(at: Any) -> bool:
    return at.q - at.k < WINDOW


def _chunk(at: Any) -> bool:
    return at.q // WINDOW == at.k // WINDOW


SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EVERY_HEAD = {"num_key_value_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
ALTERNATING = {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL, SLIDING]}

ARCHITECTURES = (
    Architecture("llama"),
    Architecture("qwen2"),
    Architecture("qwen3"),
    Architecture("qwen3_moe", EXPERTS),
    Architecture("mistral", {"sliding_window": WINDOW}, windowed=(0, 1, 2)),
    Architecture("gemma2", ALTERNATING | {"attn_logit_softcapping": 2.0}, windowed=(0, 2)),
    Architecture("gemma3_text", ALTERNATING, windowed=(0, 2)),
    Architecture("gpt_oss", ALTERNATING | {"num_local_experts": 4, "num_experts_per_tok": 2}, windowed=(0, 2)),
    Architecture("phi3"),
    Architecture("olmo2"),
    Architecture("smollm3", {"no_rope_layers": [1, 1, 0]}),
    Architecture("granite"),
    Architecture("cohere2", ALTERNATING | {"logit_scale": 1.0}, windowed=(0, 2)),
    Architecture("glm4"),
    Architecture("gpt_neox"),
    Architecture("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    Architecture("gpt2"),
    Architecture("starcoder2", {"sliding_window": None}),
    Architecture("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    Architecture("phi"),
    Architecture("olmo3", ALTERNATING, windowed=(0, 2)),
    Architecture("gemma"),
    Architecture("exaone4", ALTERNATING, windowed=(0, 2)),
    Architecture("ernie4_5"),
    Architecture("hunyuan_v1_dense"),
    Architecture("seed_oss"),
    Architecture("arcee"),
    Architecture("helium"),
    Architecture("cohere", {"logit_scale": 1.0}),
    Architecture(
        "llama4_text",
        {
            "layer_types": [CHUNKED, CHUNKED, FULL],
            "no_rope_layers": [1, 1, 0],
            "attention_chunk_size": WINDOW,
            "num_local_experts": 2,
            "intermediate_size_mlp": 48,
        },
        chunked=(0, 1),
    ),
    Architecture(
        "deepseek_v3",
        EVERY_HEAD
        | {
            "head_dim": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 6,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    Architecture("stablelm", drops_kwargs=True),
    Architecture("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 16}),
    Architecture("ministral", ALTERNATING, windowed=(0, 2)),
    Architecture("nemotron", drops_kwargs=True),
)
BY_TYPE = {architecture.model_type: architecture for architecture in ARCHITECTURES}
llama = partial(BY_TYPE["llama"].build)

"""A tiny random Llama, built in a moment and offline: what checks run policies on."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

WORDS = 61


def tiny_model(num_layers: int = 2, num_heads: int = 2, num_kv_heads: int = 1, *, seed: int = 0) -> PreTrainedModel:
    """Random float64 weights, large enough that a policy changes which token is likeliest; it never ends an answer."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=8 * num_heads,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=512,
        initializer_range=0.4,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float64)
    model.eval()
    return model


def generate(model: PreTrainedModel, prompt_BP: Tensor, new_tokens: int, *, use_cache: bool = True) -> Tensor:
    """Greedy tokens [B, P + new], by transformers' own generation."""
    tokens: Tensor = model.generate(  # type: ignore[operator]
        prompt_BP,
        attention_mask=torch.ones_like(prompt_BP),
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=0,
    )
    return tokens


def logits_under_mask(model: PreTrainedModel, tokens_1S: Tensor, mask_HSS: Tensor) -> Tensor:
    """The model's own attention under a dense mask, without any policy: logits [S, V].

    Args:
        mask_HSS: bool, True where a query head's query (row) sees a key; SDPA gives a query without any zeros.
    """
    with torch.no_grad():
        logits: Tensor = model(tokens_1S, attention_mask=mask_HSS.unsqueeze(0), use_cache=False).logits[0]
    return logits

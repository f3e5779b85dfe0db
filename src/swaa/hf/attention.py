"""swaa's side of ``AttentionInterface``: one attention call of one layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from swaa.errors import UserError
from swaa.hf.cache import PolicyLayer
from swaa.hf.masks import MaskPlan
from swaa.hf.native import restrict
from swaa.hf.prompt import CONTEXT_KEY, ForwardContext, dropped_context
from swaa.hf.sinks import PARAMETER
from swaa.hf.spec import IMPLEMENTATION
from swaa.policies.scores import LayerScores

_UNSUPPORTED = {
    "position_bias": "an additive position bias",
    "head_mask": "a head mask",
    "cache": "a paged cache (continuous batching)",
}


def policy_attention(
    module: nn.Module,
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function registered with ``AttentionInterface``; transformers documents its arguments.

    Returns:
        The attention output [B, Q, H, D], and no attention weights.

    Raises:
        UserError: the layer needs something that this attention does not do; it is named.
    """
    owner = type(module).__name__
    if not isinstance(attention_mask, MaskPlan):
        raise UserError(
            f"{owner}: expected the mask plan of swaa as attention_mask, got {type(attention_mask).__name__}. "
            f"Pass a 2-d attention mask to the model, and let it build its masks."
        )
    for name, meaning in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise UserError(
                f"{owner}: the layer uses {meaning} ({name}), which swaa does not support. Use another model."
            )
    if (
        getattr(module, "is_cross_attention", False)
        or kwargs.get("is_causal", getattr(module, "is_causal", True)) is False
    ):
        raise UserError(f"{owner}: the layer's attention is not causal, and policies are. Use a decoder-only model.")
    layer_index = getattr(module, "layer_idx", None)
    if layer_index is None:
        raise UserError(
            f"{owner}: the layer does not know its own index (layer_idx), so no policy can be chosen for it."
        )
    context = kwargs.get(CONTEXT_KEY)
    if isinstance(context, ForwardContext):
        context.arrived = True
    layer = attention_mask.policy.layer(layer_index, query_BHQD.shape[1])
    expected_heads = getattr(getattr(module, "config", None), "num_attention_heads", query_BHQD.shape[1])
    scores = attention_mask.policy.layer_scores(layer_index, query_BHQD.shape[1])
    if (layer.by_head or scores is not None) and query_BHQD.shape[1] != expected_heads:
        raise UserError(
            f"{owner}: the policy {'' if scores is None else 'or its scores '}names heads, and only "
            f"{query_BHQD.shape[1]} of the model's {expected_heads} are here (tensor parallelism?), so which they are "
            f"is unknown. Use a policy without heads, or one device."
        )
    visible = restrict(layer, attention_mask.native)
    options: dict[str, Any] = {"scale": scaling, "dropout": dropout, "softcap": softcap, "sink_logits_H": s_aux}
    if scores is not None:
        options |= {"scores": scores, "learned_sinks_H": _learned_sinks(module, scores)}
        if scores.positions is not None:
            if not isinstance(context, ForwardContext):
                raise dropped_context(attention_mask.policy.policy, "its scores count positions in a cache")
            options["turn_back"] = context.turn_back
    held = _held(context, layer_index)
    if held is not None and held.is_split:
        kernel = attention_mask.policy.kernel
        out_BHQD = held.attend(query_BHQD, key_BGKD, value_BGKD, kernel, **options)
    else:
        program = attention_mask.program(context if isinstance(context, ForwardContext) else None)
        out_BHQD = program.attend(visible, query_BHQD, key_BGKD, value_BGKD, **options)
    if held is not None:
        held.settle(visible)
    return out_BHQD.transpose(1, 2).contiguous(), None


def _learned_sinks(module: nn.Module, scores: LayerScores) -> Tensor | None:
    """The layer's parameter, where its sink logits are learned."""
    if not scores.learns:
        return None
    logits_H: Tensor | None = getattr(module, PARAMETER, None)
    if logits_H is None:
        raise UserError(
            f"{type(module).__name__}: the scores on the config learn sink logits, and the layer has no parameter for "
            f"them. Use swaa.apply_policy(model, policy, scores), or swaa.load."
        )
    return logits_H


def _held(context: Any, layer_index: int) -> PolicyLayer | None:
    """The layer of a cache that drops keys, or None where the cache, or this layer of it, does not."""
    if not isinstance(context, ForwardContext) or context.cache is None:
        return None
    layer = context.cache.layers[layer_index]
    return layer if isinstance(layer, PolicyLayer) else None


def register_attention() -> None:
    """Register the attention function."""
    AttentionInterface.register(IMPLEMENTATION, policy_attention)

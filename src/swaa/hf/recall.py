"""The recall of attention mass: how much of a model's full attention falls on the keys that a policy shows.

The model runs once, under full attention. In every layer the true weights are computed from its queries and keys, some
queries at a time, and the share of them on visible keys is summed, for any number of policies. So policies are compared
on the same queries and keys: what a model would do under them, layer upon layer, is not measured here.

Shape suffixes: B samples, H query heads, G KV heads, Q queries, R some of them, K keys, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.compiler.program import AttentionProgram
from swaa.compiler.selection import Selection
from swaa.errors import UserError, invalid
from swaa.hf.spec import read_spec, text_config
from swaa.policies import AttentionPolicy, FullAttention, LayerPolicy, bind, parse_policy

IMPLEMENTATION = "swaa_recall"
"""The name under which the measuring attention is registered with transformers, for as long as it measures."""

_CELLS = 1 << 22
"""Weights at a time: they bound the memory, whatever the length of the prompt."""


@dataclass(frozen=True)
class Recall:
    """What one policy shows of one prompt.

    Attributes:
        policy: it, as Python.
        mass: of each layer: the share of full attention's weight on visible keys, the mean over heads and queries.
        pairs: of each layer: visible pairs as a share of the causal ones.
    """

    policy: str
    mass: tuple[float, ...]
    pairs: tuple[float, ...]

    @property
    def mean_mass(self) -> float:
        """The mean over layers."""
        return sum(self.mass) / len(self.mass)

    @property
    def mean_pairs(self) -> float:
        """The mean over layers."""
        return sum(self.pairs) / len(self.pairs)


def attention_mass(
    model: nn.Module,
    input_ids: Tensor,
    policies: Sequence[AttentionPolicy | str | Mapping[str, Any]],
    *,
    prompt_length: int | None = None,
) -> tuple[Recall, ...]:
    """Measure the recall of attention mass of some policies on one prompt.

    Args:
        model: a transformers model without a policy on it, whose layers all attend fully.
        input_ids: int [B, S], without padding.
        policies: as :func:`swaa.apply_policy` takes them.
        prompt_length: where the decode phase begins; None where all is prefill.

    Returns:
        One :class:`Recall` a policy, in their order.

    Raises:
        UserError: the model does not attend fully, or has a policy on; a policy names what it lacks.
    """
    base = _checked_model(model)
    config = text_config(base.config)
    if input_ids.dim() != 2 or input_ids.shape[1] < 1:
        raise invalid("input_ids", accepted="int [B, S]", got=tuple(input_ids.shape), mend="Give a batch of prompts.")
    bound = [bind(parse_policy(one), config.num_hidden_layers, config.num_attention_heads) for one in policies]
    layout = TokenLayout.contiguous(input_ids.shape[1], prompt_lengths=prompt_length, device=input_ids.device)
    meter = _Meter(layout, [one.layers for one in bound])
    before, modes = base.config._attn_implementation, [(module, module.training) for module in base.modules()]
    token = _measuring.set(meter)
    base.set_attn_implementation(IMPLEMENTATION)
    try:
        base.eval()
        with torch.no_grad():
            base(input_ids=input_ids, use_cache=False)
    finally:
        base.set_attn_implementation(before)
        for module, training in modes:
            module.training = training
        _measuring.reset(token)
    layers = range(config.num_hidden_layers)
    missing = [layer for layer in layers if layer not in meter.mass]
    if missing:
        raise UserError(
            f"model: layers {missing} did not attend through transformers' AttentionInterface, so their weights are "
            f"unknown. Use a model that dispatches its attention, such as Llama or Qwen."
        )
    return tuple(
        Recall(
            repr(one.policy),
            tuple(meter.mass[layer][index] for layer in layers),
            tuple(meter.pairs[layer][index] for layer in layers),
        )
        for index, one in enumerate(bound)
    )


class _Meter:
    """Sums up the weights on visible keys, layer by layer, while the model runs."""

    def __init__(self, layout: TokenLayout, layers: Sequence[Sequence[LayerPolicy]]) -> None:
        self.program = AttentionProgram(layout)
        self.layers = layers
        self.mass: dict[int, list[float]] = {}
        self.pairs: dict[int, list[float]] = {}

    def measure(
        self, layer: int, query_BHQD: Tensor, key_BGKD: Tensor, scale: float | None, softcap: float | None
    ) -> None:
        """Add one layer."""
        layout = self.program.layout
        batch, heads, length, size = query_BHQD.shape
        scale = size**-0.5 if scale is None else scale
        policies = [layers[layer] for layers in self.layers]
        chosen = [
            Selection.of(policy, layout, query_BHQD, key_BGKD) if policy.by_content else None for policy in policies
        ]
        keys_BHDK = key_BGKD.float().repeat_interleave(heads // key_BGKD.shape[1], dim=1).transpose(-1, -2)
        mass, pairs = [0.0] * len(policies), [0] * len(policies)
        step = max(1, _CELLS // (batch * heads * length))
        for start in range(0, length, step):
            part = layout.queries(start, start + step)
            scores_BHRK = query_BHQD[:, :, start : start + step].float() @ keys_BHDK * scale
            if softcap is not None:
                scores_BHRK = softcap * torch.tanh(scores_BHRK / softcap)
            future_QK = part.key_positions_BK > part.query_positions_BQ.transpose(0, 1)
            weights_BHRK = scores_BHRK.masked_fill(future_QK, float("-inf")).softmax(-1)
            for index, policy in enumerate(policies):
                selection = chosen[index]
                mask = (
                    dense_mask(policy, part)
                    if selection is None
                    else selection.queries(start, start + step).dense_mask()
                )
                mass[index] += float((weights_BHRK * mask).sum(dtype=torch.float64))
                pairs[index] += int(mask.sum()) * (weights_BHRK.numel() // mask.numel())
        queries = batch * heads * length
        self.mass[layer] = [total / queries for total in mass]
        self.pairs[layer] = [2 * count / (queries * (length + 1)) for count in pairs]


_measuring: ContextVar[_Meter] = ContextVar("measuring")


def _measured_attention(
    module: nn.Module,
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Full attention, measured; transformers documents the arguments."""
    if s_aux is not None or sliding_window is not None:
        raise _not_full("learned sink logits" if s_aux is not None else "a window or chunks of its own")
    meter = _measuring.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    meter.measure(layer, query_BHQD, key_BGKD, scaling, softcap)
    full = bind(FullAttention(), 1, query_BHQD.shape[1]).layers[0]
    out_BHQD = meter.program.attend(full, query_BHQD, key_BGKD, value_BGKD, scale=scaling, softcap=softcap)
    return out_BHQD.transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, local_size: int | None = None, **__: Any) -> None:
    """The layout of the meter says it all, if the model has no window or chunks to tell of."""
    if local_size is not None:
        raise _not_full("a window or chunks of its own")


def _not_full(what: str) -> UserError:
    return UserError(f"model: a layer has {what}, so it has no full attention to recall. Use another model.")


AttentionInterface.register(IMPLEMENTATION, _measured_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def _checked_model(model: nn.Module) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        mend = "Load one with swaa.load."
        raise invalid("model", accepted="a transformers model", got=type(model).__name__, mend=mend)
    if read_spec(model.config) is not None:
        raise UserError("model: expected one without a policy on it, as its full attention is wanted. Remove it first.")
    return model

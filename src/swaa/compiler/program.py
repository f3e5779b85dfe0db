"""A layer's attention for one layout: masks built once, shared by all layers with an equal policy."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from swaa.compiler.attention import blocksparse_attention, bucket_length, causal_attention, dense_attention
from swaa.compiler.blocks import block_mask
from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.compiler.plan import Job, Kernel, KernelPlan, choose_kernel
from swaa.policies.bound import LayerPolicy

log = logging.getLogger(__name__)
_said: set[str] = set()
_uncompilable: dict[LayerPolicy, str] = {}


@dataclass(eq=False)
class AttentionProgram:
    """The compiled side of one forward pass: a layout, and the masks that layers have asked for so far.

    Layers with equal policies share one mask. Create one per forward pass (per layout).
    """

    layout: TokenLayout
    kernel: str = "auto"
    _dense: dict[LayerPolicy, Tensor | None] = field(default_factory=dict)
    _blocks: dict[tuple[LayerPolicy, bool], BlockMask] = field(default_factory=dict)

    def attend(
        self,
        layer: LayerPolicy,
        query_BHQD: Tensor,
        key_BGKD: Tensor,
        value_BGKD: Tensor,
        *,
        scale: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        sink_logits_H: Tensor | None = None,
    ) -> Tensor:
        """Attention of one layer under its policy; shapes by the suffixes of :mod:`swaa.compiler.attention`.

        Returns:
            [B, H, Q, D]. Queries that see nothing (padding among them) get zeros.
        """
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query_BHQD, key_BGKD, value_BGKD))
        job = Job(
            query_length=self.layout.query_length,
            key_length=self.layout.key_length,
            device_type=query_BHQD.device.type,
            is_square=self.layout.is_square,
            needs_grad=needs_grad,
            dropout=dropout,
            has_sink_logits=sink_logits_H is not None,
            has_softcap=softcap is not None,
            value_dim_differs=value_BGKD.shape[-1] != query_BHQD.shape[-1],
        )
        plan = choose_kernel(layer, job, self.kernel)
        _say_once(plan)
        if plan.kernel is Kernel.CAUSAL:
            return causal_attention(query_BHQD, key_BGKD, value_BGKD, scale=scale, dropout=dropout)
        if plan.kernel is Kernel.FLEX and (self.kernel == "flex" or layer not in _uncompilable):
            try:
                blocks = self.block_mask(layer, with_backward=needs_grad)
                return blocksparse_attention(query_BHQD, key_BGKD, value_BGKD, blocks, scale=scale, softcap=softcap)
            except _compile_errors() as error:
                if self.kernel == "flex":
                    raise
                _uncompilable[layer] = (str(error) or type(error).__name__).splitlines()[0]
                log.warning(
                    "%s: FlexAttention does not compile (%s); attention runs on SDPA with a dense mask",
                    layer.describe("prefill"),
                    _uncompilable[layer],
                )
        return dense_attention(
            query_BHQD,
            key_BGKD,
            value_BGKD,
            self.dense_mask(layer),
            scale=scale,
            dropout=dropout,
            softcap=softcap,
            sink_logits_H=sink_logits_H,
        )

    def dense_mask(self, layer: LayerPolicy) -> Tensor | None:
        """The layer's dense mask [B, H, Q, K], or None where a single query sees every key."""
        if layer not in self._dense:
            mask = dense_mask(layer, self.layout)
            self._dense[layer] = None if self.layout.query_length == 1 and bool(mask.all()) else mask
        return self._dense[layer]

    def block_mask(self, layer: LayerPolicy, *, with_backward: bool = False) -> BlockMask:
        """The layer's block mask over bucketed lengths."""
        if (layer, with_backward) not in self._blocks:
            queries, keys = bucket_length(self.layout.query_length), bucket_length(self.layout.key_length)
            padded = self.layout.pad_to(queries, keys)
            self._blocks[layer, with_backward] = block_mask(layer, padded, with_backward=with_backward)
        return self._blocks[layer, with_backward]

    def to(self, device: torch.device | str) -> AttentionProgram:
        """The same program for tensors on another device, its masks still to be built."""
        return replace(self, layout=self.layout.to(device), _dense={}, _blocks={})


def _compile_errors() -> tuple[type[Exception], ...]:
    """What torch raises when a kernel cannot be compiled."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return (TorchDynamoException, InductorError, NotImplementedError)


def _say_once(plan: KernelPlan) -> None:
    """One log line for each reason that keeps FlexAttention from a job."""
    if plan.is_fallback and plan.reason not in _said:
        _said.add(plan.reason)
        log.warning("attention runs on SDPA with a dense mask: %s", plan.reason)

"""Listening to attention: every call of every layer, with its queries and keys, for a look at it or another result.

It takes a policy on the model: phases, padding and native windows are then known, and a call can be made again under
another policy.

Shape suffixes: B samples, H query heads, G KV heads, Q queries, R the last of them, K keys, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from swaa.compiler.dense import dense_mask
from swaa.hf.apply import base_and_decoder
from swaa.hf.attention import policy_attention
from swaa.hf.masks import MaskPlan, plan_mask
from swaa.hf.native import restrict
from swaa.hf.prompt import CONTEXT_KEY, ForwardContext
from swaa.hf.spec import PolicyOnModel, policy_on
from swaa.policies import AttentionPolicy, bind

IMPLEMENTATION = "swaa_listening"
"""The name under which the listening attention is registered with transformers, for as long as it listens."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One layer's attention in one forward pass.

    Attributes:
        layer: its index.
        query_BHQD: after the rotation.
        key_BGKD: the same.
        scale: what scores are multiplied with.
        softcap: of the model, or None.
    """

    layer: int
    query_BHQD: Tensor
    key_BGKD: Tensor
    scale: float
    softcap: float | None
    _module: nn.Module
    _value_BGKD: Tensor
    _plan: MaskPlan
    _options: dict[str, Any] = field(repr=False)

    def attend(self, policy: PolicyOnModel | None = None) -> Tensor:
        """[B, Q, H, D]: what attention gives under the policy on the model, or under another one."""
        plan = self._plan if policy is None else self._plan.under(policy)
        tensors = (self.query_BHQD, self.key_BGKD, self._value_BGKD)
        return policy_attention(self._module, *tensors, plan, **self._options)[0]

    def visible(self, policy: AttentionPolicy, last: int) -> Tensor:
        """Bool [B, H, R, K]: what the last ``last`` queries would see under a policy that is the same for all layers.

        B and H are 1 where they do not differ. A query that is padding sees nothing.
        """
        context = self._options.get(CONTEXT_KEY)
        layout = self._plan.program(context if isinstance(context, ForwardContext) else None).layout
        queries = layout.query_length
        layer = restrict(bind(policy, 1, self.query_BHQD.shape[1]).layers[0], self._plan.native)
        return dense_mask(layer, layout.queries(max(0, queries - last), queries))


Listener = Callable[[AttentionCall], Tensor | None]
"""Gets a call, and gives the output [B, Q, H, D] that the layer goes on with, or None for that of its policy."""


@contextmanager
def listening(model: Any, listener: Listener) -> Iterator[None]:
    """Inside the block, ``listener`` gets every attention call of the model.

    Raises:
        UserError: the model has no policy on.
    """
    base, decoder = base_and_decoder(model)
    policy_on(base.config)
    before = decoder.config._attn_implementation
    token = _listener.set(listener)
    decoder.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)
        _listener.reset(token)


_listener: ContextVar[Listener] = ContextVar("listener")


def _attention(
    module: nn.Module,
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    attention_mask: Any,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function registered with ``AttentionInterface``; transformers documents its arguments."""
    index = getattr(module, "layer_idx", None)
    if index is None or not isinstance(attention_mask, MaskPlan):  # which it refuses
        return policy_attention(module, query_BHQD, key_BGKD, value_BGKD, attention_mask, **options)
    scaling = options.get("scaling")
    call = AttentionCall(
        layer=index,
        query_BHQD=query_BHQD,
        key_BGKD=key_BGKD,
        scale=query_BHQD.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=options.get("softcap"),
        _module=module,
        _value_BGKD=value_BGKD,
        _plan=attention_mask,
        _options=options,
    )
    out_BQHD = _listener.get()(call)
    return (call.attend() if out_BQHD is None else out_BQHD), None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, plan_mask)

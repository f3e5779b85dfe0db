"""swaa's side of ``AttentionMaskInterface``: instead of a mask, a plan from which every layer builds its own.

transformers forwards whatever the mask function returns to every attention layer. A :class:`MaskPlan` holds what the
mask function knows (slots, padding, the model's native window); attention adds the policy of its layer.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionMaskInterface

from swaa.compiler.layout import TokenLayout
from swaa.compiler.program import AttentionProgram
from swaa.errors import UserError
from swaa.hf.native import native_predicate
from swaa.hf.prompt import ForwardContext, Prompt, dropped_context
from swaa.hf.spec import ATTRIBUTE, IMPLEMENTATION, PolicyOnModel, policy_on
from swaa.policies import Index, Predicate, SlidingWindow

log = logging.getLogger(__name__)


class MaskPlan(BlockMask):
    """Slots and padding of one forward pass, on its way from the mask function to the attention layers.

    It is a ``BlockMask`` with a 4-d shape in name only: that is what makes transformers treat it as a finished mask
    and pass it along untouched, through static caches, gradient checkpointing and dicts of masks.
    """

    def __init__(
        self,
        policy: PolicyOnModel,
        *,
        batch_size: int,
        query_length: int,
        key_length: int,
        query_offset: int,
        key_offset: int,
        padding_BS: Tensor | None,
        native: Predicate | None,
        device: torch.device,
        mask_function: Callable[..., Any] | None = None,
    ) -> None:
        # no super().__init__(): there are no blocks yet, and layers with different policies need different ones
        self.policy = policy
        self.batch_size = batch_size
        self.query_length = query_length
        self.key_length = key_length
        self.query_offset = query_offset
        self.key_offset = key_offset
        self.padding_BS = padding_BS
        self.native = native
        self.device = device
        self.mask_function = mask_function
        self._program: AttentionProgram | None = None
        self._moved: dict[torch.device, MaskPlan] = {}
        self._others: dict[PolicyOnModel, MaskPlan] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, 1, Q, K)."""
        return (self.batch_size, 1, self.query_length, self.key_length)

    @property
    def ndim(self) -> int:
        """4, as of a finished mask."""
        return 4

    def dim(self) -> int:
        """4, as of a finished mask."""
        return 4

    def contiguous(self) -> MaskPlan:
        """Itself."""
        return self

    def to(self, device: Any = None, *args: Any, **kwargs: Any) -> MaskPlan:
        """A plan whose program is built on ``device``; layers of a model split over devices call this."""
        if device is None or isinstance(device, torch.dtype) or torch.device(device) == self.device:
            return self
        device = torch.device(device)
        if device not in self._moved:  # one for all layers there, as they share its masks
            self._moved[device] = self._again(self.policy, device)
        return self._moved[device]

    def under(self, policy: PolicyOnModel) -> MaskPlan:
        """The same slots and padding under another policy."""
        if policy not in self._others:  # one for all layers, as they share its masks
            self._others[policy] = self._again(policy, self.device)
        return self._others[policy]

    def _again(self, policy: PolicyOnModel, device: torch.device) -> MaskPlan:
        return MaskPlan(
            policy,
            batch_size=self.batch_size,
            query_length=self.query_length,
            key_length=self.key_length,
            query_offset=self.query_offset,
            key_offset=self.key_offset,
            padding_BS=None if self.padding_BS is None else self.padding_BS.to(device),
            native=self.native,
            device=device,
            mask_function=self.mask_function,
        )

    def __repr__(self) -> str:
        return f"MaskPlan(shape={self.shape}, policy={self.policy.policy!r})"

    __str__ = __repr__

    def program(self, context: ForwardContext | None) -> AttentionProgram:
        """The attention program of this forward pass, built by the first layer that asks.

        Raises:
            UserError: the policy differs by phase, or documents are packed, and the model did not pass the context on.
        """
        if self._program is None:
            if context is None and self.policy.by_phase:
                raise dropped_context(self.policy.policy, "the policy differs by phase")
            if (context is None or context.packed_positions is None) and self._packs_documents():
                raise dropped_context(self.policy.policy, "the position_ids pack several documents into a row")
            self._program = AttentionProgram(self._layout(context or ForwardContext()), self.policy.kernel)
        return self._program

    def _packs_documents(self) -> bool:
        """Has transformers detected packing? Then its own mask hides from some query the token just before it."""
        if self.mask_function is None or self.query_offset or self.padding_BS is not None or self.query_length < 2:
            return False
        if self.native is not None and not SlidingWindow(2).implies(self.native):
            return False  # a native mask that hides it too
        queries = torch.arange(1, self.query_length, device=self.device).unsqueeze(0)
        samples = torch.arange(self.batch_size, device=self.device).unsqueeze(-1)
        return not bool(torch.as_tensor(self.mask_function(samples, 0, queries, queries - 1)).all())

    def _layout(self, context: ForwardContext) -> TokenLayout:
        layout = self._layout_by_prompt(context)
        return layout if context.decode_mask is None else layout.with_decodes(context.decode_mask)

    def _layout_by_prompt(self, context: ForwardContext) -> TokenLayout:
        prompt = context.prompt or Prompt()
        if context.packed_positions is not None:
            positions = context.packed_positions.to(self.device).expand(self.batch_size, -1)
            return TokenLayout.packed(positions, prompt_lengths=prompt.lengths)
        if self.padding_BS is None:
            return TokenLayout.contiguous(
                self.query_length,
                self.key_length,
                offset=self.query_offset,
                key_offset=self.key_offset,
                prompt_lengths=prompt.width if prompt.lengths is None else prompt.lengths,
                device=self.device,
            )
        lengths = prompt.lengths
        if lengths is None and prompt.width is not None:
            lengths = self.padding_BS[:, : prompt.width].sum(-1)
        return TokenLayout.padded(
            self.padding_BS,
            self.query_length,
            self.key_length,
            offset=self.query_offset,
            key_offset=self.key_offset,
            prompt_lengths=lengths,
        )


def plan_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    config: Any = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> MaskPlan:
    """The function registered with ``AttentionMaskInterface``; transformers documents its arguments.

    Raises:
        UserError: the model wants a mask that is not causal, or the attention mask is too short.
    """
    policy = policy_on(config)
    if use_vmap or getattr(mask_function, "__qualname__", "").startswith("or_masks"):
        raise UserError(
            f"{config.model_type}: the model overlays its causal mask with one of its own (bidirectional image or "
            f"prefix tokens), which a causal policy cannot express. Use the model with text alone."
        )
    offset = int(q_offset)  # a static cache hands out its live counter
    if attention_mask is not None:
        attention_mask = attention_mask.bool()
        if attention_mask.shape[-1] < offset + q_length:
            raise UserError(
                f"attention_mask: expected {offset + q_length} columns (cached tokens and new ones), "
                f"got {attention_mask.shape[-1]}. Pass the mask of the whole sequence so far."
            )
        if bool(attention_mask[:, : offset + q_length].all()):
            attention_mask = None
        else:
            attention_mask = attention_mask[:, : offset + q_length]
    chunk = (
        local_size if local_size is not None and local_size == getattr(config, "attention_chunk_size", None) else None
    )
    native = native_predicate(local_size, chunk)
    _check_nothing_is_missing(native, offset, int(kv_offset))
    return MaskPlan(
        policy,
        batch_size=batch_size,
        query_length=q_length,
        key_length=kv_length,
        query_offset=offset,
        key_offset=int(kv_offset),
        padding_BS=attention_mask,
        native=native,
        device=torch.device(device),
        mask_function=mask_function,
    )


def _check_nothing_is_missing(native: Predicate | None, query_offset: int, key_offset: int) -> None:
    """A sliding cache drops keys by a window of its own: the model's native mask must hide them anyway."""
    first_query, last_dropped = cast("Index", query_offset), cast("Index", key_offset - 1)
    if key_offset and (native is None or bool(native.visible(first_query, last_dropped))):
        raise UserError(
            f"past_key_values: the cache has dropped the first {key_offset} tokens by a sliding window of its own, not "
            f"by the policy, which may show them. Pass swaa.PolicyCache(model), or no cache at all."
        )


_warned: dict[int, weakref.ref[Any]] = {}  # configs compare by value and have no hash, hence by identity


def _warning(mask_function: Callable[..., Any]) -> Callable[..., Any]:
    """A registered mask function that says so when the config declares a policy which it will not apply."""

    @functools.wraps(mask_function)
    def warn_first(*args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("config")
        known = _warned.get(id(config))
        if config is not None and getattr(config, ATTRIBUTE, None) and (known is None or known() is not config):
            _warned[id(config)] = weakref.ref(config)
            log.warning(
                "this checkpoint was saved with an attention policy, which is OFF: attention runs on %r. "
                "Load it with swaa.load(path), or call swaa.apply_policy(model, swaa.saved_policy(model.config)).",
                config._attn_implementation,
            )
        return mask_function(*args, **kwargs)

    warn_first.swaa_warns = True  # type: ignore[attr-defined]  # a mark: registering twice must not wrap twice
    return warn_first


def register_masks() -> None:
    """Register the plan, and wrap the other mask functions so that a policy is never off without a word."""
    AttentionMaskInterface.register(IMPLEMENTATION, plan_mask)
    registry = AttentionMaskInterface()
    for name in list(registry.keys()):
        if name != IMPLEMENTATION and not hasattr(registry[name], "swaa_warns"):
            AttentionMaskInterface.register(name, _warning(registry[name]))

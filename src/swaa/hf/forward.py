"""What one forward pass knows beyond its tensors: the prompt's length, and packed documents.

transformers hands attention neither the cache nor the caller's own arguments. A forward pre-hook on the decoder sees
them all; it passes what matters on as one keyword argument, :class:`ForwardContext`. The hook keeps no state: where a
prompt ended is remembered on the cache, because the cache is what a generation goes by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swaa.errors import UserError, invalid
from swaa.hf.spec import policy_on

CONTEXT_KEY = "swaa_context"
"""The keyword argument that carries the context to attention."""

_ON_CACHE = "swaa_prompt"


@dataclass(frozen=True, eq=False)
class Prompt:
    """Where the decode phase begins: either a slot that all samples share, or a length for each sample."""

    width: int | None = None
    """Slots of the (padded) prompt."""
    lengths: Tensor | None = None
    """Real tokens of each sample's prompt, int [B] (or [B, D] for packed documents)."""
    declared: bool = False
    """Did the user say so? Otherwise it is the width of the cache's first forward pass."""


@dataclass(frozen=True, eq=False)
class ForwardContext:
    """What the pre-hook found out."""

    prompt: Prompt | None = None
    packed_positions: Tensor | None = None


def declare_prompt(cache: Any, prompt_lengths: Tensor | int) -> Any:
    """Say how long the prompts are that a cache will hold, where the first forward pass does not show it.

    Needed, for policies that differ by phase, in chunked prefill, assisted decoding and several turns on one cache.

    Args:
        cache: a transformers cache, to be passed as ``past_key_values``.
        prompt_lengths: real tokens of each sample's prompt: int [B], or one int for all.

    Returns:
        The cache.
    """
    lengths = torch.as_tensor(prompt_lengths)
    if lengths.is_floating_point() or lengths.dim() > 1 or bool((lengths < 0).any()):
        mend = "Count the tokens that are not padding."
        raise invalid("prompt_lengths", accepted="ints >= 0, one per sample", got=prompt_lengths, mend=mend)
    setattr(cache, _ON_CACHE, Prompt(lengths=lengths.reshape(-1), declared=True))
    return cache


def before_forward(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The forward pre-hook: find the prompt's length and packing, and pass them on."""
    kwargs = dict(kwargs)
    lengths = kwargs.pop("prompt_lengths", None)
    tokens = next(
        (value for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if value is not None), None
    )
    if tokens is None:
        return args, kwargs  # the model itself will say what is missing
    cache = kwargs.get("past_key_values")
    seen = 0 if cache is None else int(cache.get_seq_length())
    packed = _packed_positions(kwargs.get("position_ids"), kwargs.get("attention_mask")) if seen == 0 else None
    prompt = Prompt(lengths=_checked_lengths(lengths, len(tokens)), declared=True) if lengths is not None else None
    if cache is not None:
        prompt = _prompt_of_cache(decoder, cache, seen, tokens.shape[1], prompt)
    kwargs[CONTEXT_KEY] = ForwardContext(prompt, packed)
    return args, kwargs


def after_forward(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """The forward hook: a cache that the decoder made for itself remembers where the prompt ended."""
    cache = getattr(output, "past_key_values", None)
    context = kwargs.get(CONTEXT_KEY)
    if cache is not None and not hasattr(cache, _ON_CACHE):
        prompt = context.prompt if isinstance(context, ForwardContext) else None
        setattr(cache, _ON_CACHE, prompt or Prompt(width=int(cache.get_seq_length())))


def _prompt_of_cache(decoder: nn.Module, cache: Any, seen: int, queries: int, given: Prompt | None) -> Prompt:
    known: Prompt | None = getattr(cache, _ON_CACHE, None)
    if given is not None:
        known = given
    elif seen == 0 and (known is None or not known.declared):
        known = Prompt(width=queries)
    elif known is None or not (known.declared or queries == 1):
        policy = policy_on(decoder.config)
        if policy.by_phase:
            what = (
                "this cache was filled before the policy was applied"
                if known is None
                else f"{queries} tokens were added at once to a cache whose prompt had ended "
                "(chunked prefill, assisted decoding or another turn)"
            )
            raise UserError(
                f"{policy.policy}: the policy depends on where the prompt ends, and {what}. "
                f"Say where: swaa.declare_prompt(cache, prompt_lengths), before the first forward pass."
            )
        known = known or Prompt(width=seen + queries)
    setattr(cache, _ON_CACHE, known)
    return known


def _checked_lengths(lengths: Any, batch: int) -> Tensor:
    checked: Tensor = torch.as_tensor(lengths)
    if checked.is_floating_point() or checked.dim() == 0 or len(checked) != batch:
        mend = "Give the number of prompt tokens, padding not counted, of each sample."
        raise invalid("prompt_lengths", accepted=f"an int tensor with {batch} rows", got=lengths, mend=mend)
    return checked


def _packed_positions(position_ids: Tensor | None, attention_mask: Any) -> Tensor | None:
    """The positions of packed documents: position ids that restart, where no attention mask tells of padding."""
    if position_ids is None or attention_mask is not None or position_ids.dim() != 2:
        return None
    restarts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return position_ids if bool(restarts.any()) else None

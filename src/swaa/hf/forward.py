"""What one forward pass knows beyond its tensors: the prompt's length, and packed documents.

transformers hands attention neither the cache nor the caller's own arguments. A forward pre-hook on the decoder sees
them all; it passes what matters on as one keyword argument, :class:`ForwardContext`. The hook keeps no state: where a
prompt ended is remembered on the cache, because the cache is what a generation goes by.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from swaa.errors import UserError, invalid
from swaa.hf.spec import policy_on
from swaa.policies import AttentionPolicy

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
    packed: bool = False
    """Were the prompts packed documents? Then nothing can be added to the cache."""
    started: bool = False
    """Has a forward pass begun with it? Then an empty cache has been reset, and awaits another prompt."""


class ForwardContext:
    """What the pre-hook found out. No dataclass: wrappers such as FSDP copy those, and ``arrived`` would be lost."""

    def __init__(self, prompt: Prompt | None = None, packed_positions: Tensor | None = None) -> None:
        self.prompt = prompt
        self.packed_positions = packed_positions
        self.arrived = False
        """Has an attention layer got it? Some models drop keyword arguments on the way."""


def declare_prompt(cache: Any, prompt_lengths: Tensor | int) -> Any:
    """Say how long the prompts are that a cache will hold, where the first forward pass does not show it.

    Needed, for policies that differ by phase, in chunked prefill, assisted decoding and several turns on one cache.
    All of these raise without it, save a prompt cut so that a single token is left for the second forward pass: that
    looks like decoding, and is taken for it.

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
    if args:
        kwargs = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    kwargs = dict(kwargs)
    if kwargs.get("output_attentions", getattr(decoder.config, "output_attentions", False)):
        mend = "Ask for them without a policy, with attn_implementation='eager'."
        raise invalid(
            "output_attentions", accepted="False under a policy, as no kernel gives weights", got=True, mend=mend
        )
    lengths = kwargs.pop("prompt_lengths", None)
    tokens = next(
        (value for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if value is not None), None
    )
    if tokens is None:
        return (), kwargs  # the model itself will say what is missing
    cache = kwargs.get("past_key_values")
    seen = 0 if cache is None else int(cache.get_seq_length())
    packed = None
    if seen == 0:
        cached = cache is not None or _makes_a_cache(decoder, kwargs)
        packed = _packed_positions(kwargs.get("position_ids"), kwargs.get("attention_mask"), cached)
    prompt = None
    if lengths is not None:
        prompt = Prompt(lengths=_checked_lengths(lengths, len(tokens), packed is not None), declared=True)
    if cache is not None:
        prompt = _prompt_of_cache(decoder, cache, seen, tokens, prompt)
        prompt = replace(prompt, packed=packed is not None, started=True)
        setattr(cache, _ON_CACHE, prompt)
    kwargs[CONTEXT_KEY] = ForwardContext(prompt, packed)
    return (), kwargs


def after_forward(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """The forward hook: a cache that the decoder made for itself remembers where the prompt ended."""
    context = kwargs.get(CONTEXT_KEY)
    if not isinstance(context, ForwardContext):
        return
    if context.packed_positions is not None and not context.arrived:
        raise dropped_context(policy_on(decoder.config).policy, "the position_ids pack several documents into a row")
    cache = getattr(output, "past_key_values", None)
    if cache is not None and not hasattr(cache, _ON_CACHE):
        prompt = context.prompt or Prompt(width=int(cache.get_seq_length()))
        setattr(cache, _ON_CACHE, replace(prompt, packed=context.packed_positions is not None, started=True))


def before_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward pre-hook on the model around the decoder: refuses generation that hides where the prompt ends.

    Only the number of logits asked for shows it. The first forward pass of assisted decoding holds prompt and draft
    together; generation without a cache runs the whole sequence anew for each token.
    """
    logits, cache = kwargs.get("logits_to_keep"), kwargs.get("past_key_values")
    policy = policy_on(model.config)
    if not policy.by_phase or not isinstance(logits, int) or kwargs.get("prompt_lengths") is not None:
        return
    if cache is None and logits == 1 and kwargs.get("use_cache") is False:
        raise UserError(
            f"{policy.policy}: the policy depends on where the prompt ends, and generate(use_cache=False) does not "
            f"show it. Generate with a cache; in a forward pass of your own, give prompt_lengths."
        )
    if cache is not None and logits > 1 and int(cache.get_seq_length()) == 0:
        known = _known(cache, seen=0)
        if known is None or not known.declared:
            reason = f"{logits} logits are wanted of the cache's first forward pass (assisted decoding)"
            raise _undeclared(policy.policy, reason)


def dropped_context(policy: AttentionPolicy, reason: str) -> UserError:
    """The error of a model whose attention does not get what the pre-hook found out."""
    return UserError(
        f"{policy}: {reason}, but this model does not pass keyword arguments on to attention, or runs without the "
        f"hooks of swaa.apply_policy. Apply the policy to this very model; if it was, use another model for this."
    )


def _undeclared(policy: AttentionPolicy, reason: str) -> UserError:
    return UserError(
        f"{policy}: the policy depends on where the prompt ends, and {reason}. "
        f"Say where: swaa.declare_prompt(cache, prompt_lengths), before the forward pass, with the cache passed as "
        f"past_key_values."
    )


def _known(cache: Any, seen: int) -> Prompt | None:
    known: Prompt | None = getattr(cache, _ON_CACHE, None)
    return None if known is not None and known.started and seen == 0 else known


def _prompt_of_cache(decoder: nn.Module, cache: Any, seen: int, tokens: Tensor, given: Prompt | None) -> Prompt:
    known = _known(cache, seen)
    queries = tokens.shape[1]
    if seen and known is not None and known.packed:
        raise UserError(
            "past_key_values: expected one document per row, got a cache filled with packed documents, to which "
            "nothing can be added. Give each document a row of its own, padded on the left."
        )
    if given is not None:
        known = given
    elif seen == 0 and (known is None or not known.declared):
        known = Prompt(width=queries)
    elif known is None or not (known.declared or (queries == 1 and seen >= (known.width or 0))):
        policy = policy_on(decoder.config)
        if policy.by_phase:
            reason = "this cache was filled before the policy was applied"
            if known is not None:
                reason = (
                    f"{queries} tokens were added to a cache of {seen} whose prompt had ended "
                    "(chunked prefill, assisted decoding or another turn)"
                )
            raise _undeclared(policy.policy, reason)
        known = known or Prompt(width=seen + queries)
    return _for_batch(known, len(tokens))


def _for_batch(prompt: Prompt, batch: int) -> Prompt:
    """The prompt of a batch whose samples generate() has repeated for beams or for several answers to each."""
    lengths = prompt.lengths
    if lengths is None or len(lengths) in (1, batch):
        return prompt
    if batch % len(lengths):
        mend = "Give the number of prompt tokens, padding not counted, of each sample."
        raise invalid("prompt_lengths", accepted=f"one int per sample ({batch})", got=lengths.tolist(), mend=mend)
    return replace(prompt, lengths=lengths.repeat_interleave(batch // len(lengths), 0))


def _checked_lengths(given: Any, batch: int, packed: bool) -> Tensor:
    lengths = torch.as_tensor(given)
    dims = (1, 2) if packed else (1,)
    if lengths.is_floating_point() or lengths.dim() not in dims or len(lengths) != batch or bool((lengths < 0).any()):
        shape = f"[{batch}] (or [{batch}, documents])" if packed else f"[{batch}]"
        mend = "Give the number of prompt tokens, padding not counted, of each sample."
        raise invalid("prompt_lengths", accepted=f"ints >= 0 of shape {shape}", got=lengths.tolist(), mend=mend)
    return lengths


def _makes_a_cache(decoder: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Will the decoder make a cache for itself?"""
    asked = kwargs.get("use_cache")
    wanted = getattr(decoder.config, "use_cache", False) if asked is None else asked
    return bool(wanted) and not (decoder.training and getattr(decoder, "gradient_checkpointing", False))


def _packed_positions(position_ids: Tensor | None, attention_mask: Any, cached: bool) -> Tensor | None:
    """The positions of packed documents: position ids that restart, where no attention mask tells of padding.

    Position ids that leave some out are one document where there is a cache; where there is none, transformers takes a
    gap for a new document, and so does this.
    """
    if position_ids is None or attention_mask is not None or position_ids.dim() != 2:
        return None
    steps = position_ids[:, 1:] - position_ids[:, :-1]
    restarts = steps < 1 if cached else steps != 1
    return position_ids if bool(restarts.any()) else None

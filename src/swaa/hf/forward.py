"""The forward hooks: what one forward pass knows beyond its tensors, found out and passed on to attention.

transformers hands attention neither the cache nor the caller's own arguments. A forward pre-hook on the decoder sees
them all: which tokens are prompt, packed documents, the cache. The hooks keep no state.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from swaa.errors import UserError, invalid
from swaa.hf.ahead import check_told, check_whole
from swaa.hf.cache import evict_in
from swaa.hf.prompt import (
    BOOKS,
    CONTEXT_KEY,
    ForwardContext,
    Prompt,
    checked_decode_mask,
    dropped_context,
    known_prompt,
    remember,
    remembered,
    undeclared,
)
from swaa.hf.rotation import turn_back
from swaa.hf.spec import policy_on, text_config
from swaa.policies import AttentionPolicy

log = logging.getLogger(__name__)


def before_forward(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The forward pre-hook: find the phases and packing, and pass them on."""
    if args:
        kwargs = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    kwargs = dict(kwargs)
    if kwargs.get("output_attentions", getattr(decoder.config, "output_attentions", False)):
        mend = "Ask for them without a policy, with attn_implementation='eager'."
        raise invalid(
            "output_attentions", accepted="False under a policy, as no kernel gives weights", got=True, mend=mend
        )
    lengths, decode_mask = kwargs.pop("prompt_lengths", None), kwargs.pop("decode_mask", None)
    tokens = next(
        (value for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if value is not None), None
    )
    if tokens is None:
        return (), kwargs  # the model itself will say what is missing
    cache = kwargs.get("past_key_values")
    if decode_mask is not None:
        decode_mask = checked_decode_mask(decode_mask, tokens, lengths, cache)
    seen = 0 if cache is None else _seen_by(cache)
    packed = None
    if seen == 0:
        cached = cache is not None or _makes_a_cache(decoder, kwargs)
        packed = _packed_positions(kwargs.get("position_ids"), kwargs.get("attention_mask"), cached)
    if packed is None and seen == 0 and decode_mask is None:
        cache = _evicting(decoder, cache, kwargs)
        if cache is not None:
            kwargs["past_key_values"] = cache
    prompt = None if decode_mask is None else Prompt(masked=True)
    if lengths is not None:
        prompt = Prompt(lengths=_checked_lengths(lengths, len(tokens), packed is not None), declared=True)
    if cache is not None:
        prompt = _prompt_of_cache(decoder, cache, seen, tokens, prompt)
        prompt = replace(prompt, packed=packed is not None, started=True)
        remember(cache, prompt)
    policy = policy_on(decoder.config)
    if policy.policy.sees_ahead():
        check_told(policy.policy, prompt, _why_tell(decoder, kwargs, packed is not None))
        if prompt is not None:
            check_whole(policy.policy, prompt, seen, tokens.shape[1], kwargs.get("attention_mask"))
    books = getattr(cache, BOOKS, None)
    if books is not None:
        phased = prompt if policy.by_phase else None
        books.begin(policy.policy, tokens.shape[1], kwargs.get("attention_mask"), seen, phased)
    turn = turn_back(decoder) if policy.moves_positions else None
    kwargs[CONTEXT_KEY] = ForwardContext(prompt, packed, None if books is None else cache, decode_mask, turn)
    return (), kwargs


def after_forward(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """The forward hook: a cache that the decoder made for itself remembers where the prompt ended."""
    context = kwargs.get(CONTEXT_KEY)
    if not isinstance(context, ForwardContext):
        return
    if context.packed_positions is not None and not context.arrived:
        raise dropped_context(policy_on(decoder.config).policy, "the position_ids pack several documents into a row")
    if context.cache is not None:
        getattr(context.cache, BOOKS).release()
    cache = getattr(output, "past_key_values", None)
    if cache is not None and remembered(cache) is None:
        prompt = context.prompt or Prompt(width=int(cache.get_seq_length()))
        remember(cache, replace(prompt, packed=context.packed_positions is not None, started=True))


def before_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward pre-hook on the model around the decoder: refuses generation that hides where the prompt ends.

    Only the number of logits asked for shows it. The first forward pass of assisted decoding holds prompt and draft
    together, and the draft may be taken back; generation without a cache runs the whole sequence anew for each token.
    """
    policy = policy_on(model.config)
    if policy.policy.sees_ahead():
        _check_labels(model, policy.policy, args, kwargs)
    logits, cache = kwargs.get("logits_to_keep"), kwargs.get("past_key_values")
    if not isinstance(logits, int) or kwargs.get("decode_mask") is not None:
        return
    if logits > 1 and cache is not None and _evicting(model, cache, kwargs) is cache and hasattr(cache, BOOKS):
        _presume_recording(cache)
    if not policy.by_phase or kwargs.get("prompt_lengths") is not None:
        return
    if cache is None and logits == 1 and kwargs.get("use_cache") is False:
        raise UserError(
            f"{policy.policy}: the policy depends on where the prompt ends, and generate(use_cache=False) does not "
            f"show it. Generate with a cache; in a forward pass of your own, give prompt_lengths or decode_mask."
        )
    if cache is not None and logits > 1 and int(cache.get_seq_length()) == 0:
        known = known_prompt(cache, seen=0)
        if known is None or not known.declared:
            reason = f"{logits} logits are wanted of the cache's first forward pass (assisted decoding)"
            raise undeclared(policy.policy, reason)


def _why_tell(decoder: nn.Module, kwargs: dict[str, Any], packed: bool) -> str | None:
    """Why a forward pass need not be a prompt alone; None where it is the first one of a cache."""
    if decoder.training:
        return "in training"
    if packed:
        return "over packed documents"
    cached = kwargs.get("past_key_values") is not None or _makes_a_cache(decoder, kwargs)
    return None if cached else "without a cache"


def _check_labels(model: nn.Module, policy: AttentionPolicy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse labels of a policy that looks ahead where the prompt's end is not told."""
    given = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
    if given.get("labels") is not None and given.get("prompt_lengths") is None:
        check_told(policy, None, "with labels")


def _prompt_of_cache(decoder: nn.Module, cache: Any, seen: int, tokens: Tensor, given: Prompt | None) -> Prompt:
    known = known_prompt(cache, seen)
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
    elif known is None or not (known.declared or _is_decoding(known, queries, seen)):
        policy = policy_on(decoder.config)
        if policy.by_phase:
            reason = "this cache was filled before the policy was applied"
            if known is not None and known.masked:
                reason = "the decode_mask that this cache was filled with says nothing of further tokens"
            elif known is not None:
                reason = (
                    f"{queries} tokens were added to a cache of {seen} whose prompt had ended "
                    "(chunked prefill, assisted decoding or another turn)"
                )
            raise undeclared(policy.policy, reason)
        known = known or Prompt(width=seen + queries)
    return _for_batch(known, len(tokens))


def _is_decoding(known: Prompt, queries: int, seen: int) -> bool:
    """Is the new token one that was generated, after the prompt of the cache's first forward pass?"""
    return queries == 1 and seen >= (known.width or 0) and not known.masked


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


def _presume_recording(cache: Any) -> None:
    """generate() asks a cache to record before an assisted generation, which it has done before the cache was ours."""
    books = getattr(cache, BOOKS)
    if not books.recording and not _seen_by(cache):
        books.recording = books.presumed = True


def _evicting(model: nn.Module, cache: Any, kwargs: dict[str, Any]) -> Any:
    """The cache of a first forward pass, made to drop keys where that is wanted and possible."""
    if model.training or torch.compiler.is_compiling() or not policy_on(model.config).evict:
        return cache  # what is kept changes the shapes and the bookkeeping from step to step: nothing to trace
    config = text_config(model.config)
    if cache is None and _makes_a_cache(model, kwargs) and not _has_its_own_cache(type(model).__module__):
        own = DynamicCache(config=config)
        return own if evict_in(own, config) else None
    if _is_plain(cache):
        evict_in(cache, config)
    elif cache is not None and not hasattr(cache, BOOKS):
        _say_that_nothing_is_freed(type(cache).__name__)
    return cache


@functools.cache
def _say_that_nothing_is_freed(cache: str) -> None:
    log.warning(
        "past_key_values: a %s keeps every key; the policy masks them, and frees nothing. For freed memory leave "
        "cache_implementation out, or pass swaa.PolicyCache(model).",
        cache,
    )


@functools.cache
def _has_its_own_cache(module: str) -> bool:
    """Does the file of a model define a cache class, which the model then asks for?"""
    defined = vars(sys.modules[module]).values()
    return any(isinstance(one, type) and issubclass(one, Cache) and one.__module__ == module for one in defined)


def _is_plain(cache: Any) -> bool:
    """Is it an empty ``DynamicCache``, and nothing that only derives from one?"""
    return type(cache) is DynamicCache and not cache.offloading and not hasattr(cache, BOOKS) and not _seen_by(cache)


def _seen_by(cache: Any) -> int:
    """Tokens that a cache has taken in."""
    return int(cache.get_seq_length())


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

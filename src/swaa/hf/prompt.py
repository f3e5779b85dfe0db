"""Where a prompt ends: what the user or the first forward pass says, and how it is passed on and remembered.

A forward pre-hook passes it to attention as one keyword argument, :class:`ForwardContext`. Between passes it is
remembered on the cache, because the cache is what a generation goes by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.compiler.positions import TurnBack
from swaa.errors import UserError, invalid
from swaa.policies import AttentionPolicy

CONTEXT_KEY = "swaa_context"
"""The keyword argument that carries the context to attention."""

_ON_CACHE = "swaa_prompt"
BOOKS = "swaa_books"
"""The attribute of a cache that drops keys which says what it holds (:class:`swaa.hf.cache.CacheBooks`)."""


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
    masked: bool = False
    """Did a mask tell the phase of each token that came? Then the phase of those to come is not known."""
    started: bool = False
    """Has a forward pass begun with it? Then an empty cache has been reset, and awaits another prompt."""


class ForwardContext:
    """What the pre-hook found out. No dataclass: wrappers such as FSDP copy those, and ``arrived`` would be lost."""

    def __init__(
        self,
        prompt: Prompt | None = None,
        packed_positions: Tensor | None = None,
        cache: Any = None,
        decode_mask: Tensor | None = None,
        turn_back: TurnBack | None = None,
    ) -> None:
        self.prompt = prompt
        self.packed_positions = packed_positions
        self.cache = cache
        """The cache, where its layers drop keys."""
        self.decode_mask = decode_mask
        """The queries of the decode phase, bool [B, Q], where the caller has said it token by token."""
        self.turn_back = turn_back
        """The model's rotation, turned back, where scores count positions in another way."""
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
    known = remembered(cache)
    packed = known is not None and known.packed  # a declaration does not undo it
    remember(cache, Prompt(lengths=lengths.reshape(-1), declared=True, packed=packed))
    return cache


def remember(cache: Any, prompt: Prompt) -> None:
    """Keep a prompt with its cache; a cache that drops keys keeps it in its books, which follow the samples about."""
    books = getattr(cache, BOOKS, None)
    if books is None:
        setattr(cache, _ON_CACHE, prompt)
    else:
        books.prompt = prompt


def remembered(cache: Any) -> Prompt | None:
    """What :func:`remember` kept, or None."""
    books = getattr(cache, BOOKS, None)
    prompt: Prompt | None = getattr(cache, _ON_CACHE, None) if books is None else books.prompt
    return prompt


def dropped_context(policy: AttentionPolicy, reason: str) -> UserError:
    """The error of a model whose attention does not get what the pre-hook found out."""
    return UserError(
        f"{policy}: {reason}, but this model does not pass keyword arguments on to attention, or runs without the "
        f"hooks of swaa.apply_policy. Apply the policy to this very model; if it was, use another model for this."
    )


def undeclared(policy: AttentionPolicy, reason: str) -> UserError:
    """The error of a policy that cannot know where the prompt ends."""
    return UserError(
        f"{policy}: the policy depends on where the prompt ends, and {reason}. "
        f"Say where: swaa.declare_prompt(cache, prompt_lengths), before the forward pass, with the cache passed as "
        f"past_key_values."
    )


def checked_decode_mask(given: Any, tokens: Tensor, lengths: Any, cache: Any) -> Tensor:
    """The ``decode_mask`` of a forward pass over ``tokens``, bool [B, S].

    Raises:
        UserError: it does not fit the tokens, or something else tells the phases, too.
    """
    if lengths is not None:
        raise UserError(
            "decode_mask: expected no prompt_lengths beside it, got both, and each tells which tokens decode. "
            "Give prompt_lengths where samples hold one prompt and one answer, and decode_mask where they hold more."
        )
    shape = tuple(tokens.shape[:2])
    mask = given if isinstance(given, Tensor) else None
    if mask is None or mask.dtype != torch.bool or mask.shape != shape or mask.device != tokens.device:
        got = type(given).__name__
        if mask is not None:
            got = f"{str(mask.dtype).removeprefix('torch.')} of shape {list(mask.shape)} on {mask.device}"
        raise UserError(
            f"decode_mask: expected bool of shape {list(shape)} on {tokens.device}, as the tokens are, got {got}. "
            f"Give True for each token that decodes as a query."
        )
    if cache is not None:
        seen = int(cache.get_seq_length())
        known = known_prompt(cache, seen)
        found = "a cache that drops keys" if hasattr(cache, BOOKS) else None
        found = "a cache with a declared prompt" if known is not None and known.declared else found
        found = f"a cache of {seen} tokens" if seen else found
        if found is not None:
            raise UserError(
                f"decode_mask: expected a forward pass without a cache, got {found}. Leave past_key_values out; where "
                f"there is a cache, say swaa.declare_prompt(cache, prompt_lengths) instead."
            )
    return mask


def known_prompt(cache: Any, seen: int) -> Prompt | None:
    """What a cache of ``seen`` tokens knows of its prompt."""
    known = remembered(cache)
    return None if known is not None and known.started and seen == 0 else known

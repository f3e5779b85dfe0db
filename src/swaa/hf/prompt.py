"""Where a prompt ends: what the user or the first forward pass says, and how it is passed on and remembered.

A forward pre-hook passes it to attention as one keyword argument, :class:`ForwardContext`. Between passes it is
remembered on the cache, because the cache is what a generation goes by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    started: bool = False
    """Has a forward pass begun with it? Then an empty cache has been reset, and awaits another prompt."""


class ForwardContext:
    """What the pre-hook found out. No dataclass: wrappers such as FSDP copy those, and ``arrived`` would be lost."""

    def __init__(self, prompt: Prompt | None = None, packed_positions: Tensor | None = None, cache: Any = None) -> None:
        self.prompt = prompt
        self.packed_positions = packed_positions
        self.cache = cache
        """The cache, where its layers drop keys."""
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
    remember(cache, Prompt(lengths=lengths.reshape(-1), declared=True))
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


def known_prompt(cache: Any, seen: int) -> Prompt | None:
    """What a cache of ``seen`` tokens knows of its prompt."""
    known = remembered(cache)
    return None if known is not None and known.started and seen == 0 else known

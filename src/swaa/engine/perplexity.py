"""How well a model predicts long text under a policy: delta-NLL over all tokens, LongPPL over those that need context.

Key tokens are found once, with the unmodified model under full attention, and every recipe is measured on the very same
ones. The mean over all tokens says little of long context, since most tokens follow from the last few words: "What is
Wrong with Perplexity for Long-context Language Modeling?", arXiv 2410.23771.

All figures are of the prefill policy: a stretch is read as one prompt, in which no token decodes. Recipes that differ
in their decode phase alone get the same figures.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.config.perplexity import Perplexity
from swaa.engine.grid import context_of
from swaa.engine.text_nll import TokenText, read_text, token_nll
from swaa.errors import UserError
from swaa.hf import apply_policy
from swaa.policies import FullAttention
from swaa.recipe import Recipe
from swaa.report.runs import Stretch

log = logging.getLogger(__name__)

CHUNK = 1_024
"""Tokens read at a time: the logits of 4,096 positions and 49,152 tokens are 0.8 GB in float32."""


@dataclass(frozen=True)
class TextStretch:
    """A piece of the text, and what the unmodified model makes of it.

    Attributes:
        ids: its tokens, the BOS among them.
        key_tokens: places in ``ids`` of the key tokens.
        full_nll: mean NLL under full attention of all tokens but the first, in nats.
    """

    ids: tuple[int, ...]
    key_tokens: tuple[int, ...]
    full_nll: float


@dataclass(frozen=True)
class KeyTokens:
    """What every recipe is measured on.

    Attributes:
        stretches: of the text, in order.
    """

    stretches: tuple[TextStretch, ...]

    @property
    def number(self) -> int:
        """Key tokens of all stretches."""
        return sum(len(stretch.key_tokens) for stretch in self.stretches)

    @classmethod
    def find(
        cls, model: Any, tokenizer: Any, settings: Perplexity, *, kernel: str = "auto", chunk_size: int = CHUNK
    ) -> KeyTokens:
        """Cut the text and find its key tokens. If there are none, a warning says so.

        Args:
            model: unmodified and in eval mode; a policy that is on it is overridden.
            tokenizer: its own.
            settings: what is asked for.
            kernel, chunk_size: as for the recipes.

        Raises:
            UserError: the text cannot be read or is too short, or a stretch does not fit into the model's context.
        """
        tokens = _checked_text(model, tokenizer, settings)
        found = []
        with apply_policy(model, FullAttention(), kernel=kernel):
            for ids in tokens.stretches(settings.num_stretches, settings.length):
                nll = token_nll(model, ids, chunk_size=chunk_size)
                keys = _key_tokens(model, ids, nll, len(tokens.lead), settings, chunk_size)
                found.append(TextStretch(tuple(ids.tolist()), tuple(keys), float(nll.mean())))
        result = cls(tuple(found))
        if not result.number:
            log.warning(
                "perplexity: no token of %d stretches gains more than key_gain=%g nats from its long context and has "
                "an NLL below key_nll=%g, so there is no LongPPL; delta-NLL is measured. Take longer stretches or "
                "more of them, a shorter short_length, or other thresholds.",
                settings.num_stretches,
                settings.key_gain,
                settings.key_nll,
            )
        return result

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON; :meth:`from_dict` reads them back."""
        return {"stretches": [dataclasses.asdict(stretch) for stretch in self.stretches]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KeyTokens:
        """What :meth:`to_dict` gave.

        Raises:
            KeyError, TypeError: they are other values.
        """
        return cls(
            tuple(
                TextStretch(tuple(item["ids"]), tuple(item["key_tokens"]), float(item["full_nll"]))
                for item in values["stretches"]
            )
        )


def read_stretch(model: Any, known: KeyTokens, recipe: Recipe, stretch: int, *, chunk_size: int = CHUNK) -> Stretch:
    """Read a stretch as one prompt; the decode phase does not act.

    Args:
        model: in eval mode, with the recipe's weights and policy.
        known: the stretches and key tokens.
        recipe: whose line it is.
        stretch: its number.
        chunk_size: tokens read at a time.
    """
    chosen = known.stretches[stretch]
    nll = token_nll(model, torch.tensor(chosen.ids), chunk_size=chunk_size)
    mean, keys = float(nll.mean()), [place - 1 for place in chosen.key_tokens]
    return Stretch(
        recipe=recipe.name,
        recipe_hash=recipe.hash,
        stretch=stretch,
        nll=mean,
        delta_nll=mean - chosen.full_nll,
        long_nll=float(nll[keys].mean()) if keys else None,
        key_tokens=len(keys),
        tokens=len(nll),
    )


def _checked_text(model: Any, tokenizer: Any, settings: Perplexity) -> TokenText:
    """The text in tokens, long enough for the stretches, which fit the model."""
    length, number, context = settings.length, settings.num_stretches, context_of(model)
    if context is not None and length > context:
        raise UserError(
            f"perplexity.length: a stretch of {length} tokens does not fit into the model's context of {context}. "
            f"Set it to {context} or less."
        )
    tokens = TokenText.of(tokenizer, read_text(settings.text_file, field="perplexity.text_file"))
    if tokens.room(length) < number:
        raise UserError(
            f"perplexity.text_file: the text has {len(tokens.ids)} tokens, room for {tokens.room(length)} stretches of "
            f"{length} side by side, and {number} are wanted. Use a longer text, or lower num_stretches or length."
        )
    return tokens


def _key_tokens(
    model: Any, ids: Tensor, long_nll: Tensor, lead: int, settings: Perplexity, chunk_size: int
) -> list[int]:
    """The places in ``ids`` of the key tokens.

    A short reading begins ``short_length`` tokens before the first of ``stride`` tokens, after the ``lead`` tokens that
    begin every text: what is left out is context, and not the beginning that the model always has. The very first one
    would begin where the stretch does, so its tokens gain nothing.
    """
    context, stride = settings.short_length, settings.stride
    found = []
    for begin in range(lead + stride, len(ids) - context, stride):
        first, end = begin + context, min(begin + context + stride, len(ids))
        short = torch.cat([ids[:lead], ids[begin:end]])
        short_nll = token_nll(model, short, chunk_size=chunk_size)[first - end :]
        full_nll = long_nll[first - 1 : end - 1]
        is_key = (short_nll - full_nll > settings.key_gain) & (full_nll < settings.key_nll)
        found += [first + int(place) for place in is_key.nonzero()[:, 0]]
    return found

"""What a policy that looks ahead needs of a forward pass: to be told where the prompt ends, and to get all of it.

A token of the prompt that sees later tokens must never see an answer, and cannot see tokens that come in another
forward pass. What would be silently wrong is refused here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swaa.compiler.ahead import looks_across
from swaa.errors import UserError
from swaa.hf.prompt import Prompt
from swaa.policies import AttentionPolicy


def check_told(policy: AttentionPolicy, prompt: Prompt | None, reason: str | None) -> None:
    """Refuse a forward pass that does not tell where its prompts end, for the ``reason`` that it has to.

    Raises:
        UserError: the end is not declared, or a mask tells the phases instead.
    """
    if prompt is not None and prompt.masked:
        raise UserError(
            f"{policy}: the policy looks ahead in the prompt, and decode_mask does not tell where a prompt ends: an "
            f"answer of one token has none that decodes, and would be seen. Give prompt_lengths instead, with one "
            f"prompt and one answer to a sample or packed document."
        )
    if reason is not None and not (prompt is not None and prompt.declared):
        raise UserError(
            f"{policy}: the policy looks ahead in the prompt, and nothing tells where it ends in a forward pass "
            f"{reason}: all tokens would be seen, answers among them. Give prompt_lengths."
        )


def check_whole(policy: AttentionPolicy, prompt: Prompt, seen: int, queries: int, attention_mask: Any) -> None:
    """Refuse a forward pass over a cache that cuts a prompt where tokens look across the cut.

    Args:
        seen: slots of the cache before this pass.
        queries: slots of this pass.
        attention_mask: the 2-d mask, or None where there is no padding.

    Raises:
        UserError: tokens before the cut may see some behind it.
    """
    if prompt.lengths is None or prompt.packed:
        return  # the first forward pass was the prompt
    ends_B = prompt.lengths.long().cpu()
    for slots in (seen, seen + queries):
        split_B = torch.full_like(ends_B, slots)
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            split_B = attention_mask[:, :slots].long().sum(-1).cpu()
        split_B, end_B = torch.broadcast_tensors(split_B, ends_B)
        across_B = looks_across(policy, split_B, end_B)
        if bool(across_B.any()):
            row = int(across_B.nonzero()[0])
            raise UserError(
                f"{policy}: the policy looks ahead, and a forward pass cuts the prompt of {int(end_B[row])} tokens "
                f"(sample {row}) after {int(split_B[row])}, where earlier tokens see later ones. Pass the whole prompt "
                f"in one forward pass, with an empty cache."
            )


def refuse_scored_prompt(policy: AttentionPolicy | None, what: str) -> None:
    """Refuse to score the tokens of a prompt by those before them, where these see them.

    Raises:
        UserError: the policy looks ahead.
    """
    if policy is not None and policy.sees_ahead():
        raise UserError(
            f"{policy}: the policy looks ahead in the prompt, and {what} predicts tokens of the prompt, which it would "
            f"have seen. Score answers to prompts instead."
        )

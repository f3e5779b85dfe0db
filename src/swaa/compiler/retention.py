"""The retention reading: which cached keys can still be seen by some future query. The others are dead: KV eviction.

The policy is evaluated with the query standing for every position from ``next_position`` on. A key that no such query
may see will never be read again, whatever is generated. Derived from the predicate alone, so exact for the zoo and
safe for any policy: a key is called dead only if no future query sees it.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from swaa.compiler.evaluate import evaluate
from swaa.compiler.interval import INFINITY, Interval, UnknownOperation, Verdict, untraced
from swaa.policies.boolean import Formula
from swaa.policies.bound import HeadPolicy, LayerPolicy
from swaa.policies.describe import formula_to_python

log = logging.getLogger(__name__)


@untraced
def live_keys(
    layer: LayerPolicy,
    key_positions_BK: Tensor,
    next_position_B: Tensor,
    prompt_length_B: Tensor | None = None,
    *,
    num_kv_heads: int | None = None,
) -> Tensor:
    """Which keys some query at logical position ``next_position`` or later may still see.

    Args:
        key_positions_BK: int logical positions of the keys, -1 where the slot holds no token.
        next_position_B: int, the position of the first query still to come.
        prompt_length_B: int, where the decode phase begins; None if it has begun for all.
        num_kv_heads: with it, and where heads differ, one answer per KV head: the union over its query heads.

    Returns:
        bool [B, H, K]; H is ``num_kv_heads`` where heads differ and it is given, else 1. Padding is never live.
    """
    groups = [(heads, _live(head, key_positions_BK, next_position_B, prompt_length_B)) for heads, head in layer.groups]
    real_BK = key_positions_BK >= 0
    if len(groups) == 1 or num_kv_heads is None:
        return (torch.stack([live for _, live in groups]).any(0) & real_BK).unsqueeze(1)
    per_group = layer.num_heads // num_kv_heads
    live_BK_of_kv_head = [
        torch.stack([live for heads, live in groups if any(head // per_group == kv_head for head in heads)]).any(0)
        for kv_head in range(num_kv_heads)
    ]
    return torch.stack(live_BK_of_kv_head, 1) & real_BK.unsqueeze(1)


def _live(head: HeadPolicy, keys_BK: Tensor, next_B: Tensor, prompt_B: Tensor | None) -> Tensor:
    next_B1 = next_B.long().unsqueeze(-1)
    keys = Interval(keys_BK.long(), keys_BK.long())
    forever = torch.full_like(next_B1, INFINITY)
    try:
        if prompt_B is None:
            return _may_see(head.formula("decode"), Interval(next_B1, forever), keys)
        prompt_B1 = prompt_B.long().unsqueeze(-1)
        decode = _may_see(head.decode, Interval(torch.maximum(next_B1, prompt_B1), forever), keys)
        # of earlier keys, where a policy looks ahead: those ahead of a query to come are not cached yet
        prefill = _may_see(head.prefill, Interval(next_B1, prompt_B1 - 1), keys)
        return decode | (prefill & (next_B1 < prompt_B1))
    except UnknownOperation as reason:
        _say_once(head, str(reason))
        return torch.ones_like(keys_BK, dtype=torch.bool)


@functools.cache
def _say_once(head: HeadPolicy, reason: str) -> None:
    log.warning("%s: %s; all its keys are kept", formula_to_python(head.decode), reason)


def keeps_every_key(formula: Formula) -> bool:
    """Must all keys be kept as long as queries come that see by this formula? So where it chooses by content.

    Even keys that it hides count in the means of their blocks. Said in the log, once.
    """
    if formula.by_content:
        _say_that_all_are_kept(formula)
    return formula.by_content


@functools.cache
def _say_that_all_are_kept(formula: Formula) -> None:
    log.warning(
        "%s: keys cannot be freed: %s chooses by content, and any block may be chosen again; all are kept",
        formula_to_python(formula),
        ", ".join(repr(atom) for atom in formula.atoms if atom.by_content),
    )


def _may_see(formula: Formula, queries: Interval, keys: Interval) -> Tensor:
    if keeps_every_key(formula):
        return torch.ones_like(keys.lo, dtype=torch.bool)
    verdict = (queries >= keys) & evaluate(formula, queries, keys)
    assert isinstance(verdict, Verdict)
    return verdict.may

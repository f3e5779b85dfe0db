"""The block mask of a layer that chooses by content: verdicts of its cofactors, joined by what was chosen.

For every outcome of the choices, :mod:`swaa.compiler.refine` judges the cofactor's blocks exactly; the tables tell in
which blocks a query and key with this outcome must, or may, be found. Together they settle most blocks; the pairs of
the others (those on the diagonal, at a window's edge) are looked at one by one. Exact, as all block masks here.

Shape suffixes: B samples, H query heads, Q query slots, M query blocks, N key blocks of the mask, J blocks of a choice,
R rows (1 where all samples are laid out alike, else B), U blocks left undecided.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from swaa.compiler.blocks import block_mask_of, layer_verdicts, torch_block_mask
from swaa.compiler.cofactors import cofactors, shows_nothing
from swaa.compiler.interval import UnknownOperation
from swaa.compiler.kernel import MaskMod, mask_mod
from swaa.compiler.layout import TokenLayout
from swaa.compiler.selection import NO_BLOCK, Selection, at_keys, padded_to

_PAIRS = 1 << 21  # of undecided blocks, looked at one by one, at a time


def selected_block_mask(
    selection: Selection, layout: TokenLayout, block_size: tuple[int, int], *, with_backward: bool = False
) -> BlockMask:
    """The block mask of a layer's choices, over [B, H, Q, K].

    Args:
        layout: that of the selection, or one with slots that hold no token added behind.
        block_size: slots of a block, *(queries, keys)*.
        with_backward: also list the query blocks of each key block, as FlexAttention's backward pass needs.
    """
    predicate = selected_mask_mod(selection, layout)
    batch, heads = selection.chosen[0].table_BHQN.shape[:2]
    try:
        blocks = _Blocks.of(selection, layout, block_size)
    except UnknownOperation as reason:
        return torch_block_mask(selection.layer, str(reason), predicate, batch, heads, layout, block_size)
    blocks.look_at_undecided(predicate, layout, block_size)
    return block_mask_of(blocks.visible, blocks.full, predicate, layout, block_size, with_backward=with_backward)


def selected_mask_mod(selection: Selection, layout: TokenLayout) -> MaskMod:
    """``mask_mod(b, h, q_index, k_index) -> bool`` over slots; the choices are looked up in their tables."""
    left = [(outcome, policy) for outcome, policy in cofactors(selection.layer) if not shows_nothing(policy)]
    rest = [(outcome, mask_mod(policy, layout)) for outcome, policy in left]
    tables = [padded_to(chosen, layout.query_length, layout.key_length) for chosen in selection.chosen]
    tables = [(table, key_RK.clamp(min=0)) for table, key_RK in tables]

    def visible(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        truths = []
        for table_BHQJ, key_RK in tables:
            row = b if len(key_RK) > 1 else torch.zeros_like(b)
            truths.append(table_BHQJ[b, h, q_index, key_RK[row, k_index]])
        seen = None
        for outcome, remaining in rest:
            part = remaining(b, h, q_index, k_index)
            for truth, value in zip(truths, outcome, strict=True):
                part = part & (truth if value else ~truth)
            seen = part if seen is None else seen | part
        assert seen is not None
        return seen

    return visible


@dataclass(eq=False)
class _Blocks:
    """The verdicts [B, H, M, N]: is a pair visible, is every pair? And where that is still to be found out."""

    visible: Tensor
    full: Tensor
    undecided: Tensor

    @classmethod
    def of(cls, selection: Selection, layout: TokenLayout, size: tuple[int, int]) -> _Blocks:
        truths = _truths(selection, layout, size[1])
        seen = hidden = torch.zeros((), dtype=torch.bool, device=layout.device)
        never_seen = never_hidden = torch.ones((), dtype=torch.bool, device=layout.device)
        for outcome, policy in cofactors(selection.layer):
            visible_BHMN, full_BHMN = layer_verdicts(policy, layout, size)
            # a pair with this outcome is there for sure (or no key at all, and then nothing is seen); one may be there
            there_BHMN = _some_query(truths, outcome, size[0], sure=True)
            perhaps_BHMN = _some_query(truths, outcome, size[0], sure=False)
            seen = seen | (there_BHMN & full_BHMN)
            hidden = hidden | (there_BHMN & ~visible_BHMN)
            never_seen = never_seen & ~(perhaps_BHMN & visible_BHMN)
            never_hidden = never_hidden & (~perhaps_BHMN | full_BHMN)
        undecided = ~(seen | never_seen) | ~(hidden | never_hidden)
        return cls(seen, never_hidden & seen, undecided)

    def look_at_undecided(self, predicate: MaskMod, layout: TokenLayout, size: tuple[int, int]) -> None:
        """Settle the rest, pair by pair."""
        (height, width), device = size, layout.device
        down, across = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device)
        for some_U4 in self.undecided.nonzero().split(max(1, _PAIRS // (height * width))):
            b, h, m, n = (part.view(-1, 1, 1) for part in some_U4.unbind(-1))
            queries, keys = m * height + down, n * width + across
            inside = (queries < layout.query_length) & (keys < layout.key_length)
            pairs = predicate(b, h, queries.clamp(max=layout.query_length - 1), keys.clamp(max=layout.key_length - 1))
            pairs_UP = (pairs & inside).flatten(1)
            at = some_U4.unbind(-1)
            self.visible[at], self.full[at] = pairs_UP.any(-1), pairs_UP.all(-1)


@dataclass(frozen=True, eq=False)
class _Truth:
    """One choice along each block of keys, bool [B, H, Q, N]: does it hold for all keys, for none?"""

    all_BHQN: Tensor
    none_BHQN: Tensor


def _truths(selection: Selection, layout: TokenLayout, width: int) -> list[_Truth]:
    """What each choice says of each query and block of keys.

    Where the keys of a block are scattered over blocks of the choice, as in a cache whose slots are in no order, it
    goes by the whole range of these: it then says neither 'all' nor 'none', and the pairs are looked at.
    """
    truths = []
    for chosen in selection.chosen:
        table_BHQJ, key_RK = padded_to(chosen, layout.query_length, layout.key_length)
        key_RNs = F.pad(key_RK, (0, -key_RK.shape[-1] % width), value=NO_BLOCK).unflatten(-1, (-1, width))
        last_RN = key_RNs.amax(-1)
        first_RN = torch.where(key_RNs < 0, chosen.numbers.count, key_RNs).amin(-1).clamp(max=last_RN.clamp(min=0))
        real_RN = last_RN >= 0
        if bool((first_RN == last_RN).all()):
            picked_BHQN = at_keys(table_BHQJ, first_RN)
            truths.append(_Truth(picked_BHQN, ~picked_BHQN))
            continue
        counts_BHQJ = F.pad(table_BHQJ.cumsum(-1, dtype=torch.int32), (1, 0))
        number_BHQN = at_keys(counts_BHQJ, last_RN + 1) - at_keys(counts_BHQJ, first_RN)
        size_R11N = (last_RN + 1 - first_RN)[:, None, None]
        truths.append(_Truth((number_BHQN == size_R11N) & real_RN[:, None, None], number_BHQN == 0))
    return truths


def _some_query(truths: Sequence[_Truth], outcome: Sequence[bool], height: int, *, sure: bool) -> Tensor:
    """Is there, in each block of queries, one for which the choices come out so? Bool [B, H, M, N]."""
    if sure:
        parts = [truth.all_BHQN if value else truth.none_BHQN for truth, value in zip(truths, outcome, strict=True)]
    else:
        parts = [~(truth.none_BHQN if value else truth.all_BHQN) for truth, value in zip(truths, outcome, strict=True)]
    agree_BHQN = functools.reduce(operator.and_, parts)
    padded: Tensor = F.pad(agree_BHQN, (0, 0, 0, -agree_BHQN.shape[2] % height), value=False)
    found: Tensor = padded.unflatten(2, (-1, height)).any(3)
    return found

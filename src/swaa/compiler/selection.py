"""What a layer's choices by content say in one forward pass: tables of chosen blocks, made from queries and keys.

The mean key of every block is taken anew in each pass, each policy is asked, and its answer becomes a table that every
reading looks up. The selection is a constant to gradients. A choice holds for logical positions, so padding, packing
and the order of a cache's slots change nothing; the keys must all be there.

Shape suffixes: B samples, H query heads, G key-value heads, Q query slots, K key slots, D head size, N blocks, T slots,
R rows (1 where all samples are laid out alike, else B), C documents of a row.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from swaa.compiler.cofactors import choices, cofactors, phases_of, shows_nothing
from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import TokenLayout
from swaa.errors import UserError
from swaa.policies.bound import LayerPolicy
from swaa.policies.content import ContentPolicy
from swaa.policies.piecewise import Phase

NO_BLOCK = -1
"""The block number of a slot that holds no token."""

_SCORES = 1 << 23
"""Products of queries and block means at a time: bounds the memory of a long prompt's selection."""


@dataclass(frozen=True, eq=False)
class BlockNumbers:
    """The blocks of a layout, numbered document by document, and who stands where.

    Attributes:
        query_RQ: the block in which each query stands; ``NO_BLOCK`` for padding and for queries that choose nothing.
        first_RQ: the first block of the query's document.
        key_RK: the block in which each key stands.
        count: N, blocks of the row that has most.
        size: tokens of a block.
    """

    query_RQ: Tensor
    first_RQ: Tensor
    key_RK: Tensor
    count: int
    size: int

    @classmethod
    def of(cls, layout: TokenLayout, size: int) -> BlockNumbers:
        """The blocks of ``size`` tokens of a layout."""
        queries_RQ = _blocks_of(layout.query_positions_BQ, size)
        keys_RK = _blocks_of(layout.key_positions_BK, size)
        first_RQ = torch.zeros_like(queries_RQ)
        if layout.query_documents_BQ is not None and layout.key_documents_BK is not None:
            documents_RQ, documents_RK = (
                table.clamp(min=0) for table in (layout.query_documents_BQ, layout.key_documents_BK)
            )
            rows = max(len(queries_RQ), len(keys_RK), len(documents_RQ), len(documents_RK))
            queries_RQ, keys_RK, documents_RQ, documents_RK = (
                table.expand(rows, -1) for table in (queries_RQ, keys_RK, documents_RQ, documents_RK)
            )
            blocks_RC = torch.zeros(
                rows, 1 + int(torch.maximum(documents_RQ.max(), documents_RK.max())), dtype=torch.long
            ).to(layout.device)
            blocks_RC = blocks_RC.scatter_reduce(1, documents_RQ, queries_RQ + 1, "amax")
            blocks_RC = blocks_RC.scatter_reduce(1, documents_RK, keys_RK + 1, "amax")
            before_RC = blocks_RC.cumsum(-1) - blocks_RC
            first_RQ = before_RC.gather(-1, documents_RQ)
            queries_RQ = torch.where(queries_RQ < 0, NO_BLOCK, queries_RQ + first_RQ)
            keys_RK = torch.where(keys_RK < 0, NO_BLOCK, keys_RK + before_RC.gather(-1, documents_RK))
        count = 1 + int(torch.maximum(queries_RQ.max(), keys_RK.max()).clamp(min=0))
        return cls(queries_RQ, first_RQ, keys_RK, count, size)

    def in_phases(self, phases: tuple[Phase, ...], layout: TokenLayout) -> BlockNumbers:
        """The same for queries of these phases; the others choose nothing, and lack nothing where keys have gone."""
        if len(phases) > 1:
            return self
        decodes_BQ = layout.query_decodes_BQ
        asks_BQ = decodes_BQ if phases == ("decode",) else ~decodes_BQ
        return replace(self, query_RQ=torch.where(asks_BQ, self.query_RQ, NO_BLOCK))

    def candidates(self, start: int, stop: int) -> Tensor:
        """The blocks that some of the queries may choose beside their own, bool [R, 1, Q, N]."""
        blocks_N = torch.arange(self.count, device=self.query_RQ.device)
        own_RQ1, first_RQ1 = (table[:, start:stop].unsqueeze(-1) for table in (self.query_RQ, self.first_RQ))
        return ((blocks_N >= first_RQ1) & (blocks_N < own_RQ1)).unsqueeze(1)

    def own(self, start: int, stop: int) -> Tensor:
        """The block of each of some queries, bool [R, 1, Q, N]."""
        blocks_N = torch.arange(self.count, device=self.query_RQ.device)
        return (blocks_N == self.query_RQ[:, start:stop].unsqueeze(-1)).unsqueeze(1)

    def means(self, key_BGKD: Tensor) -> Tensor:
        """The mean key of each block over its tokens that are there, float32 [B, G, N, D]; 0 where there are none."""
        batch, kv_heads, length, size = key_BGKD.shape
        into_BK = torch.where(self.key_RK < 0, self.count, self.key_RK).expand(batch, -1)  # padding into one more block
        into_BK = into_BK + torch.arange(batch, device=into_BK.device).unsqueeze(-1) * (self.count + 1)
        rows = key_BGKD.float().transpose(1, 2).reshape(batch * length, kv_heads * size)
        sums = rows.new_zeros(batch * (self.count + 1), kv_heads * size).index_add_(0, into_BK.flatten(), rows)
        sums_BGND = sums.view(batch, self.count + 1, kv_heads, size).transpose(1, 2)[:, :, : self.count]
        return sums_BGND / self.tokens_RN.clamp(min=1)[:, None, :, None]

    @functools.cached_property
    def tokens_RN(self) -> Tensor:
        """How many keys of each block are there."""
        into_RK = torch.where(self.key_RK < 0, self.count, self.key_RK)
        ones = torch.ones_like(into_RK)
        return ones.new_zeros(len(into_RK), self.count + 1).scatter_add_(1, into_RK, ones)[:, : self.count]

    @functools.cached_property
    def in_order(self) -> bool:
        """Are the keys those of positions 0, 1, 2, … in every sample? Then a table need not be looked up key by key."""
        straight_K = torch.arange(self.key_RK.shape[-1], device=self.key_RK.device) // self.size
        return bool((self.key_RK == straight_K).all())

    @functools.cached_property
    def lacks_keys(self) -> bool:
        """Is there a block, complete for some query, of which a key is not there?"""
        incomplete_RN = self.tokens_RN != self.size
        if not bool(incomplete_RN.any()):
            return False
        step = max(1, _SCORES // (len(self.query_RQ) * self.count))
        starts = range(0, self.query_RQ.shape[-1], step)
        needed = (self.candidates(start, start + step).any(2).squeeze(1) for start in starts)
        return any(bool((needed_RN & incomplete_RN).any()) for needed_RN in needed)


def _blocks_of(positions_RT: Tensor, size: int) -> Tensor:
    return torch.where(positions_RT < 0, NO_BLOCK, positions_RT // size)


@dataclass(frozen=True, eq=False)
class Chosen:
    """What one policy chose.

    Attributes:
        table_BHQN: bool, the blocks that each query sees, its own among them; none for padding, and for queries of a
            phase that does not choose.
        numbers: the blocks.
    """

    table_BHQN: Tensor
    numbers: BlockNumbers

    def dense(self) -> Tensor:
        """Whether the key of each slot stands in a chosen block, bool [B, H, Q, K]."""
        numbers = self.numbers
        if numbers.in_order:
            return self.table_BHQN.repeat_interleave(numbers.size, -1)[..., : numbers.key_RK.shape[-1]]
        return at_keys(self.table_BHQN, numbers.key_RK.clamp(min=0))


@dataclass(frozen=True, eq=False)
class Selection:
    """A layer's choices in one forward pass.

    Attributes:
        layer: the policy; its choices are those of :func:`swaa.compiler.cofactors.choices`, in their order.
        layout: of the forward pass.
        chosen: what each of them chose.
    """

    layer: LayerPolicy
    layout: TokenLayout
    chosen: tuple[Chosen, ...]

    @classmethod
    def of(cls, layer: LayerPolicy, layout: TokenLayout, query_BHQD: Tensor, key_BGKD: Tensor) -> Selection:
        """Ask the policies of a layer.

        Raises:
            UserError: a policy fails, or keys are missing of which it would need the mean.
        """
        # without autocast, whose products in 16 bits would choose other blocks than the same model does without it
        with torch.no_grad(), torch.autocast(query_BHQD.device.type, enabled=False):
            numbers: dict[tuple[int, tuple[Phase, ...]], BlockNumbers] = {}
            chosen = []
            for policy in choices(layer):
                kind = (policy.block_size, phases_of(layer, policy))
                if kind not in numbers:
                    numbers[kind] = BlockNumbers.of(layout, policy.block_size).in_phases(kind[1], layout)
                chosen.append(_choose(policy, numbers[kind], query_BHQD, key_BGKD))
            return cls(layer, layout, tuple(chosen))

    def queries(self, start: int, stop: int) -> Selection:
        """The choices of some of the queries."""
        if start == 0 and stop >= self.layout.query_length:
            return self
        chosen = tuple(replace(one, table_BHQN=one.table_BHQN[:, :, start:stop]) for one in self.chosen)
        return Selection(self.layer, self.layout.queries(start, stop), chosen)

    def dense_mask(self) -> Tensor:
        """Which query sees which key, bool [B, H, Q, K]."""
        choice_masks = [chosen.dense() for chosen in self.chosen]
        parts = (
            dense_mask(rest, self.layout) & matching(choice_masks, outcome)
            for outcome, rest in cofactors(self.layer)
            if not shows_nothing(rest)
        )
        return functools.reduce(operator.or_, parts)


def matching(truths: Iterable[Tensor], outcome: Iterable[bool]) -> Tensor:
    """Where every choice says what ``outcome`` says."""
    agree = (truth if value else ~truth for truth, value in zip(truths, outcome, strict=True))
    return functools.reduce(operator.and_, agree)


def _choose(policy: ContentPolicy, numbers: BlockNumbers, query_BHQD: Tensor, key_BGKD: Tensor) -> Chosen:
    if numbers.lacks_keys:
        raise UserError(
            f"{policy!r}: chooses blocks by the mean of their keys, and keys that came before are not there (a cache "
            f"with a window of its own?). Use swaa.PolicyCache(model), or no cache at all."
        )
    batch, heads, queries, _ = query_BHQD.shape
    means_BHND = numbers.means(key_BGKD).repeat_interleave(heads // key_BGKD.shape[1], dim=1)
    table_BHQN = torch.empty(batch, heads, queries, numbers.count, dtype=torch.bool, device=query_BHQD.device)
    step = max(1, _SCORES // (batch * heads * numbers.count))
    for start in range(0, queries, step):
        some_BHQD = query_BHQD[:, :, start : start + step].float()
        shape = (batch, heads, some_BHQD.shape[2], numbers.count)
        candidates_BHQN = numbers.candidates(start, start + step).expand(shape)
        picked_BHQN = _asked(policy, some_BHQD, means_BHND, candidates_BHQN)
        table_BHQN[:, :, start : start + step] = picked_BHQN & candidates_BHQN | numbers.own(start, start + step)
    return Chosen(table_BHQN, numbers)


def _asked(policy: ContentPolicy, query_BHQD: Tensor, means_BHND: Tensor, candidates_BHQN: Tensor) -> Tensor:
    """What the policy answers, checked."""
    owner, shape = type(policy).__name__, tuple(candidates_BHQN.shape)
    try:
        answer = policy.select(query_BHQD, means_BHND, candidates_BHQN)
    except UserError:
        raise
    except Exception as error:  # whatever the author's code raises is the author's to mend
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise UserError(f"{owner}.select: fails ({reason}). It gets [B, H, Q, D], [B, H, N, D] and {shape}.") from error
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool or tuple(answer.shape) != shape:
        got = f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(
            f"{owner}.select: expected a bool tensor of shape {shape}, as the candidates are, got {got}. "
            f"Return one truth value for each query and block."
        )
    return answer


def at_keys(table_BHQN: Tensor, places_RK: Tensor) -> Tensor:
    """The columns of a table that the keys of each sample ask for, [B, H, Q, K]."""
    if len(places_RK) == 1:
        return table_BHQN[..., places_RK[0]]
    return torch.stack([table_HQN[..., places_K] for table_HQN, places_K in zip(table_BHQN, places_RK, strict=True)])


def padded_to(chosen: Chosen, queries: int, keys: int) -> tuple[Tensor, Tensor]:
    """The table, and the block of each key, for slots that hold no token added behind."""
    table_BHQN, key_RK = chosen.table_BHQN, chosen.numbers.key_RK
    return (
        F.pad(table_BHQN, (0, 0, 0, queries - table_BHQN.shape[2]), value=False),
        F.pad(key_RK, (0, keys - key_RK.shape[-1]), value=NO_BLOCK),
    )

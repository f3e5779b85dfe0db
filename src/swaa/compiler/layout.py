"""Where the tokens of a forward pass stand: the one place that binds padding, packing, phase and cache offset.

A policy sees logical positions only. A :class:`TokenLayout` gives, for every query and key slot of the tensors that
attention works on, its logical position, its document and (for queries) its phase. Nothing else in swaa knows how
padding, packed documents or a cache shift tokens about.

Shape suffixes: B samples (1 where all are laid out alike), Q query slots, K key slots, S all slots, D documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from swaa.errors import invalid

PADDING = -1
"""The logical position of a slot that holds no token."""

_FAR = 1 << 40
"""A position beyond every context."""


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """The logical position, document and phase of every slot.

    Attributes:
        query_positions_BQ: int64 logical positions from 0; ``PADDING`` where the slot holds no token.
        key_positions_BK: the same for keys.
        query_decodes_BQ: bool, True for queries of the decode phase. Prompt lengths make it monotone in the position;
            :meth:`with_decodes` need not.
        prompt_ends: the logical position at which a query's prompt ends, one int or a tensor that broadcasts to [B, Q];
            None where all is prefill. Only queries that look ahead need it, and phases cannot replace it: an answer's
            last token is never fed back, so an answer of one token has none that decodes.
        token_end: the position behind the last query, where that is known: slots of keys from there on are not filled.
        query_documents_BQ: int64 number of the packed document, or None where a sample is one document.
        key_documents_BK: the same for keys.
        is_square: queries and keys are the same tokens, without padding or documents: plain causal kernels fit.
        first_key: the position in the first slot of keys, where those behind it follow on without a gap, in every
            sample and up to the last query at least: then a kernel can count, and need not look positions up. Slots
            behind may hold nothing; causality hides them, as they come after every query. None where that is not known.
    """

    query_positions_BQ: Tensor
    key_positions_BK: Tensor
    query_decodes_BQ: Tensor
    query_documents_BQ: Tensor | None = None
    key_documents_BK: Tensor | None = None
    is_square: bool = False
    prompt_ends: Tensor | int | None = None
    token_end: int | None = None
    first_key: int | None = None

    @classmethod
    def contiguous(
        cls,
        query_length: int,
        key_length: int | None = None,
        *,
        offset: int = 0,
        key_offset: int = 0,
        prompt_lengths: Tensor | int | None = None,
        device: torch.device | str | None = None,
    ) -> TokenLayout:
        """Samples without padding: queries from position ``offset`` on, keys from ``key_offset`` on.

        Args:
            key_length: by default up to the last query.
            prompt_lengths: tokens before the decode phase begins, one int or int [B]; None where all is prefill.
        """
        keys = offset + query_length - key_offset if key_length is None else key_length
        queries_1Q = offset + torch.arange(query_length, device=device).unsqueeze(0)
        keys_1K = key_offset + torch.arange(keys, device=device).unsqueeze(0)
        layout = cls._with_phase(queries_1Q, keys_1K, prompt_lengths)
        is_square = offset == key_offset and query_length == keys
        end = offset + query_length
        first_key = key_offset if key_offset + keys >= end else None
        return replace(layout, is_square=is_square, token_end=end, first_key=first_key)

    @classmethod
    def padded(
        cls,
        real_BS: Tensor,
        query_length: int | None = None,
        key_length: int | None = None,
        *,
        offset: int | None = None,
        key_offset: int = 0,
        prompt_lengths: Tensor | int | None = None,
    ) -> TokenLayout:
        """Samples with padding anywhere: position = how many real tokens of the sample come before.

        Args:
            real_BS: bool over all slots of the sample so far, True where one holds a token: the 2-d attention mask.
            query_length: the number of query slots; by default all.
            key_length: the number of key slots; by default all from ``key_offset`` on.
            offset: the slot of the first query; by default the queries are the last slots.
            key_offset: the slot of the first key.
            prompt_lengths: real tokens of the prompt, one int or int [B]; None where all is prefill.
        """
        real_BS = real_BS.bool()
        slots_BS = torch.where(real_BS, real_BS.long().cumsum(-1) - 1, PADDING)
        length = slots_BS.shape[-1]
        queries = length if query_length is None else query_length
        keys = length - key_offset if key_length is None else key_length
        start = length - queries if offset is None else offset
        missing = max(start + queries, key_offset + keys) - length
        slots_BS = F.pad(slots_BS, (0, max(missing, 0)), value=PADDING)
        return cls._with_phase(
            slots_BS[:, start : start + queries], slots_BS[:, key_offset : key_offset + keys], prompt_lengths
        )

    @classmethod
    def packed(cls, positions_BQ: Tensor, *, prompt_lengths: Tensor | int | None = None) -> TokenLayout:
        """Several documents in one row; a new one begins wherever ``positions_BQ`` does not go on counting.

        Args:
            positions_BQ: int positions inside each document, restarting at 0.
            prompt_lengths: prompt tokens: one int, int [B], or int [B, D] with one for each document of the row.
        """
        begins_BQ = torch.ones_like(positions_BQ, dtype=torch.bool)
        begins_BQ[:, 1:] = positions_BQ[:, 1:] != positions_BQ[:, :-1] + 1
        documents_BQ = begins_BQ.long().cumsum(-1) - 1
        starts_BQ = torch.where(begins_BQ, torch.arange(positions_BQ.shape[-1], device=positions_BQ.device), 0)
        logical_BQ = torch.arange(positions_BQ.shape[-1], device=positions_BQ.device) - starts_BQ.cummax(-1).values
        ends: Tensor | int | None
        if isinstance(prompt_lengths, Tensor) and prompt_lengths.dim() == 2:
            if prompt_lengths.shape[-1] <= int(documents_BQ.max()):
                raise invalid(
                    "prompt_lengths",
                    accepted=f"a column for each of the {int(documents_BQ.max()) + 1} documents of a row",
                    got=tuple(prompt_lengths.shape),
                    mend="Pad short rows with 0.",
                )
            lengths_BD = prompt_lengths.to(documents_BQ.device)
            ends = lengths_BD.gather(-1, documents_BQ.expand(len(lengths_BD), -1))
        else:
            ends = _ends(prompt_lengths, positions_BQ.device)
        decodes_BQ = _decodes(logical_BQ, ends)
        return cls(logical_BQ, logical_BQ, decodes_BQ, documents_BQ, documents_BQ, prompt_ends=ends)

    @classmethod
    def _with_phase(cls, queries_BQ: Tensor, keys_BK: Tensor, prompt_lengths: Tensor | int | None) -> TokenLayout:
        ends = _ends(prompt_lengths, queries_BQ.device)
        return cls(queries_BQ, keys_BK, _decodes(queries_BQ, ends), prompt_ends=ends)

    def with_decodes(self, decodes_BQ: Tensor) -> TokenLayout:
        """The same layout with the phase said query by query, as samples of several turns need it.

        Nothing looks ahead in it: phases do not tell where a prompt ends.

        Args:
            decodes_BQ: bool, one row for all samples or [B, Q]; slots that hold no token count as prefill.
        """
        decodes_BQ = decodes_BQ.to(self.device) & (self.query_positions_BQ >= 0)
        return replace(self, query_decodes_BQ=decodes_BQ, prompt_ends=0)

    @property
    def query_limits_BQ(self) -> Tensor:
        """int64: each query may look ahead to keys before this position; 0 where it may not. Worked out when asked.

        A prompt's queries may look as far as their own prompt goes, those that decode nowhere.
        """
        positions_BQ = self.query_positions_BQ
        limits = torch.where((positions_BQ >= 0) & ~self.query_decodes_BQ, _FAR, 0)
        for end in (self.prompt_ends, self.token_end):
            if end is not None:
                limits = limits.minimum(torch.as_tensor(end, device=self.device))
        return limits

    @property
    def batch_size(self) -> int:
        """B: 1 where all samples are laid out alike, whatever the batch."""
        return max(len(self.query_positions_BQ), len(self.key_positions_BK), len(self.query_decodes_BQ))

    @property
    def query_length(self) -> int:
        """Q, padding included."""
        return self.query_positions_BQ.shape[-1]

    @property
    def key_length(self) -> int:
        """K, padding included."""
        return self.key_positions_BK.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the tables live."""
        return self.key_positions_BK.device

    def to(self, device: torch.device | str) -> TokenLayout:
        """The same layout with its tables on another device."""
        return replace(
            self,
            query_positions_BQ=self.query_positions_BQ.to(device),
            key_positions_BK=self.key_positions_BK.to(device),
            query_decodes_BQ=self.query_decodes_BQ.to(device),
            query_documents_BQ=_changed(self.query_documents_BQ, lambda table: table.to(device)),
            key_documents_BK=_changed(self.key_documents_BK, lambda table: table.to(device)),
            prompt_ends=self.prompt_ends.to(device) if isinstance(self.prompt_ends, Tensor) else self.prompt_ends,
        )

    def queries(self, start: int, stop: int) -> TokenLayout:
        """The layout of some of the queries, with all keys."""
        return TokenLayout(
            self.query_positions_BQ[:, start:stop],
            self.key_positions_BK,
            self.query_decodes_BQ[:, start:stop],
            _changed(self.query_documents_BQ, lambda table: table[:, start:stop]),
            self.key_documents_BK,
            prompt_ends=self._ends_of(lambda table: table[:, start:stop]),
            token_end=self.token_end,
            first_key=self.first_key,
        )

    def pad_to(self, query_length: int, key_length: int) -> TokenLayout:
        """The layout with slots that hold no token added behind, so that many lengths share one compiled kernel."""
        extra_q, extra_k = query_length - self.query_length, key_length - self.key_length
        if extra_q == 0 and extra_k == 0:
            return self
        return TokenLayout(
            F.pad(self.query_positions_BQ, (0, extra_q), value=PADDING),
            F.pad(self.key_positions_BK, (0, extra_k), value=PADDING),
            F.pad(self.query_decodes_BQ, (0, extra_q), value=False),
            _changed(self.query_documents_BQ, lambda table: F.pad(table, (0, extra_q), value=PADDING)),
            _changed(self.key_documents_BK, lambda table: F.pad(table, (0, extra_k), value=PADDING)),
            prompt_ends=self._ends_of(lambda table: F.pad(table, (0, extra_q))),
            token_end=self.token_end,
            first_key=self.first_key,
        )

    def _ends_of(self, change: Callable[[Tensor], Tensor]) -> Tensor | int | None:
        """The prompts' ends after a change of the queries, which matters where each has an end of its own."""
        ends = self.prompt_ends
        return change(ends) if isinstance(ends, Tensor) and ends.shape[-1] == self.query_length > 1 else ends


def _changed(table: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if table is None else change(table)


def _ends(prompt_lengths: Tensor | int | None, device: torch.device) -> Tensor | int | None:
    """Lengths as what broadcasts to [B, Q]."""
    return prompt_lengths.to(device).reshape(-1, 1) if isinstance(prompt_lengths, Tensor) else prompt_lengths


def _decodes(positions_BQ: Tensor, ends: Tensor | int | None) -> Tensor:
    return torch.zeros_like(positions_BQ, dtype=torch.bool) if ends is None else positions_BQ >= ends

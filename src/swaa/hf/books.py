"""What an evicting cache holds: the keys themselves, and the books that its layers share.

Which keys are kept, and in which slot, is decided by a :class:`~swaa.compiler.eviction.KeyTable` for each distinct
policy; all layers that have it share the table, and carry out what it says on their own tensors.

Shape suffixes: B samples, G KV heads, Q new tokens, C slots, D head size, R rows (1 or B).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swaa.compiler.eviction import KeyTable, Step, Write
from swaa.compiler.heads import HeadSlice
from swaa.compiler.program import AttentionProgram
from swaa.errors import UserError
from swaa.hf.prompt import Prompt
from swaa.policies import AttentionPolicy
from swaa.policies.bound import LayerPolicy


class CacheBooks:
    """What the layers of one cache share: how many tokens have come in, and the tables of what is held."""

    def __init__(self, prompt: Prompt | None) -> None:
        self.prompt = prompt
        self.presumed = False
        """Is ``recording`` only presumed, and so refuted by a step that no crop has come before?"""
        self.clear()

    def clear(self) -> None:
        """Forget everything, save what is known of the prompt to come."""
        self.recording = False
        self.step: Step | None = None
        self._taken: Step | None = None
        self._policy: AttentionPolicy | None = None
        self.tables: dict[LayerPolicy, KeyTable] = {}
        self._came: list[int | Tensor] = []
        """What has come in: so many tokens in every row, or which slots held one, [R, Q]."""
        self._tokens_R = torch.zeros(1, dtype=torch.long)
        self._prompt_R: Tensor | None = None
        self.cropped: dict[LayerPolicy, Tensor | None] = {}
        """What each table kept of its slots in the last crop."""
        self._programs: dict[tuple[KeyTable, torch.device], AttentionProgram] = {}
        self._masks: dict[tuple[KeyTable, torch.device], Tensor | None] = {}

    def begin(
        self,
        policy: AttentionPolicy,
        length: int,
        mask_BS: Tensor | None,
        seen: int,
        prompt: Prompt | None,
    ) -> None:
        """A forward pass of ``length`` new slots begins, after ``seen`` others. It counts once a layer takes it in.

        Args:
            mask_BS: the 2-d attention mask, or None where there is no padding.
            prompt: where the decode phase begins; None where phases do not matter.

        Raises:
            UserError: what has been dropped fits another policy, or another end of the prompt.
        """
        if self.tables and policy != self._policy:
            raise UserError(
                f"past_key_values: the cache was filled under another policy ({self._policy}). Begin with a new cache, "
                f"or go on with the policy that filled it."
            )
        real_RQ = torch.ones(1, length, dtype=torch.bool)
        if mask_BS is not None:
            real_BQ = mask_BS[:, seen : seen + length].bool().cpu()
            if len(self._tokens_R) > 1 or not bool(real_BQ.all()):
                real_RQ = real_BQ
        first_R = self._tokens_R
        next_R = first_R + real_RQ.sum(-1)
        positions_RQ = torch.where(real_RQ, first_R.unsqueeze(-1) + real_RQ.long().cumsum(-1) - 1, -1)
        prompt_R = self._prompt_lengths(prompt, mask_BS)
        if prompt_R is not None and self._prompt_R is not None:
            grows, shrinks = bool((prompt_R > self._prompt_R).any()), bool((prompt_R < self._prompt_R).any())
            for table in self.tables.values():
                table.check_new_prompt(grows, shrinks)
        recording = self.recording and not (self.presumed and self._taken is not None)
        self._policy = policy
        self.step = Step(positions_RQ, first_R.expand(len(next_R)), next_R, prompt_R, recording)

    def take(self, step: Step) -> None:
        """The first layer takes a forward pass in: from here on it counts."""
        if self._taken is step:
            return
        self._taken = step
        if self.presumed and not step.recording:
            self.recording = self.presumed = False
        self._note(step.positions_RQ >= 0)
        self._tokens_R, self._prompt_R = step.next_R, step.prompt_R
        self.release()  # a pass that failed half-way has not

    def _prompt_lengths(self, prompt: Prompt | None, mask_BS: Tensor | None) -> Tensor | None:
        if prompt is None:
            return None
        if prompt.lengths is not None:
            lengths = prompt.lengths.cpu()
            return lengths[:1] if bool((lengths == lengths[0]).all()) else lengths
        if mask_BS is None or prompt.width is None:
            return torch.tensor([prompt.width])
        return mask_BS[:, : prompt.width].sum(-1).cpu()

    def table(self, policy: LayerPolicy) -> KeyTable:
        """The table of the layers with this policy."""
        if policy not in self.tables:
            self.tables[policy] = KeyTable(policy)
        return self.tables[policy]

    def program(self, table: KeyTable, device: torch.device, kernel: str) -> AttentionProgram:
        """The attention of this forward pass against the keys of a table."""
        if (table, device) not in self._programs:
            assert self.step is not None
            self._programs[table, device] = AttentionProgram(table.layout(self.step).to(device), kernel)
        return self._programs[table, device]

    def mask(self, table: KeyTable, device: torch.device) -> Tensor | None:
        """The dense mask of a single new token, or None where it sees all keys of the table."""
        if (table, device) not in self._masks:
            assert self.step is not None
            mask = table.mask(self.step)
            self._masks[table, device] = None if mask is None else mask.to(device)
        return self._masks[table, device]

    def release(self) -> None:
        """A forward pass has ended: free its masks."""
        self._programs.clear()
        self._masks.clear()
        for table in self.tables.values():
            table.release()

    def _note(self, real_RQ: Tensor) -> None:
        if not bool(real_RQ.all()):
            self._came.append(real_RQ)
            return
        before = self._came.pop() if self._came and isinstance(self._came[-1], int) else 0
        self._came.append(before + real_RQ.shape[-1])

    def crop(self, slots: int) -> None:
        """Take back the newest slots, and let every table say what it keeps."""
        tokens_R, came = self._tokens_R, list(self._came)
        while slots and came:
            newest = came.pop()
            size = newest if isinstance(newest, int) else newest.shape[-1]
            gone = min(slots, size)
            slots -= gone
            tokens_R = tokens_R - (gone if isinstance(newest, int) else newest[:, size - gone :].sum(-1))
            if gone < size:
                came.append(size - gone if isinstance(newest, int) else newest[:, : size - gone])
        for table in self.tables.values():
            table.check_rollback(tokens_R)
        self._tokens_R, self._came, self.presumed = tokens_R, came, False
        self.step = self._taken = None
        self.cropped = {policy: table.crop(tokens_R, self._prompt_R) for policy, table in self.tables.items()}

    def select_rows(self, index: Tensor) -> None:
        """Reorder, repeat or choose samples."""
        index = index.cpu()
        self._came = [real if isinstance(real, int) or len(real) == 1 else real[index] for real in self._came]
        if len(self._tokens_R) > 1:
            self._tokens_R = self._tokens_R[index]
        if self._prompt_R is not None and len(self._prompt_R) > 1:
            self._prompt_R = self._prompt_R[index]
        lengths = None if self.prompt is None else self.prompt.lengths
        if self.prompt is not None and lengths is not None and len(lengths) > 1:
            self.prompt = replace(self.prompt, lengths=lengths[index.to(lengths.device)])
        for table in self.tables.values():
            table.select_rows(index)


@dataclass(eq=False)
class KeyPart:
    """KV heads of a layer that hold the same keys.

    Attributes:
        heads: which, and the policy of the query heads that read them.
        keys: [B, heads, C, D]
        values: [B, heads, C, D]
        table: what the slots hold.
    """

    heads: HeadSlice
    keys: Tensor
    values: Tensor
    table: KeyTable

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """Indices of the KV heads."""
        return self.heads.kv_heads

    @property
    def positions(self) -> Tensor:
        """int64 [R, C] on the CPU: the logical position of the key in each slot, -1 where there is none."""
        return self.table.positions_RC

    def write(self, keys_BGQD: Tensor, values_BGQD: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Put the keys of a step in; the keys and values to attend to."""
        write = self.table.write(step)
        self.keys = _written(self.keys, keys_BGQD, write)
        self.values = _written(self.values, values_BGQD, write)
        return self.keys[:, :, : write.used], self.values[:, :, : write.used]

    def keep(self, kept_RC: Tensor | None) -> None:
        """Hold only these slots."""
        if kept_RC is not None:
            self.keys, self.values = _gathered(self.keys, kept_RC), _gathered(self.values, kept_RC)

    def select_rows(self, index: Tensor) -> None:
        """Reorder, repeat or choose samples."""
        self.keys = self.keys.index_select(0, index.to(self.keys.device))
        self.values = self.values.index_select(0, index.to(self.values.device))


def _written(buffer_BGCD: Tensor, new_BGQD: Tensor, write: Write) -> Tensor:
    if buffer_BGCD.dtype != new_BGQD.dtype:  # autocast was on for one of them
        dtype = torch.promote_types(buffer_BGCD.dtype, new_BGQD.dtype)
        buffer_BGCD, new_BGQD = buffer_BGCD.to(dtype), new_BGQD.to(dtype)
    if write.slots_RQ is None:
        return torch.cat([buffer_BGCD[:, :, : write.capacity - new_BGQD.shape[2]], new_BGQD], 2)
    missing = write.capacity - buffer_BGCD.shape[2]
    if missing:
        spare = new_BGQD.new_zeros(*buffer_BGCD.shape[:2], missing, buffer_BGCD.shape[3])
        buffer_BGCD = torch.cat([buffer_BGCD, spare], 2)
    slots_RQ = write.slots_on(buffer_BGCD.device)
    assert slots_RQ is not None
    writable = torch.is_inference_mode_enabled() or not buffer_BGCD.is_inference()
    in_place = writable and not (torch.is_grad_enabled() and (buffer_BGCD.requires_grad or new_BGQD.requires_grad))
    if len(slots_RQ) == 1:
        put = buffer_BGCD.index_copy_ if in_place else buffer_BGCD.index_copy
        return put(2, slots_RQ[0], new_BGQD)
    index_BGQD = slots_RQ[:, None, :, None].expand_as(new_BGQD)
    return buffer_BGCD.scatter_(2, index_BGQD, new_BGQD) if in_place else buffer_BGCD.scatter(2, index_BGQD, new_BGQD)


def _gathered(buffer_BGCD: Tensor, kept_RC: Tensor) -> Tensor:
    kept_RC = kept_RC.to(buffer_BGCD.device)
    if len(kept_RC) == 1:
        return buffer_BGCD.index_select(2, kept_RC[0])
    index_BGCD = kept_RC[:, None, :, None].expand(-1, buffer_BGCD.shape[1], -1, buffer_BGCD.shape[3])
    return buffer_BGCD.gather(2, index_BGCD)

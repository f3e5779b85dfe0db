"""Which keys a cache holds, and in which slots: the bookkeeping of KV eviction, without the keys.

A :class:`KeyTable` knows the logical position of the key in every slot of a layer's buffers. Layers that keep the same
keys share one table, so a decode step asks the retention analysis once for each distinct policy and not once a layer.
Positions stay on the CPU: they follow from what the host knows, and the device is never waited for.

Shape suffixes: R rows (1 while all samples are laid out alike, else the batch), Q new tokens, C slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from swaa.compiler.dense import dense_mask
from swaa.compiler.layout import PADDING, TokenLayout
from swaa.compiler.retention import keeps_every_key, live_keys
from swaa.errors import UserError
from swaa.policies.boolean import EVERYWHERE
from swaa.policies.bound import LayerPolicy

FEW_TOKENS = 32
"""Up to so many new tokens go into free slots, in place; more are a prompt, after which the buffers are cut to size."""


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass: which tokens come in.

    Attributes:
        positions_RQ: logical positions of the new tokens, -1 where a slot holds none.
        first_R: tokens before this pass.
        next_R: tokens after it.
        prompt_R: where the decode phase begins; None where phases do not matter.
        recording: may the newest tokens be taken back, so that nothing may be dropped yet?
    """

    positions_RQ: Tensor
    first_R: Tensor
    next_R: Tensor
    prompt_R: Tensor | None
    recording: bool = False

    @property
    def has_padding(self) -> bool:
        """Is there a slot that holds no token?"""
        return bool((self.positions_RQ < 0).any())

    @property
    def decodes_RQ(self) -> Tensor:
        """Which of the tokens are in the decode phase."""
        if self.prompt_R is None:
            return torch.zeros_like(self.positions_RQ, dtype=torch.bool)
        return self.positions_RQ >= self.prompt_R.unsqueeze(-1)


@dataclass(eq=False)
class Write:
    """What a layer does with the keys of a step: put them into slots, or, without any, behind the others.

    Attributes:
        slots_RQ: where each new key goes, in place; None to append them all to the first of the old ones.
        capacity: slots of the buffers afterwards.
        used: slots to attend to; those behind are spare.
    """

    slots_RQ: Tensor | None
    capacity: int
    used: int
    _moved: dict[torch.device, Tensor] = field(default_factory=dict)

    def slots_on(self, device: torch.device) -> Tensor | None:
        """The slots on a device, moved there once for all layers."""
        if self.slots_RQ is not None and device not in self._moved:
            self._moved[device] = self.slots_RQ.to(device)
        return self._moved.get(device)


class KeyTable:
    """The positions of the keys that some layers hold under one policy.

    While nothing is padded, dropped or reordered, the keys are those of positions 0, 1, 2, …: then only their number is
    kept, and a step costs the same whatever the context length.

    Args:
        policy: what their query heads see. A key is dropped once no query still to come may see it.
    """

    def __init__(self, policy: LayerPolicy) -> None:
        self.policy = policy
        self.capacity = 0
        """C: slots of the buffers."""
        self._count: int | None = 0
        """Keys held, where they are those of the first positions in order; else None, and then positions are kept."""
        self._positions_RC = torch.empty(1, 0, dtype=torch.long)
        self._may_drop = all(
            head.decode != EVERYWHERE and not keeps_every_key(head.decode) for _, head in policy.groups
        )
        self._complete_from_R: Tensor | None = None
        """Queries from here on find all that they may see; None while nothing has been dropped."""
        self._step: Step | None = None
        self._write = Write(None, 0, 0)
        self._layout: TokenLayout | None = None
        self._mask: Tensor | None = None
        self._has_mask = False
        self._settled: Step | None = None
        self._kept_RC: Tensor | None = None

    @property
    def positions_RC(self) -> Tensor:
        """int64 on the CPU: the logical position of the key in each slot, -1 where there is none."""
        if self._count is None:
            return self._positions_RC
        return F.pad(torch.arange(self._count), (0, self.capacity - self._count), value=PADDING).unsqueeze(0)

    @positions_RC.setter
    def positions_RC(self, positions_RC: Tensor) -> None:
        self._count, self._positions_RC, self.capacity = None, positions_RC, positions_RC.shape[-1]

    @property
    def has_dropped(self) -> bool:
        """Has any key been dropped?"""
        return self._complete_from_R is not None

    def start(self, step: Step) -> None:
        """Take over the keys of a first forward pass, which the layers hold in the order in which they came."""
        if self._step is not step:
            self._step = step
            self.positions_RC = step.positions_RQ
            if len(step.positions_RQ) == 1 and not step.has_padding:
                self._count = self.capacity

    def write(self, step: Step) -> Write:
        """Where the keys of a step go. The first layer that asks decides for all."""
        if self._step is not step:
            self._step, self._layout, self._has_mask = step, None, False
            self._expand_to(len(step.positions_RQ))
            if self._count is not None and step.has_padding:
                self.positions_RC = self.positions_RC  # from here on kept, as they are no longer their number
            few = step.positions_RQ.shape[-1] <= FEW_TOKENS and self.capacity > 0
            self._write = self._place(step) if few else self._append(step)
        return self._write

    def layout(self, step: Step) -> TokenLayout:
        """The new tokens against the keys held after :meth:`write`, theirs included; on the CPU."""
        assert self._step is step
        if self._layout is None:
            if self._count is not None:
                self._layout = TokenLayout.contiguous(
                    step.positions_RQ.shape[-1], self._count, offset=int(step.first_R), prompt_lengths=step.prompt_R
                )
            else:
                keys_RK = self._positions_RC[:, : self._write.used]
                ends = None if step.prompt_R is None else step.prompt_R.unsqueeze(-1)
                self._layout = TokenLayout(step.positions_RQ, keys_RK, step.decodes_RQ, prompt_ends=ends)
        return self._layout

    def mask(self, step: Step) -> Tensor | None:
        """The dense mask of a step of one token [R, H, 1, K] (H is 1 where heads agree), or None: all is seen."""
        if not self._has_mask:
            self._has_mask, self._mask = True, None
            if self._count is None or not self._sees_everything(step):
                mask = dense_mask(self.policy, self.layout(step))
                self._mask = None if bool(mask.all()) else mask
        return self._mask

    def release(self) -> None:
        """Forget what only the forward pass that has ended needs."""
        self._layout, self._mask, self._has_mask = None, None, False

    def settle(self, step: Step) -> Tensor | None:
        """Drop what nobody will see after a step: the slots to keep [R, C], or None to leave the buffers as they are.

        After a step in place that is seldom needed: the next one takes the slots of dead keys.
        """
        if self._settled is not step:
            self._settled, self._kept_RC = step, None
            if not step.recording and (self._write.slots_RQ is None or self._is_mostly_empty()):
                self._kept_RC = self._drop(step.next_R, step.prompt_R)
        return self._kept_RC

    def crop(self, next_R: Tensor, prompt_R: Tensor | None) -> Tensor | None:
        """Forget the tokens from ``next_R`` on, then drop what is dead; the slots to keep, or None for all."""
        if self._count is not None and len(next_R) == 1:
            self._count = min(self._count, int(next_R))
        else:
            self._expand_to(len(next_R))
            held_RC = self.positions_RC
            self.positions_RC = held_RC.masked_fill(held_RC >= next_R.unsqueeze(-1), PADDING)
        return self._drop(next_R, prompt_R, slack=FEW_TOKENS)

    def check_rollback(self, next_R: Tensor) -> None:
        """Refuse to go back to where dropped keys would be visible again."""
        if self._complete_from_R is not None and bool((next_R < self._complete_from_R).any()):
            raise UserError(
                f"past_key_values: {self.policy.describe('decode')} has dropped keys that are needed {next_R.tolist()} "
                f"tokens into the sample; the cache can go back to {self._complete_from_R.tolist()} tokens. Call "
                f"cache.activate_past_recording() before tokens that may be taken back (generate() does so on a cache "
                f"that it is given: past_key_values=swaa.PolicyCache(model)), or, as on an assistant model, apply the "
                f"policy with evict=False."
            )

    def check_new_prompt(self, grows: bool, shrinks: bool) -> None:
        """Refuse another end of the prompt where tokens that change their phase may see what has been dropped."""
        for _, head in self.policy.groups:
            prefill = head.prefill.causal  # what has been dropped lies behind
            both = prefill & head.decode
            if self.has_dropped and ((grows and both != prefill) or (shrinks and both != head.decode)):
                raise UserError(
                    f"prompt_lengths: the prompt now ends elsewhere, and keys have been dropped that only "
                    f"{'prompt' if grows else 'answer'} tokens may see (prompt: {self.policy.describe('prefill')}; "
                    f"answer: {self.policy.describe('decode')}). Apply the policy with evict=False for this."
                )

    def select_rows(self, index: Tensor) -> None:
        """Reorder, repeat or choose the rows of the batch."""
        if self._count is None and len(self._positions_RC) > 1:
            self._positions_RC = self._positions_RC[index]
        if self._complete_from_R is not None and len(self._complete_from_R) > 1:
            self._complete_from_R = self._complete_from_R[index]

    def _expand_to(self, rows: int) -> None:
        if rows > 1 and (self._count is not None or len(self._positions_RC) == 1):
            self.positions_RC = self.positions_RC.expand(rows, -1)

    def _is_mostly_empty(self) -> bool:
        """Is it, because what had been recorded has been released?"""
        if self._count is not None:
            return False
        held = int((self._positions_RC >= 0).sum(-1).max())
        return self.capacity > 2 * held + FEW_TOKENS

    def _sees_everything(self, step: Step) -> bool:
        if bool(step.decodes_RQ.all()) or step.prompt_R is None:
            return all(head.decode == EVERYWHERE for _, head in self.policy.groups)
        return self.policy.is_full

    def _append(self, step: Step) -> Write:
        """Behind the others."""
        if self._count is not None:
            self._count = self.capacity = self._count + step.positions_RQ.shape[-1]
        else:
            new_RQ = step.positions_RQ.expand(len(self.positions_RC), -1)
            self.positions_RC = torch.cat([self.positions_RC, new_RQ], -1)
        return Write(None, self.capacity, self.capacity)

    def _place(self, step: Step) -> Write:
        """Into the slots of keys that no query from this step on may see, and into new ones if those are too few."""
        new = step.positions_RQ.shape[-1]
        if self._count is not None and not self._may_drop:
            slots_RQ = torch.arange(self._count, self._count + new).unsqueeze(0)
            self._grow(self._count + new - self.capacity)
            self._count += new
            return Write(slots_RQ, self.capacity, self._count)
        held_RC = self.positions_RC
        if self._may_drop and not step.recording:
            dead_RC = (held_RC >= 0) & ~self._live(held_RC, step.first_R, step.prompt_R)
            if bool(dead_RC.any()):
                self._complete_from_R = step.first_R
                held_RC = held_RC.masked_fill(dead_RC, PADDING)
        growth = self._grow(new - int((held_RC < 0).sum(-1).min()))
        held_RC = F.pad(held_RC, (0, growth), value=PADDING)
        slots_RQ = (held_RC < 0).to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :new]
        self.positions_RC = held_RC.scatter(-1, slots_RQ, step.positions_RQ.expand(len(slots_RQ), -1))
        last = int((self.positions_RC >= 0).any(0).nonzero().max()) if bool((self.positions_RC >= 0).any()) else 0
        return Write(slots_RQ, self.capacity, 1 + max(last, int(slots_RQ.max())))

    def _grow(self, missing: int) -> int:
        """Slots to add where so many are missing."""
        if missing <= 0:
            return 0
        # where nothing is ever dropped, every token needs a slot: spare ones make the copying rare
        growth = missing if self._may_drop else max(missing, 16 + self.capacity // 32)
        self.capacity += growth
        return growth

    def _live(self, held_RC: Tensor, next_R: Tensor, prompt_R: Tensor | None) -> Tensor:
        return live_keys(self.policy, held_RC, next_R, prompt_R).squeeze(1)

    def _drop(self, next_R: Tensor, prompt_R: Tensor | None, *, slack: int = 0) -> Tensor | None:
        """Forget dead keys, and say which slots to keep where that frees more than ``slack`` of them."""
        if self._count is not None and not self._may_drop and self.capacity - self._count <= slack:
            return None
        held_RC = self.positions_RC
        live_RC = self._live(held_RC, next_R, prompt_R) if self._may_drop else held_RC >= 0
        lost_RC = (held_RC >= 0) & ~live_RC
        if bool(lost_RC.any()):
            self._complete_from_R = next_R
            self.positions_RC = held_RC = held_RC.masked_fill(lost_RC, PADDING)
        keep = int(live_RC.sum(-1).max())
        if self.capacity - keep <= slack:
            return None
        kept_RC = live_RC.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :keep]
        if self._count is None:
            self.positions_RC = held_RC.expand(len(kept_RC), -1).gather(-1, kept_RC)
        else:
            self.capacity = keep
        return kept_RC

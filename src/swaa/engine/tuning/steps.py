"""Which samples make an optimizer step, and how a step is split over processes and forward passes. Pure and exact.

Which samples a step has depends on the seed, the epoch and the batch size alone, so that one process and several,
padded and packed runs take the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from swaa.tasks.draws import Draws

Row: TypeAlias = tuple[int, ...]
"""Indices of the samples that share a row: one, or the documents of a pack in order."""


@dataclass(frozen=True)
class Micro:
    """One forward and backward pass of one process.

    Attributes:
        rows: what runs together.
        counts: False for a filler, which keeps a process company whose peers have one more: its loss weighs nothing.
    """

    rows: tuple[Row, ...]
    counts: bool = True


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        ranks: what each process runs, in order; as many passes for all, at least one.
        answer_tokens: of all samples of the step, over all processes; fillers are not counted.
    """

    ranks: tuple[tuple[Micro, ...], ...]
    answer_tokens: int


def plan_steps(
    lengths: Sequence[int],
    answer_tokens: Sequence[int],
    *,
    batch_size: int,
    micro_batch_size: int,
    pack_length: int | None,
    world_size: int,
    epochs: int,
    seed: int,
) -> list[Step]:
    """The steps of a training run, epoch by epoch; every epoch has ``ceil(len(lengths) / batch_size)``.

    Args:
        lengths: tokens of each sample.
        answer_tokens: of each sample.
        batch_size: samples of a step, over all processes; an epoch's last step has what is left.
        micro_batch_size: samples that run together at most, one a row; similar lengths together. Without meaning
            where rows are packed.
        pack_length: tokens of a row at most, where several samples are packed into one; None packs none.
        world_size: processes.
        epochs: how often each sample comes, in a new order each time.
        seed: of the orders.

    Raises:
        ValueError: a number is less than 1, the sequences differ in length, or a sample is longer than a pack.
    """
    counts = {"batch_size": batch_size, "micro_batch_size": micro_batch_size, "world_size": world_size}
    for name, count in {**counts, "epochs": epochs, "len(lengths)": len(lengths)}.items():
        if count < 1:
            raise ValueError(f"{name}: expected an int >= 1, got {count}")
    if len(answer_tokens) != len(lengths):
        raise ValueError(f"answer_tokens: expected {len(lengths)}, one per sample, got {len(answer_tokens)}")
    if pack_length is not None and max(lengths) > pack_length:
        raise ValueError(f"pack_length: expected at least the longest sample's {max(lengths)}, got {pack_length}")
    steps = []
    for epoch in range(epochs):
        order = Draws("steps", seed, epoch).shuffled(range(len(lengths)))
        for first in range(0, len(order), batch_size):
            members = sorted(order[first : first + batch_size], key=lambda index: (-lengths[index], index))
            if pack_length is None:
                micros = _padded(members, micro_batch_size, world_size)
            else:
                rows = _at_least(pack(members, lengths, pack_length), world_size, lengths)
                micros = [Micro((row,)) for row in rows]
            ranks = _dealt(micros, lengths, world_size, filler=Micro(((members[-1],),), counts=False))
            steps.append(Step(ranks, sum(answer_tokens[index] for index in members)))
    return steps


def pack(members: Sequence[int], lengths: Sequence[int], room: int) -> list[Row]:
    """Rows of at most ``room`` tokens: each of the ``members``, the longest first, goes into the first it fits into."""
    rows: list[list[int]] = []
    left: list[int] = []
    for index in sorted(members, key=lambda index: (-lengths[index], index)):
        place = next((place for place, free in enumerate(left) if lengths[index] <= free), len(rows))
        if place == len(rows):
            rows.append([])
            left.append(room)
        rows[place].append(index)
        left[place] -= lengths[index]
    return [tuple(row) for row in rows]


def _padded(members: Sequence[int], micro_batch_size: int, world_size: int) -> list[Micro]:
    """Runs of neighbours, even in number: as few as fill ``micro_batch_size``, yet as many for each process.

    Args:
        members: the step's samples, the longest first.
    """
    per_process = -(-len(members) // (micro_batch_size * world_size))
    number = min(len(members), per_process * world_size)
    edges = [len(members) * part // number for part in range(number + 1)]
    runs = [members[start:end] for start, end in pairwise(edges)]
    return [Micro(tuple((index,) for index in run)) for run in runs]


def _at_least(rows: list[Row], world_size: int, lengths: Sequence[int]) -> list[Row]:
    """The rows, some of them halved so that each process has as many: a shorter row is better than a filler."""
    rows = list(rows)
    while len(rows) % world_size and max(map(len, rows)) > 1:
        fullest = max((row for row in rows if len(row) > 1), key=lambda row: sum(lengths[index] for index in row))
        rows.remove(fullest)
        rows += [fullest[::2], fullest[1::2]]
    return rows


def _dealt(
    micros: Sequence[Micro], lengths: Sequence[int], world_size: int, filler: Micro
) -> tuple[tuple[Micro, ...], ...]:
    """The passes of each process: as many for all, and tokens (padding included) as even as the longest first make it.

    Each process runs its largest first, so that a step that does not fit into memory fails at once.
    """
    each = -(-len(micros) // world_size)
    ranks: list[list[Micro]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for micro in sorted(micros, key=lambda micro: (-_tokens(micro, lengths), micro.rows)):
        open_ranks = [rank for rank in range(world_size) if len(ranks[rank]) < each]
        rank = min(open_ranks, key=lambda rank: loads[rank])
        ranks[rank].append(micro)
        loads[rank] += _tokens(micro, lengths)
    return tuple((*rank, *[filler] * (each - len(rank))) for rank in ranks)


def _tokens(micro: Micro, lengths: Sequence[int]) -> int:
    """Tokens that run, padding included."""
    return len(micro.rows) * max(sum(lengths[index] for index in row) for row in micro.rows)

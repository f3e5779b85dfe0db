"""Token layouts to check on, each told twice: to the library, and to the check as plain slots.

Shape suffixes: B samples, H query heads, Q query slots, K key slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swaa.compiler import TokenLayout
from swaa.policies import PHASES
from swaa.testing.meaning import Meaning, Place, Sizes, table
from swaa.testing.reading import Reader


@dataclass(frozen=True)
class Slot:
    """A token's place: its position in its document, the document, and its phase as a query."""

    position: int
    document: int = 0
    decodes: bool = False


Row = tuple[Slot | None, ...]
"""The slots of one sample; None where a slot holds no token."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One layout. ``queries`` and ``keys`` have one row for each sample."""

    kind: str
    layout: TokenLayout
    queries: tuple[Row, ...]
    keys: tuple[Row, ...]

    @property
    def tokens(self) -> int:
        """Key slots of a sample."""
        return len(self.keys[0])


Family = Callable[[int], Scene]
"""Scenes of one kind by their number of tokens: what a failure is shrunk along."""


def _prompt(length: int) -> int:
    return max(1, 2 * length // 3)


def _row(length: int, prompt: int, document: int = 0) -> list[Slot]:
    return [Slot(position, document, position >= prompt) for position in range(length)]


def whole(length: int, prompt: int | None = None) -> Scene:
    """A prompt (two thirds, or as long as said) and its answer in one forward pass."""
    prompt = _prompt(length) if prompt is None else prompt
    row = tuple(_row(length, prompt))
    return Scene("prompt and answer", TokenLayout.contiguous(length, prompt_lengths=prompt), (row,), (row,))


def chunk(length: int) -> Scene:
    """The second half of the tokens, after a cache."""
    row, start = tuple(_row(length, _prompt(length))), length // 2
    layout = TokenLayout.contiguous(length - start, length, offset=start, prompt_lengths=_prompt(length))
    return Scene("a chunk after a cache", layout, (row[start:],), (row,))


def step(length: int) -> Scene:
    """One token, decoded after a cache."""
    row = tuple(_row(length, _prompt(length)))
    layout = TokenLayout.contiguous(1, length, offset=length - 1, prompt_lengths=_prompt(length))
    return Scene("one decode step", layout, (row[-1:],), (row,))


def padding(length: int) -> Scene:
    """Three samples: padded left, padded right, and with holes; each has a prompt of its own."""
    few = length // 4
    real = [
        [slot >= few for slot in range(length)],
        [slot < length - few for slot in range(length)],
        [slot % 3 != 1 for slot in range(length)],
    ]
    prompts, rows = [], []
    for sample in real:
        prompts.append(_prompt(sum(sample)))
        tokens = iter(_row(sum(sample), prompts[-1]))
        rows.append(tuple(next(tokens) if here else None for here in sample))
    layout = TokenLayout.padded(torch.tensor(real), prompt_lengths=torch.tensor(prompts))
    return Scene("padding left, right and between", layout, tuple(rows), tuple(rows))


def packing(length: int) -> Scene:
    """Up to three documents in one row."""
    first, second = max(1, length // 2), length // 3
    lengths = [size for size in (first, second, length - first - second) if size > 0]
    prompts = [_prompt(size) for size in lengths]
    row = tuple(
        slot
        for number, (size, prompt) in enumerate(zip(lengths, prompts, strict=True))
        for slot in _row(size, prompt, number)
    )
    positions = torch.tensor([[slot.position for slot in row]])
    return Scene(
        "packed documents", TokenLayout.packed(positions, prompt_lengths=torch.tensor([prompts])), (row,), (row,)
    )


def expected_mask(meaning: Meaning, scene: Scene, sizes: Sizes, layer: int, reader: Reader) -> Tensor:
    """bool [B, H, Q, K]: what the composition means on these slots."""
    length = 1 + max(slot.position for row in (*scene.queries, *scene.keys) for slot in row if slot)
    heads = []
    for head in range(sizes.heads):
        tables = torch.stack([table(meaning, Place(layer, head, phase, sizes), length, reader) for phase in PHASES])
        heads.append(torch.stack([on_slots(tables, *rows) for rows in zip(scene.queries, scene.keys, strict=True)]))
    return torch.stack(heads, 1)


def on_slots(tables: Tensor, queries: Sequence[Slot | None], keys: Sequence[Slot | None]) -> Tensor:
    """bool [Q, K] from a table for each phase."""
    at = {
        side: torch.tensor([[slot.position, slot.document, slot.decodes] if slot else [0, -place, 0] for slot in row])
        for side, place, row in (("q", 1, queries), ("k", 2, keys))  # what holds no token shares no document
    }
    q, k = at["q"][:, None], at["k"][None]
    beyond_the_prompt = (k[..., 0] > q[..., 0]) & (k[..., 2] == 1)  # no query looks ahead past its own prompt
    seen: Tensor = tables[q[..., 2], q[..., 0], k[..., 0]] & (q[..., 1] == k[..., 1]) & ~beyond_the_prompt
    return seen

"""An expected mask against an effective one: where they differ first, and how that looks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from swaa.testing.effective import Reading
from swaa.testing.reading import Reader
from swaa.testing.scenes import Family, Scene, expected_mask
from swaa.testing.subject import Case

_WIDEST = 32
"""Slots of a mask that are drawn."""


@dataclass(frozen=True, eq=False)
class Difference:
    """Two masks of one layer, bool [B, H, Q, K], that are not equal. ``reading`` names what the effective one is."""

    case: Case
    scene: Scene
    layer: int
    reading: str
    expected: Tensor
    effective: Tensor

    @property
    def first(self) -> tuple[int, int, int, int]:
        """The first differing pair: sample, head, query slot and key slot."""
        sample, head, query, key = (self.expected != self.effective).nonzero()[0].tolist()
        return sample, head, query, key

    @property
    def where(self) -> str:
        """The first differing pair in words."""
        sample, head, query, key = self.first
        q, k = self.scene.queries[sample][query], self.scene.keys[sample][key]
        token = f"query {q.position if q else f'in empty slot {query}'}"
        other = f"key {k.position if k else f'in empty slot {key}'}"
        phase = f"{'decode' if q.decodes else 'prefill'}" if q else "no phase"
        place = f"layer {self.layer}, head {head}, {phase}"
        seen = "is seen and should not be" if self.effective[self.first] else "is not seen and should be"
        among = f", sample {sample}" if len(self.scene.keys) > 1 else ""
        return f"{token}, {other} ({place}{among}): the key {seen}"

    @property
    def size(self) -> tuple[int, int]:
        """By what the smallest one is chosen: tokens, then layers and heads."""
        return self.scene.tokens, self.case.sizes.layers * self.case.sizes.heads

    def picture(self) -> str:
        """Both masks as text, around the first differing pair."""
        sample, head, query, key = self.first
        return side_by_side(self.expected[sample, head], self.effective[sample, head], (query, key))


def side_by_side(expected: Tensor, effective: Tensor, around: tuple[int, int]) -> str:
    """Two masks, queries down and keys to the right: ``█`` visible, ``·`` hidden, ``+`` too much, ``-`` missing."""
    rows, columns = (_window(at, size) for at, size in zip(around, expected.shape, strict=True))
    width = len(columns)
    lines = [f"    {'expected':<{max(width, 8)}}   effective (+ seen too much, - missing)"]
    for row in rows:
        left = "".join("█" if expected[row, column] else "·" for column in columns)
        right = "".join(_cell(bool(expected[row, column]), bool(effective[row, column])) for column in columns)
        lines.append(f"    {left:<{max(width, 8)}}   {right}")
    if len(rows) < len(expected) or width < expected.shape[1]:
        lines.append(f"    (queries {rows[0]} to {rows[-1]}, keys {columns[0]} to {columns[-1]})")
    return "\n".join(lines)


def _cell(expected: bool, effective: bool) -> str:
    return ("█" if effective else "-") if expected else ("+" if effective else "·")


def _window(at: int, size: int) -> range:
    start = max(0, min(at - _WIDEST // 2, size - _WIDEST))
    return range(start, min(size, start + _WIDEST))


def differs(case: Case, scene: Scene, name: str, reading: Reading, reader: Reader) -> Difference | None:
    """The first layer whose effective mask is not what the composition means."""
    for index in range(case.sizes.layers):
        expected = expected_mask(case.meaning, scene, case.sizes, index, reader)
        effective = reading(case.layer(index), scene)
        if not bool((expected == effective).all()):
            return Difference(case, scene, index, name, expected, effective)
    return None


def shrunk(found: Difference, family: Family, reading: Reading, reader: Reader) -> Difference:
    """The same with the fewest tokens that show a difference."""
    scenes = (family(tokens) for tokens in range(1, found.scene.tokens))
    shorter = (differs(found.case, scene, found.reading, reading, reader) for scene in scenes)
    return next((difference for difference in shorter if difference), found)

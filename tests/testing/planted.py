"""Policies with a defect each, as a newcomer might write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import swaa
from swaa.compiler.interval import Interval, Verdict


@dataclass(frozen=True, repr=False)
class _Window(swaa.Predicate):
    """A window that is right; the plants change one thing each."""

    window_size: int

    def visible(self, q: Any, k: Any) -> Any:
        return q - k < self.window_size

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return cls(3), cls(8)


class Healthy(_Window):
    pass


class OffByOne(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        return q - k <= self.window_size


@dataclass(frozen=True, repr=False)
class OffByOneUnnamed(swaa.Predicate):
    """The same, and nothing but an oracle can know: the field's name promises nothing."""

    reach: int

    def visible(self, q: Any, k: Any) -> Any:
        return q - k <= self.reach

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return cls(3), cls(8)


class SlotsAsSinks(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        return (torch.arange(k.shape[-1]) < self.window_size) | (q == k)


class FloatIndex(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        return q / 2 - k / 2 < self.window_size


class Branch(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        near = q - k < self.window_size
        if near.all():
            return near
        return near | (k < 1)


class BranchOnOne(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        return q - k < self.window_size if q > 5 else k >= 0


class Counting(_Window):
    calls: ClassVar[list[int]] = [0]

    def visible(self, q: Any, k: Any) -> Any:
        self.calls[0] += 1
        return q - k < self.window_size + self.calls[0] % 2


class Remembering(_Window):
    """Instances share what the last one was asked."""

    last: ClassVar[list[int]] = [0]

    def visible(self, q: Any, k: Any) -> Any:
        size, self.last[0] = max(self.last[0], self.window_size), self.window_size
        return q - k < size


class NarrowVerdict(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        if isinstance(q, Interval):
            near = q - k < self.window_size - 1
            return Verdict(near.may, near.must)
        return q - k < self.window_size


class PhaseFlipped(_Window):
    def in_phase(self, phase: str, *, otherwise: Any = None) -> Any:
        return super().in_phase("decode" if phase == "prefill" else "prefill", otherwise=otherwise)


class HeadIgnored(_Window):
    def on_heads(self, heads: object, *, otherwise: Any = None) -> Any:
        return self


class LayerIgnored(_Window):
    def on_layers(self, layers: object, *, otherwise: Any = None) -> Any:
        return self


class OtherwiseForgotten(_Window):
    def _scoped(self, otherwise: Any, **where: Any) -> Any:
        return super()._scoped(None, **where)


class OtherwiseNothing(_Window):
    def _scoped(self, otherwise: Any, **where: Any) -> Any:
        return super()._scoped(~swaa.FullAttention() if otherwise is None else otherwise, **where)


class Raising(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        return q - k < self.window_sise  # type: ignore[attr-defined]


class ANumber(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        return q - k

"""Policies with a defect each, as a newcomer might write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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


# --------------------------------------------------------------------------------------- no values, wrong algebra


@dataclass(frozen=True, repr=False)
class Itself(_Window):
    """Equal to itself alone."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True, repr=False)
class AllAlike(_Window):
    """Its field is not compared: a window of 3 is one of 8."""

    window_size: int = field(compare=False)


@dataclass(frozen=True, repr=False)
class Wildcard(_Window):
    def __eq__(self, other: object) -> bool:
        return not isinstance(other, Wildcard) or other.window_size == self.window_size

    def __hash__(self) -> int:
        return hash(self.window_size)


@dataclass(frozen=True, repr=False)
class Listed(swaa.Predicate):
    """A list can change, and has no hash."""

    sizes: list[int]

    def visible(self, q: Any, k: Any) -> Any:
        return q - k < self.sizes[0]

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return cls([3]), cls([8])


class ImpliesItsKind(_Window):
    def implies(self, other: swaa.Predicate) -> bool:
        return isinstance(other, ImpliesItsKind)


class ImpliesOneTooMany(_Window):
    """Off by one, among its own kind."""

    def implies(self, other: swaa.Predicate) -> bool:
        return isinstance(other, ImpliesOneTooMany) and self.window_size <= other.window_size + 1


class ImpliesANarrowerWindow(_Window):
    """Off by one, against a policy of the zoo."""

    def implies(self, other: swaa.Predicate) -> bool:
        return self == other or (isinstance(other, swaa.SlidingWindow) and other.window_size >= self.window_size - 1)


class ImpliesNothingAtAll(_Window):
    def implies(self, other: swaa.Predicate) -> bool:
        return None  # type: ignore[return-value]


class EvenKeys(swaa.SlidingWindow):
    """What its parent implies, it implies no longer; nor does its parent imply it."""

    def visible(self, q: Any, k: Any) -> Any:
        return (q - k < self.window_size) & (k % 2 == 0)


# ----------------------------------------------------------------------------- right on small shapes, and no predicates


class OtherwiseFarAway(_Window):
    """On index tensors, late queries see one key more."""

    def visible(self, q: Any, k: Any) -> Any:
        near = q - k < self.window_size
        return near | ((q > 300) & (k == 7)) if isinstance(q, torch.Tensor) else near


class NarrowFarAway(_Window):
    """The same on intervals."""

    def visible(self, q: Any, k: Any) -> Any:
        near = q - k < self.window_size
        return near & (q < 10_000_000) if isinstance(q, Interval) else near


def _sums_to_128(value: Any) -> Any:
    """A product so large is unknown to intervals; sums are not."""
    for _ in range(7):
        value = value + value
    return value


class Overflowing(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        return _sums_to_128(q * 10**8 * 10**7) < _sums_to_128((k + self.window_size) * 10**8 * 10**7)


class AnotherShape(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        return torch.ones(3, 3, dtype=torch.bool) if isinstance(q, torch.Tensor) else q - k < self.window_size


class AConstant(_Window):
    def visible(self, q: Any, k: Any) -> Any:
        return torch.tensor(True)


# ---------------------------------------------------------------------------------------------- odd, and healthy


@dataclass(frozen=True, repr=False)
class Share(swaa.Predicate):
    """A float and a string among its fields, and no own token, or nothing."""

    share: float
    kind: str = "recent"

    def visible(self, q: Any, k: Any) -> Any:
        size = round(self.share * 16)
        return (q - k <= size) & (q != k) if self.kind == "recent" else k < 0

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return [cls(0.25), cls(0.5), cls(0.5), cls(1.0, "none")]


@dataclass(frozen=True, repr=False)
class Spans(swaa.Predicate):
    """Tuples in a tuple."""

    spans: tuple[tuple[int, int], ...]

    def visible(self, q: Any, k: Any) -> Any:
        seen = q == k
        for begin, end in self.spans:
            seen = seen | ((k >= begin) & (k < end))
        return seen

    @classmethod
    def examples(cls) -> Iterator[Any]:
        yield cls(())
        yield cls(((1, 3), (7, 1_000_000)))


@dataclass(frozen=True, repr=False)
class Hashing(swaa.Predicate):
    """Products wrap around on purpose, as in hashes; intervals do not follow, so torch builds its block mask."""

    seed: int

    def visible(self, q: Any, k: Any) -> Any:
        return (q * 6364136223846793005 + k * 1442695040888963407 + self.seed) % 1024 < 300

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return cls(1), cls(2)


# --------------------------------------------------------------------------------- registered, and not storable


@dataclass(frozen=True, repr=False)
class OwnRepr(_Window):
    def __repr__(self) -> str:
        return f"<window of {self.window_size}>"


@dataclass(frozen=True, repr=False)
class Derived(_Window):
    """A field that no caller gives is printed and stored all the same."""

    twice: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.window_size)


@dataclass(frozen=True, repr=False)
class Replaced(_Window):
    """Stands for another policy than it says."""

    @property
    def formula(self) -> Any:
        return swaa.SlidingWindow(self.window_size + 1).formula


# --------------------------------------------------------------------------------------------------- no examples


class Raises(_Window):
    @classmethod
    def examples(cls) -> Sequence[Any]:
        return (cls(),)  # type: ignore[call-arg]


class NoExamples(_Window):
    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class Plain(swaa.Predicate):
    """No dataclass."""

    def visible(self, q: Any, k: Any) -> Any:
        return k < 4

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return (cls(),)

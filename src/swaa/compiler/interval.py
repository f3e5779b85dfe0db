"""Abstract values for evaluating a predicate on whole runs of positions at once.

An :class:`Interval` stands for every integer between ``lo`` and ``hi``; comparing two gives a :class:`Verdict`: *may*
the comparison hold for some pair, *must* it hold for all? Both are elementwise over tensors of any one shape, so one
evaluation of a predicate judges a whole grid of blocks.

The arithmetic is sound: every concrete result lies inside the abstract one, a pair that holds implies ``may``, and
``must`` implies that all pairs hold. It forgets how operands are related, so it may be undecided where the truth is
not; on single positions (``lo == hi``) it is exact. Source: interval arithmetic as an abstract domain, Cousot &
Cousot (1977).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

INFINITY = 1 << 40
"""Stands for 'any later position': far beyond every context."""

_LARGEST = 1 << 60
"""Products end here, on either side. That of 'any later position' is beyond it; others may wrap around on tensors."""


class UnknownOperation(TypeError):
    """A predicate used an operation that has no abstract counterpart."""


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """The function, left alone by ``torch.compile``: tracers look for attributes, which abstract values refuse."""
    return cast("Callable[P, T]", torch.compiler.disable(function))


def _refuse(operation: str) -> UnknownOperation:
    return UnknownOperation(f"{operation} is not known on intervals")


class _Abstract:
    """What both kinds of abstract value refuse: truth tests, Python conversions, unknown attributes and torch calls."""

    def __bool__(self) -> bool:
        raise _refuse("a truth test (if, and, or, min, max)")

    def __index__(self) -> int:
        raise _refuse("use as an index")

    def __getattr__(self, name: str) -> Any:
        raise _refuse(f"attribute {name!r}")

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        operation = _TORCH_FUNCTIONS.get(func)
        if operation is None or kwargs:
            raise _refuse(getattr(func, "__name__", str(func)))
        return operation(*args)


def _refusal(operator: str) -> Callable[..., Any]:
    def refuse(self: _Abstract, *_: Any) -> Any:
        raise _refuse(f"{operator} of {type(self).__name__}")

    return refuse


# Python looks an operator up on the class, past __getattr__: without these it would raise a TypeError of its own, and
# no fallback would catch it. The classes below define those that they know.
for _names in (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod divmod rdivmod pow rpow matmul rmatmul",
    "lshift rlshift rshift rrshift and rand or ror xor rxor neg pos abs invert lt le gt ge",
    "int float complex round trunc floor ceil len iter contains getitem call",
):
    for _name in _names.split():
        setattr(_Abstract, f"__{_name}__", _refusal(f"__{_name}__"))


@dataclass(frozen=True, eq=False)
class Verdict(_Abstract):
    """Three-valued truth, elementwise: ``must`` (always), ``not may`` (never), or undecided between."""

    may: Tensor
    must: Tensor

    def __and__(self, other: Any) -> Verdict:
        other = _verdict(other, self)
        return Verdict(self.may & other.may, self.must & other.must)

    def __or__(self, other: Any) -> Verdict:
        other = _verdict(other, self)
        return Verdict(self.may | other.may, self.must | other.must)

    def __xor__(self, other: Any) -> Verdict:
        other = _verdict(other, self)
        result: Verdict = (self & ~other) | (~self & other)
        return result

    def __invert__(self) -> Verdict:
        return Verdict(~self.must, ~self.may)

    def __eq__(self, other: object) -> Verdict:  # type: ignore[override]
        return ~(self ^ other)

    def __ne__(self, other: object) -> Verdict:  # type: ignore[override]
        return self ^ other

    __rand__ = __and__
    __ror__ = __or__
    __rxor__ = __xor__


@dataclass(frozen=True, eq=False)
class Interval(_Abstract):
    """Every integer from ``lo`` to ``hi``, both included, elementwise (int64 tensors of one shape)."""

    lo: Tensor
    hi: Tensor

    def __add__(self, other: Any) -> Interval:
        other = _interval(other)
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo)

    def __sub__(self, other: Any) -> Interval:
        return self + -_interval(other)

    def __rsub__(self, other: Any) -> Interval:
        return _interval(other) + -self

    def __mul__(self, other: Any) -> Interval:
        if (
            isinstance(other, int) and abs(other) >= INFINITY
        ):  # on tensors such a product wraps around, as hashes mean it
            raise _refuse("a factor of 2**40 or more")
        other = _interval(other)
        corners = torch.stack(
            torch.broadcast_tensors(*[_product(a, b) for a in (self.lo, self.hi) for b in (other.lo, other.hi)])
        )
        known = (corners.abs() < _LARGEST).all(0) | self._is_endless | other._is_endless
        if not bool(known.all()):
            raise _refuse("a product beyond 2**60, which wraps around on tensors,")
        return Interval(corners.amin(0), corners.amax(0))

    @property
    def _is_endless(self) -> Tensor:
        """Does it stand for 'any later position', or for what is computed from it?"""
        return self.hi - self.lo >= INFINITY // 2

    def __abs__(self) -> Interval:
        smallest = torch.where((self.lo <= 0) & (self.hi >= 0), 0, torch.minimum(self.lo.abs(), self.hi.abs()))
        return Interval(smallest, torch.maximum(self.lo.abs(), self.hi.abs()))

    def __floordiv__(self, other: Any) -> Interval:
        divisor = _positive_constant(other, "//")
        return Interval(self.lo // divisor, self.hi // divisor)

    def __mod__(self, other: Any) -> Interval:
        divisor = _positive_constant(other, "%")
        wraps = self.lo // divisor != self.hi // divisor
        return Interval(torch.where(wraps, 0, self.lo % divisor), torch.where(wraps, divisor - 1, self.hi % divisor))

    def __lt__(self, other: Any) -> Verdict:
        other = _interval(other)
        return Verdict(self.lo < other.hi, self.hi < other.lo)

    def __le__(self, other: Any) -> Verdict:
        other = _interval(other)
        return Verdict(self.lo <= other.hi, self.hi <= other.lo)

    def __gt__(self, other: Any) -> Verdict:
        result: Verdict = ~(self <= other)
        return result

    def __ge__(self, other: Any) -> Verdict:
        result: Verdict = ~(self < other)
        return result

    def __eq__(self, other: object) -> Verdict:  # type: ignore[override]
        other = _interval(other)
        return Verdict((self.lo <= other.hi) & (other.lo <= self.hi), (self.lo == other.hi) & (self.hi == other.lo))

    def __ne__(self, other: object) -> Verdict:  # type: ignore[override]
        return ~(self == other)

    __radd__ = __add__
    __rmul__ = __mul__


def _interval(value: Any) -> Interval:
    if isinstance(value, Interval):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, Tensor)):
        raise _refuse(f"arithmetic with {type(value).__name__}")
    if isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.bool):
        raise _refuse(f"arithmetic with a {value.dtype} tensor")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise _refuse("a number beyond 2**60")
    exact = torch.as_tensor(value, dtype=torch.int64)
    return Interval(exact, exact)


def _product(a: Tensor, b: Tensor) -> Tensor:
    about = a.double() * b.double()
    return torch.where(about.abs() < _LARGEST, a * b, about.sign().long() * _LARGEST)


def _positive_constant(value: Any, operator: str) -> Tensor:
    divisor = _interval(value)
    if bool((divisor.lo != divisor.hi).any()) or bool((divisor.lo <= 0).any()):
        raise _refuse(f"{operator} by anything but a positive constant")
    return divisor.lo


def _verdict(value: Any, like: Verdict) -> Verdict:
    if isinstance(value, Verdict):
        return value
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        exact = torch.as_tensor(value, device=like.may.device)
        return Verdict(exact, exact)
    raise _refuse(f"logic with {type(value).__name__}")


def _minimum(a: Any, b: Any) -> Interval:
    a, b = _interval(a), _interval(b)
    return Interval(torch.minimum(a.lo, b.lo), torch.minimum(a.hi, b.hi))


def _maximum(a: Any, b: Any) -> Interval:
    a, b = _interval(a), _interval(b)
    return Interval(torch.maximum(a.lo, b.lo), torch.maximum(a.hi, b.hi))


_TORCH_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.abs: abs,
    torch.minimum: _minimum,
    torch.maximum: _maximum,
    torch.logical_and: lambda a, b: a & b,
    torch.logical_or: lambda a, b: a | b,
    torch.logical_xor: lambda a, b: a ^ b,
    torch.logical_not: lambda a: ~a,
    **{
        method: function
        for methods, function in (
            ((Tensor.__add__, Tensor.__radd__, Tensor.add), lambda a, b: _interval(a) + b),
            ((Tensor.__sub__, Tensor.sub), lambda a, b: _interval(a) - b),
            ((Tensor.__mul__, Tensor.__rmul__, Tensor.mul), lambda a, b: _interval(a) * b),
            ((Tensor.__and__, Tensor.__rand__), lambda a, b: b & a),
            ((Tensor.__or__, Tensor.__ror__), lambda a, b: b | a),
            ((Tensor.__lt__, Tensor.lt), lambda a, b: _interval(a) < b),
            ((Tensor.__le__, Tensor.le), lambda a, b: _interval(a) <= b),
            ((Tensor.__gt__, Tensor.gt), lambda a, b: _interval(a) > b),
            ((Tensor.__ge__, Tensor.ge), lambda a, b: _interval(a) >= b),
        )
        for method in methods
    },
}
"""What torch calls when a tensor stands left of an abstract operand, and a few functions predicates like."""

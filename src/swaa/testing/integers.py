"""Numbers that a predicate is read with, one pair at a time: Python ints and truth values that know the operators only.

What :class:`~swaa.policies.base.Index` promises is here, and nothing else. Floats, truth tests, shapes and calls into
torch are refused, each by a reason of its own, so that a mistake in a predicate is named instead of computed with.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

FLOAT, BRANCH, SLOTS, FOREIGN, KIND, OVERFLOW = (
    "float index",
    "data-dependent branch",
    "slots taken for positions",
    "foreign",
    "kind",
    "overflow",
)
"""Why an operation is refused. ``FOREIGN``: it is none of the operators, but index tensors may well know it."""

_LIMIT = 1 << 60
_SHAPES = frozenset({"shape", "size", "numel", "ndim", "dim", "device", "dtype", "is_cuda", "stride", "new_tensor"})
_REDUCTIONS = frozenset(
    {"all", "any", "item", "tolist", "min", "max", "amin", "amax", "sum", "mean", "cumsum", "argmax"}
)
_FLOATS = frozenset({"float", "double", "half", "bfloat16", "sqrt", "log", "log2", "exp", "true_divide", "div"})


class Refused(Exception):
    """A predicate did with a position or a truth value what it must not do; ``reason`` is one of the names above."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Strict:
    """What both kinds refuse."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]  # as tensors in a set would do harm, so would these

    def __bool__(self) -> bool:
        raise Refused(BRANCH, "it asks whether a comparison holds (if, and, or, not, min, max, all, any)")

    def __index__(self) -> int:
        raise Refused(FOREIGN, "it uses a position as an index")

    def __float__(self) -> float:
        raise Refused(FLOAT, "it makes a float of a position")

    def __int__(self) -> int:
        raise Refused(BRANCH, "it makes a Python int of a position")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _SHAPES:
            raise Refused(SLOTS, f"it asks for .{name} of its operands, which is about slots of a tensor")
        if name in _REDUCTIONS:
            raise Refused(BRANCH, f"it calls .{name}() on its operands, which mixes one pair of tokens with the others")
        if name in _FLOATS:
            raise Refused(FLOAT, f"it calls .{name}() on a position")
        raise Refused(FOREIGN, f"it uses .{name} of its operands")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise Refused(FOREIGN, f"it calls torch's {getattr(func, '__name__', func)}")


def _refusal(symbol: str, reason: str) -> Callable[..., NoReturn]:
    def refuse(self: _Strict, *_: Any) -> NoReturn:
        raise Refused(reason, f"it uses {symbol} on {'positions' if isinstance(self, Whole) else 'truth values'}")

    return refuse


for _symbol, _reason, _names in (
    ("/", FLOAT, ("truediv", "rtruediv")),
    ("**", KIND, ("pow", "rpow")),
    ("<< or >>", KIND, ("lshift", "rlshift", "rshift", "rrshift")),
    ("@", KIND, ("matmul", "rmatmul")),
    ("[]", SLOTS, ("getitem", "len", "iter")),
    ("arithmetic", KIND, ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "rmod", "neg")),
    ("abs()", KIND, ("abs",)),
    ("an order", KIND, ("lt", "le", "gt", "ge")),
    ("& | ^ ~", KIND, ("and", "rand", "or", "ror", "xor", "rxor", "invert")),
):
    for _name in _names:
        setattr(_Strict, f"__{_name}__", _refusal(_symbol, _reason))


class Whole(_Strict):
    """A position, or what arithmetic makes of it: an int64, which wraps around as those in the kernel do."""

    __slots__ = ()

    def __init__(self, value: int) -> None:
        self.value = value if -(1 << 63) <= value < 1 << 63 else (value + (1 << 63)) % (1 << 64) - (1 << 63)

    def __neg__(self) -> Whole:
        return type(self)(-self.value)

    def __abs__(self) -> Whole:
        return type(self)(abs(self.value))


class Bounded(Whole):
    """One that refuses to grow beyond what intervals count exactly."""

    __slots__ = ()

    def __init__(self, value: int) -> None:
        if abs(value) > _LIMIT:
            raise Refused(OVERFLOW, f"it computes {value}, which is beyond 2**60")
        self.value = value


class Truth(_Strict):
    """The result of a comparison."""

    __slots__ = ()

    def __init__(self, value: bool) -> None:
        self.value = value

    def __invert__(self) -> Truth:
        return Truth(not self.value)


def _whole(other: Any) -> int:
    if type(other) is int:  # by far the most
        return other
    if isinstance(other, Whole):
        value: int = other.value
        return value
    if isinstance(other, int) and not isinstance(other, bool):
        return other
    if isinstance(other, float):
        raise Refused(FLOAT, f"it computes with the float {other!r}")
    if hasattr(type(other), "__torch_function__") and not isinstance(other, _Strict):
        raise Refused(FOREIGN, "it computes with a tensor of its own")
    raise Refused(KIND, f"it computes with {type(other).__name__} where a whole number belongs")


def _truth(other: Any) -> bool:
    if isinstance(other, Truth):
        return other.value
    if isinstance(other, bool):
        return other
    if hasattr(type(other), "__torch_function__") and not isinstance(other, _Strict):
        raise Refused(FOREIGN, "it combines a comparison with a tensor of its own")
    raise Refused(KIND, f"it combines a comparison with {type(other).__name__} where a comparison belongs")


def _arithmetic(function: Callable[[int, int], int], mirrored: bool) -> Callable[[Whole, Any], Whole]:
    def compute(self: Whole, other: Any) -> Whole:
        number = _whole(other)
        return type(self)(function(number, self.value) if mirrored else function(self.value, number))

    return compute


def _comparison(function: Callable[[int, int], bool]) -> Callable[[Whole, Any], Truth]:
    return lambda self, other: Truth(function(self.value, _whole(other)))


def _logic(function: Callable[[bool, bool], bool]) -> Callable[[Truth, Any], Truth]:
    return lambda self, other: Truth(function(self.value, _truth(other)))


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Whole, f"__{_name}__", _arithmetic(getattr(operator, _name), mirrored=False))
    setattr(Whole, f"__r{_name}__", _arithmetic(getattr(operator, _name), mirrored=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Whole, f"__{_name}__", _comparison(getattr(operator, _name)))
for _name in ("and_", "or_", "xor"):
    setattr(Truth, f"__{_name.strip('_')}__", _logic(getattr(operator, _name)))
    setattr(Truth, f"__r{_name.strip('_')}__", _logic(getattr(operator, _name)))
for _name in ("eq", "ne"):
    setattr(Truth, f"__{_name}__", _logic(getattr(operator, _name)))

"""Interval arithmetic against brute force: every operator sound on runs of ints, and exact on single ones."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.compiler.interval import INFINITY, Interval, UnknownOperation, Verdict

FIFTH = settings(max_examples=max(20, settings.default.max_examples // 5))


@st.composite
def runs(draw: st.DrawFn, least: int = -15, most: int = 15) -> range:
    """A run of neighbouring ints."""
    lo = draw(st.integers(least, most))
    return range(lo, draw(st.integers(lo, most)) + 1)


def abstract(run: range) -> Interval:
    return Interval(torch.tensor(run[0]), torch.tensor(run[-1]))


def truth(values: set[bool]) -> Verdict:
    return Verdict(torch.tensor(True in values), torch.tensor(False not in values))


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "-a": lambda a, b: -a,
    "abs(a)": lambda a, b: abs(a),
    "a + 3": lambda a, b: a + 3,
    "3 + a": lambda a, b: 3 + a,
    "3 - a": lambda a, b: 3 - a,
    "-2 * a": lambda a, b: -2 * a,
    "a // 4": lambda a, b: a // 4,
    "a % 4": lambda a, b: a % 4,
    "a % 1": lambda a, b: a % 1,
    "a // tensor": lambda a, b: a // torch.tensor(3),
    "a + tensor": lambda a, b: a + torch.tensor(3),
    "tensor + a": lambda a, b: torch.tensor(3) + a,
    "tensor - a": lambda a, b: torch.tensor(3) - a,
    "tensor * a": lambda a, b: torch.tensor(-3) * a,
    "abs(a - b) % 5 + a // 2": lambda a, b: abs(a - b) % 5 + a // 2,
}
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
COMPARISONS["!="] = operator.ne


@FIFTH
@given(st.sampled_from(sorted(ARITHMETIC)), runs(), runs())
def test_arithmetic_contains_every_result(name: str, one: range, two: range) -> None:
    result = ARITHMETIC[name](abstract(one), abstract(two))
    values = {int(ARITHMETIC[name](a, b)) for a in one for b in two}
    assert result.lo <= min(values)
    assert result.hi >= max(values)
    if len(one) == len(two) == 1:
        assert {int(result.lo), int(result.hi)} == values
    if name in ("a + b", "a - b", "a * b", "-a", "abs(a)", "a // 4"):  # the tightest there is
        assert (int(result.lo), int(result.hi)) == (min(values), max(values))


@FIFTH
@given(st.sampled_from(sorted(COMPARISONS)), runs(), runs())
def test_comparisons_are_exact(name: str, one: range, two: range) -> None:
    compare = COMPARISONS[name]
    verdict = compare(abstract(one), abstract(two))
    values = {compare(a, b) for a in one for b in two}
    assert (bool(verdict.may), bool(verdict.must)) == (True in values, False not in values)


@FIFTH
@given(st.sampled_from(sorted(COMPARISONS)), runs(), st.integers(-15, 15))
def test_comparisons_with_numbers_on_either_side(name: str, run: range, number: int) -> None:
    compare = COMPARISONS[name]
    for verdict, values in (
        (compare(abstract(run), number), {compare(a, number) for a in run}),
        (compare(abstract(run), torch.tensor(number)), {compare(a, number) for a in run}),
        (compare(number, abstract(run)), {compare(number, a) for a in run}),
        (compare(torch.tensor(number), abstract(run)), {compare(number, a) for a in run}),
    ):
        assert (bool(verdict.may), bool(verdict.must)) == (True in values, False not in values)


LOGIC: dict[str, Callable[[Any, Any], Any]] = {
    "a & b": operator.and_,
    "a | b": operator.or_,
    "a ^ b": operator.xor,
    "~a": lambda a, b: ~a,
    "a == b": operator.eq,
    "a != b": operator.ne,
    "a & True": lambda a, b: a & True,
    "False | a": lambda a, b: False | a,
    "True ^ a": lambda a, b: True ^ a,
    "tensor & a": lambda a, b: torch.tensor(True) & a,
    "a | tensor": lambda a, b: a | torch.tensor(False),
}


@pytest.mark.parametrize("name", LOGIC)
@pytest.mark.parametrize("one", [{True}, {False}, {True, False}], ids=str)
@pytest.mark.parametrize("two", [{True}, {False}, {True, False}], ids=str)
def test_logic_is_sound_and_exact_where_decided(name: str, one: set[bool], two: set[bool]) -> None:
    verdict = LOGIC[name](truth(one), truth(two))
    values = {bool(LOGIC[name](torch.tensor(a), torch.tensor(b))) for a in one for b in two}
    assert bool(verdict.may) >= (True in values)
    assert bool(verdict.must) <= (False not in values)
    if name in ("a & b", "a | b", "~a") or len(one) == len(two) == 1:
        assert (bool(verdict.may), bool(verdict.must)) == (True in values, False not in values)


@FIFTH
@given(runs(), runs())
def test_known_torch_functions(one: range, two: range) -> None:
    for function, plain in ((torch.minimum, min), (torch.maximum, max)):
        result = function(abstract(one), abstract(two))
        values = {plain(a, b) for a in one for b in two}
        assert (int(result.lo), int(result.hi)) == (min(values), max(values))
    result = torch.abs(abstract(one))
    assert (int(result.lo), int(result.hi)) == (min(map(abs, one)), max(map(abs, one)))
    below, above = abstract(one) < 3, abstract(two) > -3
    verdict = torch.logical_and(below, torch.logical_or(above, torch.logical_not(below)))
    values = {a < 3 and (b > -3 or not a < 3) for a in one for b in two}  # sound; that a comes twice is forgotten
    assert bool(verdict.may) >= (True in values)
    assert bool(verdict.must) <= (False not in values)
    assert bool(torch.logical_xor(below, above).may) >= any((a < 3) != (b > -3) for a in one for b in two)


@pytest.mark.parametrize("start", [0, 1, 7, 1 << 20])
def test_products_do_not_wrap_around_at_infinity(start: int) -> None:
    """A wrapped product would call a key dead that later queries see."""
    later = Interval(torch.tensor(start), torch.tensor(INFINITY))
    for power in (later * later, later * later * later, (later + 3) * later * 1000):
        assert power.hi > INFINITY
        assert power.lo >= start
    assert (-later * later * later).lo < -INFINITY
    assert bool((later * later >= 1 << 50).may)


@pytest.mark.parametrize("position", [1 << 20, 1 << 21, 3_000_000])
def test_a_product_that_wraps_around_on_tensors_is_not_known(position: int) -> None:
    at = torch.tensor(position)
    alone = Interval(at, at)
    assert int(at * at * at * 8) != position**3 * 8
    with pytest.raises(UnknownOperation, match="which wraps around on tensors, is not known"):
        alone * alone * alone * 8


Q, K = Interval(torch.tensor(3), torch.tensor(5)), Interval(torch.tensor(0), torch.tensor(3))
SEEN = Q > K
TABLE = torch.arange(10)
UNKNOWN: list[Callable[[], Any]] = [
    lambda: Q / 2,
    lambda: 8 / Q,
    lambda: 8 // Q,
    lambda: 8 % Q,
    lambda: Q // K,
    lambda: Q % 0,
    lambda: Q // -2,
    lambda: Q**2,
    lambda: 2**Q,
    lambda: Q << 1,
    lambda: Q >> 1,
    lambda: Q & 1,
    lambda: Q | K,
    lambda: Q ^ K,
    lambda: ~Q,
    lambda: +Q,
    lambda: divmod(Q, 2),
    lambda: Q @ K,
    lambda: Q + 0.5,
    lambda: Q + True,
    lambda: Q + (1 << 70),
    lambda: Q * 6364136223846793005,
    lambda: Q * torch.tensor(0.5),
    lambda: Q < None,
    lambda: Q == "3",
    lambda: Q and K,
    lambda: max(Q, K),
    lambda: 1 if Q > K else 0,
    lambda: not SEEN,
    lambda: SEEN + SEEN,
    lambda: SEEN * 2,
    lambda: SEEN < SEEN,
    lambda: -SEEN,
    lambda: SEEN & 1,
    lambda: SEEN | Q,
    lambda: TABLE[Q],
    lambda: [1, 2, 3][Q],
    lambda: Q[0],
    lambda: len(Q),
    lambda: list(Q),
    lambda: 3 in Q,
    lambda: Q(1),
    lambda: int(Q),
    lambda: float(Q),
    lambda: round(Q),
    lambda: math.floor(Q),
    lambda: math.ceil(Q),
    lambda: Q.float(),
    lambda: Q.abs(),
    lambda: SEEN.any(),
    lambda: torch.where(SEEN, Q, K),
    lambda: torch.sqrt(Q),
    lambda: torch.minimum(Q, torch.tensor(0.5)),
    lambda: torch.bitwise_and(Q, K),
    lambda: torch.add(Q, K, alpha=2),
]


@pytest.mark.parametrize("expression", UNKNOWN, ids=range(len(UNKNOWN)))
def test_unknown_operations_say_so(expression: Callable[[], Any]) -> None:
    with pytest.raises(UnknownOperation, match=" is not known on intervals"):
        expression()


def test_abstract_values_do_not_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Q)

"""Layer and head selectors, against Python's own slicing at every model size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

import oracle
from strategies import any_selectors
from swaa import FullAttention, SinkTokens, SlidingWindow, UserError, every
from swaa.policies import bind, select
from swaa.policies.selector import NOTHING, IndexSet

SIZES = range(1, 41)
SELECTORS = any_selectors(9)
TENTH = settings(max_examples=max(20, settings.default.max_examples // 10))


def chosen(selector: object, size: int) -> set[int]:
    """What swaa's set holds at a size, without the checks of binding."""
    where = select(selector) if not isinstance(selector, IndexSet) else selector
    return {i for i in range(size) if i in where._row(size - i)}


def made(selector: oracle.Selector) -> IndexSet | None:
    """The set, or None where the selector can choose nothing at any size (which is refused)."""
    try:
        return select(selector)
    except UserError:
        with pytest.raises(UserError, match="Name at least one"):
            select(selector)
        return None


@TENTH
@given(SELECTORS)
def test_a_selector_is_pythons_own_indexing(selector: oracle.Selector) -> None:
    where = made(selector)
    for size in SIZES:
        assert (chosen(where, size) if where else set()) == oracle.chosen(selector, size), size


@TENTH
@given(SELECTORS)
def test_printing_gives_the_set_back(selector: oracle.Selector) -> None:
    where = made(selector)
    if where is not None:
        assert select(where.to_python()) == where
        assert select(str(where)) == where
        assert eval(repr(where), {"select": select}) == where


@TENTH
@given(SELECTORS, SELECTORS)
def test_equal_exactly_where_the_same_at_every_size(one: oracle.Selector, two: oracle.Selector) -> None:
    a, b = made(one) or NOTHING, made(two) or NOTHING
    # 40 sizes decide: bounds are at most 9 from either end and steps at most 4
    same = all(oracle.chosen(one, size) == oracle.chosen(two, size) for size in SIZES)
    assert (a == b) == same
    assert (hash(a) == hash(b)) or not same


@TENTH
@given(SELECTORS, SELECTORS)
def test_set_operations(one: oracle.Selector, two: oracle.Selector) -> None:
    a, b = made(one) or NOTHING, made(two) or NOTHING
    for size in SIZES:
        left, right = oracle.chosen(one, size), oracle.chosen(two, size)
        assert chosen(a | b, size) == left | right
        assert chosen(a & b, size) == left & right
        assert chosen(~a, size) == set(range(size)) - left


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("1::2", "1::2"),
        (every(2, start=1), "1::2"),
        (every(1), ":"),
        (slice(1, None, 2), "1::2"),
        (range(1, 4), "1:4"),
        ([0, 1, 2, 3], ":4"),
        ([3, 0], [0, 3]),
        ((0, -1), [0, -1]),
        ("0,-1", [0, -1]),
        (" 1 :: 2 ", "1::2"),
        (3, 3),
        (-2, -2),
        (":-1", ":-1"),
        ("2:-2", "2:-2"),
        ("-3:", [-3, -2, -1]),
        (["::2", "1::2"], ":"),
        ("1::2 & 3:", "3::2"),
        ("0:8 & ::4", [0, 4]),
    ],
    ids=str,
)
def test_what_is_printed(written: object, printed: object) -> None:
    assert select(written).to_python() == printed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "a",
            "layers: expected an int, a slice such as '1::2', a list of these, or every.n, start., got 'a'. Write for",
        ),
        ("1:2:3:4", "got '1:2:3:4'. Write for example '3', '-1', '1::2' or '0:8'."),
        ("", "got ''. Write for example"),
        (2.5, "got 2.5. Write for example .0, 3., '1::2' or every"),
        (True, "got True"),
        (None, "got None"),
        ([], r"got \[\]. Name at least one."),
        ("5:3", "got '5:3'. Name at least one."),
        ("2 & 3", "got '2 & 3'. Name at least one."),
        (select("::2") & select("1::2"), "Name at least one."),
        ([[0]], "Write a flat list."),
        ([True], "got True"),
        ("::0", "layers: expected a slice with a step >= 1, got slice.None, None, 0.. Order does not matter"),
        ("::-1", "a slice with a step >= 1"),
        (5000, "layers: expected an index of at most 4095, got 5000. Check the number."),
        ("9999:", "a slice of ints up to 4095"),
        (slice("a"), "a slice of ints up to 4095"),
        (b"1", "got b'1'"),
    ],
    ids=repr,
)
def test_what_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SlidingWindow(8).on_layers(wrong)
    with pytest.raises(UserError, match="^heads: "):
        SlidingWindow(8).on_heads(wrong)


def test_steps_that_take_for_ever_to_repeat_together_are_refused() -> None:
    with pytest.raises(
        UserError, match="expected steps that fit together, got 'a period of 716539'. Write the indices"
    ):
        SlidingWindow(8).on_layers([every(97), every(89), every(83)])


@pytest.mark.parametrize(
    ("n", "start", "message"),
    [
        (0, 0, "every.n: expected an int >= 1, got 0. Write for example every.2, start=1.."),
        (2.0, 0, "every.n: expected an int >= 1, got 2.0"),
        (True, 0, "every.n: expected an int >= 1, got True"),
        (2, -1, "every.start: expected an int >= 0, got -1"),
        (2, "1", "every.start: expected an int >= 0, got '1'"),
    ],
)
def test_every_refuses(n: object, start: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        every(n, start)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("selector", "problem"),
    [
        (30, "layer 30 is out of range"),
        ([0, 31], "layer 31 is out of range"),
        (-31, "layer -31 is out of range"),
        ("0:40", "layer 39 is out of range"),
        ("30:", "layers='30:' chooses no layer"),
        (":-30", "layers=':-30' chooses no layer"),
    ],
)
def test_binding_refuses_what_the_model_has_not(selector: object, problem: str) -> None:
    has = r": this model has 30 layers, numbered 0 to 29 \(or -30 to -1\). Choose among these."
    with pytest.raises(UserError, match=problem + has):
        bind(SlidingWindow(8).on_layers(selector), 30, 9)


def test_binding_names_heads_too_and_looks_at_every_part() -> None:
    with pytest.raises(UserError, match="head 9 is out of range: this model has 9 heads, numbered 0 to 8"):
        bind(SlidingWindow(8).on_heads(9), 30, 9)
    with pytest.raises(UserError, match="layer 30 is out of range"):
        bind(SlidingWindow(8) | SinkTokens(4).on_layers(30), 30, 9)
    with pytest.raises(UserError, match="layer 30 is out of range"):
        bind(FullAttention().on_layers(30, otherwise=SlidingWindow(4)), 30, 9)
    with pytest.raises(UserError, match="head 9 is out of range"):
        bind(SlidingWindow(8).on_heads(9).on_layers(0).in_phase("decode"), 30, 9)


def test_full_attention_for_the_rest_may_be_left_without_a_layer() -> None:
    assert not bind(SlidingWindow(8).on_layers(":4"), 4, 1).layers[3].is_full

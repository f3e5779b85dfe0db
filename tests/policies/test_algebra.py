"""Boolean laws, as equality of values and as meaning; what the predicates say of each other."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from oracle import Model
from strategies import ALL_ATOMS, CLASSES, Chunked, Dilated, build, recipes
from swaa import FullAttention, Predicate, SinkTokens, SlidingWindow, UserError
from swaa.policies import AttentionPolicy, get_policy, policy_names
from swaa.policies.boolean import MOST_ATOMS

MODEL = Model(layers=5, heads=4)
RECIPES = recipes(MODEL, max_leaves=3)  # three of these in one formula stay under its limit of predicates
POLICIES = RECIPES.map(build)
A, B, C = SlidingWindow(8), SinkTokens(4), Chunked(3)
FULL = FullAttention()
NONE = ~FULL

TENTH = settings(max_examples=max(20, settings.default.max_examples // 10))
FIFTH = settings(max_examples=max(20, settings.default.max_examples // 5))


@TENTH
@given(POLICIES, POLICIES, POLICIES)
def test_laws_are_equalities(a: AttentionPolicy, b: AttentionPolicy, c: AttentionPolicy) -> None:
    assert a | b == b | a
    assert a & b == b & a
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert a | a == a == a & a
    assert a | (a & b) == a == a & (a | b)
    assert a & (b | c) == (a & b) | (a & c)
    assert a | (b & c) == (a | b) & (a | c)
    assert ~(a | b) == ~a & ~b
    assert ~(a & b) == ~a | ~b
    assert ~~a == a
    assert a | ~a == FULL == a | FULL
    assert a & ~a == NONE == a & NONE
    assert a & FULL == a == a | NONE
    assert hash(a | b) == hash(b | a)


@TENTH
@given(RECIPES, RECIPES)
def test_equal_policies_mean_the_same_and_others_differ_somewhere(one: oracle.Recipe, two: oracle.Recipe) -> None:
    """Equality of values is equality of meaning, up to what no predicate knows of another."""
    a, b = build(one), build(two)
    cases = [
        (layer, head, phase, q, k)
        for layer in range(MODEL.layers)
        for head in range(MODEL.heads)
        for phase in ("prefill", "decode")
        for q in (0, 3, 7, 20)
        for k in range(q + 1)
    ]
    same = all(oracle.sees(one, MODEL, *case) == oracle.sees(two, MODEL, *case) for case in cases)
    if a == b:
        assert same
        assert hash(a) == hash(b)
    if not same:
        assert a != b


@pytest.mark.parametrize(
    ("policy", "printed"),
    [
        (A | A, "SlidingWindow(8)"),
        (B | A, "SlidingWindow(8) | SinkTokens(4)"),
        (A | (A & B), "SlidingWindow(8)"),
        (SlidingWindow(4) | SlidingWindow(8), "SlidingWindow(8)"),
        (SlidingWindow(4) & SlidingWindow(8), "SlidingWindow(4)"),
        (SinkTokens(4) | SinkTokens(8), "SinkTokens(8)"),
        (SlidingWindow(4) & ~SlidingWindow(8), "~FullAttention()"),
        (SlidingWindow(8) | ~SlidingWindow(4), "FullAttention()"),
        (A | FULL, "FullAttention()"),
        (~FULL, "~FullAttention()"),
        (~(A | B), "~SinkTokens(4) & ~SlidingWindow(8)"),
        ((A | B) & C, "Chunked(3) & SlidingWindow(8) | Chunked(3) & SinkTokens(4)"),
    ],
)
def test_what_simplifies(policy: AttentionPolicy, printed: str) -> None:
    assert repr(policy) == printed


def test_a_scope_in_a_union_widens_it() -> None:
    policy = SlidingWindow(8) | SinkTokens(1).on_layers([3])
    assert policy == (SlidingWindow(8) | SinkTokens(1)).on_layers([3])


def test_many_predicates_in_one_place_simplify_in_no_time() -> None:
    """The truth table has 2**10 rows; a naive minimisation of it takes minutes."""
    atoms = [Dilated(step) for step in range(2, 2 + MOST_ATOMS)]
    start, policy = time.perf_counter(), FULL & atoms[0]
    for atom in atoms[1:]:
        policy = policy & ~atom | ~policy & atom
    for atom in atoms:
        policy = policy | atom & atoms[0]
    assert time.perf_counter() - start < 5
    with pytest.raises(UserError, match="expected at most 10 different predicates in one place, got 11"):
        policy | Chunked(2)


BY_POSITION = [get_policy(name) for name in policy_names() if not get_policy(name).by_content]
EXAMPLES = [policy for kind in BY_POSITION for policy in kind.examples()]


@pytest.mark.parametrize("one", EXAMPLES, ids=repr)
def test_implications_hold(one: AttentionPolicy) -> None:
    """A wrong ``implies`` would simplify a policy into another one."""
    for other in EXAMPLES:
        if one.implies(other):
            for q in range(0, 330, 11):
                assert all(other.visible(q, k) for k in range(q + 1) if one.visible(q, k)), other


@FIFTH
@given(ALL_ATOMS, ALL_ATOMS)
def test_implications_hold_for_random_values(one: oracle.Atom, two: oracle.Atom) -> None:
    if CLASSES[one.name](*one.args).implies(CLASSES[two.name](*two.args)):
        model = Model(1, 1)
        for q in range(30):
            for k in range(q + 1):
                case = (model, 0, 0, "prefill", q, k)
                assert oracle.sees(two, *case) or not oracle.sees(one, *case)


def test_namesakes_with_other_fields_have_an_order_too() -> None:
    namesake = type("Chunked", (Dilated,), {"__module__": __name__})(3)
    longer = dataclasses.make_dataclass("Chunked", ["size", "more"], bases=(Predicate,), frozen=True, repr=False)
    longer.visible, longer.examples, longer.__abstractmethods__ = Dilated.visible, Dilated.examples, frozenset()
    for one in (namesake, longer(3, 4)):
        assert C | one == one | C
        assert C & ~one == ~one & C != C


@pytest.mark.parametrize("wrong", [8, "SlidingWindow(8)", None])
def test_operators_take_policies_only(wrong: object) -> None:
    with pytest.raises(UserError, match=r"right side of '\|': expected an attention policy, got .* Combine policies"):
        A | wrong  # type: ignore[operator]
    with pytest.raises(UserError, match="right side of '&': expected an attention policy"):
        A & wrong  # type: ignore[operator]


@given(st.data())
@TENTH
def test_an_intersection_and_a_union_are_pointwise(data: st.DataObject) -> None:
    """Values compared through the oracle only: two recipes combined against the two read apart."""
    one, two = data.draw(RECIPES), data.draw(RECIPES)
    both, either = build(oracle.Intersection((one, two))), build(oracle.Union((one, two)))
    assert both == build(one) & build(two)
    assert either == build(one) | build(two)
    assert both | either == either
    assert both & either == both

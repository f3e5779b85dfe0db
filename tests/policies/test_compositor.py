"""Scopes and stacks: one normal form beneath both."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from oracle import Model
from strategies import build, places, recipes
from swaa import FullAttention, SinkTokens, SlidingWindow, UserError, every, rule, stack
from swaa.policies import AttentionPolicy, bind

MODEL = Model(layers=5, heads=4)
W, S = SlidingWindow(2048), SinkTokens(100)


def test_the_papers_best_recipe_as_a_stack_and_as_scopes() -> None:
    as_stack = stack(rule(FullAttention(), phase="decode"), rule(FullAttention(), layers="1::2"), rule(W | S))
    assert as_stack == (W | S).in_phase("prefill").on_layers(every(2, start=0))
    assert as_stack == (W | S).on_layers("::2").in_phase("prefill")


RULES = st.lists(st.tuples(places(MODEL), recipes(MODEL, max_leaves=2)), min_size=1, max_size=4)


@settings(max_examples=max(20, settings.default.max_examples // 10))
@given(RULES, recipes(MODEL, max_leaves=2))
def test_a_stack_is_nested_scopes(rules: list[tuple[oracle.Place, oracle.Recipe]], default: oracle.Recipe) -> None:
    listed = [rule(build(part), **vars(place)) for place, part in rules]
    nested: oracle.Recipe = default
    for place, part in reversed(rules):
        nested = oracle.Scope(part, place, nested)
    assert stack(*listed, rule(build(default))) == build(nested)


@settings(max_examples=max(20, settings.default.max_examples // 10))
@given(recipes(MODEL, max_leaves=3), places(MODEL), places(MODEL))
def test_scopes_commute_and_are_idempotent(recipe: oracle.Recipe, one: oracle.Place, two: oracle.Place) -> None:
    def at(inside: oracle.Recipe, place: oracle.Place) -> oracle.Recipe:
        return oracle.Scope(inside, place)

    assert build(at(at(recipe, one), two)) == build(at(at(recipe, two), one))
    assert build(at(at(recipe, one), one)) == build(at(recipe, one))


@pytest.mark.parametrize(
    "policy",
    [
        W.on_layers(":"),
        W.on_layers("0:"),
        W.on_layers(["::2", "1::2"]),
        W.on_layers([":-1", -1]),
        W.on_heads("::1"),
        W.in_phase("prefill", otherwise=W),
        W.in_phase("prefill") & W.in_phase("decode"),
        W.on_layers("::2") & W.on_layers("1::2"),
        stack(rule(W, layers="3:"), rule(W)),
        stack(rule(W, layers=":"), rule(S)),
        stack(rule(W)),
    ],
    ids=range(11),
)
def test_a_scope_that_covers_everything_disappears(policy: AttentionPolicy) -> None:
    assert policy == W
    assert repr(policy) == "SlidingWindow(2048)"


def test_outside_its_scope_a_policy_is_full_attention_or_what_it_says() -> None:
    bound = bind(W.on_layers([0]), 2, 1)
    assert [layer.describe("prefill") for layer in bound.layers] == ["SlidingWindow(2048)", "FullAttention()"]
    bound = bind(W.on_layers([0], otherwise=S), 2, 1)
    assert [layer.describe("prefill") for layer in bound.layers] == ["SlidingWindow(2048)", "SinkTokens(100)"]


def test_layers_that_behave_alike_are_one_value() -> None:
    bound = bind((W | S).in_phase("prefill").on_layers(every(2)), 30, 9)
    assert list(bound.distinct.values()) == [tuple(range(0, 30, 2)), tuple(range(1, 30, 2))]
    assert not bound.layers[0].by_head
    assert bound.layers[0].by_phase
    assert bound.layers[0].describe("decode") == "FullAttention()"
    assert bound.layers[1].is_full


def test_heads_are_grouped_and_described() -> None:
    layer = bind(W.on_heads("::2", otherwise=S.in_phase("decode")), 1, 4).layers[0]
    assert [heads for heads, _ in layer.groups] == [(0, 2), (1, 3)]
    assert layer.describe("prefill") == "heads 0,2: SlidingWindow(2048); heads 1,3: FullAttention()"
    assert layer.describe("decode") == "heads 0,2: SlidingWindow(2048); heads 1,3: SinkTokens(100)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stack(), "stack: expected rules of which the last is the default, got 'no rule'"),
        (
            lambda: stack(rule(W, layers=[0])),
            "got 'a last rule that does not apply everywhere'. End with a rule without",
        ),
        (lambda: stack(W), r"stack: expected rules, got SlidingWindow\(2048\). Wrap each policy: stack\(rule"),  # type: ignore[arg-type]
        (lambda: rule("SlidingWindow(8)"), "rule.policy: expected an attention policy, got 'SlidingWindow"),  # type: ignore[arg-type]
        (lambda: rule(W, phase="prefil"), "phase: expected 'prefill' or 'decode', got 'prefil'. Leave the phase out"),
        (lambda: rule(W, layers="x"), "rule.layers: expected an int, a slice"),
        (lambda: rule(W, heads=[]), r"rule.heads: expected an int, a slice .* got \[\]. Name at least one."),
        (lambda: W.in_phase("Decode"), "phase: expected 'prefill' or 'decode', got 'Decode'"),
        (lambda: W.in_phase("prefill", otherwise=8), "otherwise: expected an attention policy, got 8. Leave it out"),  # type: ignore[arg-type]
    ],
    ids=range(9),
)
def test_what_is_refused(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]

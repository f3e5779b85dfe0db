"""The algebra with policies that look ahead: values, laws, round trips."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

import oracle
import prefix_oracle
import strategies
import swaa
from oracle import Model
from prefix_strategies import ATOMS, Near, known
from strategies import build, recipes
from swaa import (
    BidirectionalPrefix,
    BidirectionalPrompt,
    FullAttention,
    PrefixLM,
    SinkTokens,
    SlidingWindow,
    UserError,
    parse_policy,
    policy_to_dict,
)
from swaa.policies import AttentionPolicy, register_policy

MODEL = Model(2, 2)
RECIPES = recipes(MODEL, ATOMS, max_leaves=3)
FULL, PREFIX, WINDOW = FullAttention(), BidirectionalPrefix(8), SlidingWindow(4)
SHARE = settings(max_examples=max(20, settings.default.max_examples // 25))


@pytest.fixture(scope="module", autouse=True)
def atoms(predicates_of_tests: None) -> Iterator[None]:
    with known():
        register_policy(Near)  # in the copy of the registry
        yield


@SHARE
@given(RECIPES.map(build), RECIPES.map(build), RECIPES.map(build))
def test_laws_without_a_complement_are_equalities_still(
    a: AttentionPolicy, b: AttentionPolicy, c: AttentionPolicy
) -> None:
    assert a | b == b | a
    assert a & b == b & a
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert a | a == a == a & a
    assert a | (a & b) == a == a & (a | b)
    assert a & (b | c) == (a & b) | (a & c)
    assert a | (b & c) == (a | b) & (a | c)
    assert hash(a | b) == hash(b | a)


@SHARE
@given(RECIPES.map(build), RECIPES.map(build))
def test_complements_are_causal(a: AttentionPolicy, b: AttentionPolicy) -> None:
    assert ~(a | b) == ~a & ~b
    assert ~(a & b) == ~a | ~b
    assert ~~a == a & FULL
    assert a & ~a == ~FULL
    assert a | ~a == FULL | a
    assert not (~a).sees_ahead()
    assert not (a & FULL).sees_ahead()
    assert a.in_phase("decode") == (a & FULL).in_phase("decode")
    if not a.sees_ahead():
        assert a & FULL == a == ~~a


def shown(recipe: oracle.Recipe) -> list[bool]:
    """What a recipe shows everywhere up to 24 tokens, earlier keys in both phases and later ones."""
    return [
        prefix_oracle.sees_ahead(recipe, MODEL, layer, head, q, k)
        if k > q and phase == "prefill"
        else oracle.sees(recipe, MODEL, layer, head, phase, q, k)
        for layer in range(MODEL.layers)
        for head in range(MODEL.heads)
        for phase in ("prefill", "decode")
        for q in (0, 1, 5, 11, 20)
        for k in range(24)
    ]


@SHARE
@given(RECIPES, RECIPES)
def test_equal_values_mean_the_same(one: oracle.Recipe, two: oracle.Recipe) -> None:
    same = shown(one) == shown(two)
    assert same or build(one) != build(two)


@SHARE
@given(RECIPES)
def test_round_trips(recipe: oracle.Recipe) -> None:
    policy = build(recipe)
    names = {name: getattr(swaa, name) for name in swaa.__all__} | strategies.CLASSES
    assert eval(repr(policy), names) == policy
    assert parse_policy(repr(policy)) == policy
    mapping = policy_to_dict(policy)
    assert parse_policy(json.loads(json.dumps(mapping))) == policy
    assert parse_policy(yaml.safe_load(yaml.safe_dump(mapping))) == policy


@pytest.mark.parametrize(
    ("policy", "printed"),
    [
        (PrefixLM(), "BidirectionalPrompt()"),
        (PrefixLM(8), "FullAttention() | BidirectionalPrefix(8)"),
        (PREFIX | WINDOW, "SlidingWindow(4) | BidirectionalPrefix(8)"),
        (PREFIX & FULL, "BidirectionalPrefix(8) & FullAttention()"),
        (~~PREFIX, "BidirectionalPrefix(8) & FullAttention()"),
        (~PREFIX, "~BidirectionalPrefix(8)"),
        (~PrefixLM(8), "~FullAttention()"),
        (PREFIX & WINDOW, "BidirectionalPrefix(8) & SlidingWindow(4)"),
        (PREFIX | SinkTokens(8), "SinkTokens(8) | BidirectionalPrefix(8)"),
        (PREFIX | BidirectionalPrefix(9), "BidirectionalPrefix(9)"),
        (PREFIX & BidirectionalPrefix(9), "BidirectionalPrefix(8)"),
        (PrefixLM(8) & PrefixLM(4), "FullAttention() | BidirectionalPrefix(4)"),
        (PrefixLM() | PREFIX, "BidirectionalPrompt()"),
        (PrefixLM() & PREFIX, "BidirectionalPrefix(8)"),
        (PrefixLM().in_phase("prefill"), "BidirectionalPrompt()"),
        (PrefixLM().in_phase("decode"), "FullAttention()"),
        (
            PrefixLM().in_phase("prefill", otherwise=WINDOW),
            "BidirectionalPrompt().in_phase('prefill', otherwise=SlidingWindow(4))",
        ),
    ],
)
def test_what_is_printed(policy: AttentionPolicy, printed: str) -> None:
    assert repr(policy) == printed
    assert parse_policy(printed) == policy


def test_the_pattern_by_name() -> None:
    assert parse_policy("PrefixLM(8)") == parse_policy({"policy": "PrefixLM", "num_tokens": 8}) == FULL | PREFIX
    assert parse_policy("PrefixLM()") == BidirectionalPrompt()


@pytest.mark.parametrize("wrong", [1, 0, True, 2.0, "8"])
def test_lengths_that_are_none(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"BidirectionalPrefix.num_tokens: expected an int >= 2 \(tokens\), got "):
        PrefixLM(wrong)

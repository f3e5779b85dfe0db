"""Policies are values: frozen, hashable, printed as the Python that makes them, the same after a round trip."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

import oracle
import strategies
import swaa
from oracle import Model
from strategies import build, recipes
from swaa import Index, Predicate, SinkTokens, SlidingWindow, every, parse_policy, policy_to_dict
from swaa.policies import registry

pytestmark = pytest.mark.usefixtures("predicates_of_tests")

RECIPES = recipes(Model(layers=7, heads=4))
NAMES = {**{name: getattr(swaa, name) for name in swaa.policies.__all__ if hasattr(swaa, name)}, **strategies.CLASSES}
BEST = (SlidingWindow(2048) | SinkTokens(100)).in_phase("prefill").on_layers(every(2, start=0))

TENTH = settings(max_examples=max(20, settings.default.max_examples // 10))


@TENTH
@given(RECIPES)
def test_round_trips(recipe: oracle.Recipe) -> None:
    policy = build(recipe)
    assert eval(repr(policy), NAMES) == policy
    assert parse_policy(repr(policy)) == policy
    assert parse_policy(policy) is policy
    mapping = policy_to_dict(policy)
    assert parse_policy(mapping) == policy
    assert parse_policy(json.loads(json.dumps(mapping))) == policy
    assert parse_policy(yaml.safe_load(yaml.safe_dump(mapping))) == policy


@TENTH
@given(RECIPES)
def test_one_meaning_has_one_value_text_and_dict(recipe: oracle.Recipe) -> None:
    policy, again = build(recipe), ~~build(recipe)
    assert again == policy
    assert hash(again) == hash(policy)
    assert repr(again) == repr(policy)
    assert policy_to_dict(again) == policy_to_dict(policy)
    assert list(policy_to_dict(again)) == list(policy_to_dict(policy))


def test_the_papers_best_recipe_printed() -> None:
    text = "(SlidingWindow(2048) | SinkTokens(100)).in_phase('prefill').on_layers('::2')"
    assert repr(BEST) == text
    assert policy_to_dict(BEST) == {
        "scope": {
            "scope": {
                "union": [
                    {"policy": "SlidingWindow", "window_size": 2048},
                    {"policy": "SinkTokens", "num_tokens": 100},
                ]
            },
            "phase": "prefill",
        },
        "layers": "::2",
    }


def test_a_mapping_may_say_several_places_and_texts() -> None:
    spec = {"scope": "SlidingWindow(2048) | SinkTokens(100)", "layers": "::2", "phase": "prefill"}
    assert parse_policy(spec) == BEST
    spec = {"stack": [{"rule": "FullAttention()", "layers": ["1::2"]}, {"rule": "SlidingWindow(8)"}]}
    assert parse_policy(spec) == SlidingWindow(8).on_layers("::2")


@pytest.mark.parametrize("policy", [SlidingWindow(8), BEST])
def test_values_are_frozen_and_copied_as_equals(policy: Any) -> None:
    field = next(iter(dataclasses.fields(policy))).name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(policy, field, 3)
    assert copy.deepcopy(policy) == policy == pickle.loads(pickle.dumps(policy))
    assert len({policy, copy.copy(policy)}) == 1


@dataclasses.dataclass(frozen=True, repr=False)
class AllFields(Predicate):
    """A field of every kind that an author may use."""

    places: tuple[int, ...]
    share: float = -0.5
    strict: bool = True
    mode: str = "it's"
    shift: int = -3

    def visible(self, q: Index, k: Index) -> Index:
        return k < self.places[0]

    @classmethod
    def examples(cls) -> Sequence[AllFields]:
        return (cls((1, 2)), cls(()))


@pytest.mark.parametrize(
    "policy", [AllFields((1, 2)), AllFields((7,), 1.5, False, 'a "b"', 4), AllFields(())], ids=repr
)
def test_every_kind_of_field_makes_the_round_trip(policy: AllFields, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_policies", {**registry._policies, "AllFields": AllFields})
    assert eval(repr(policy)) == policy
    assert parse_policy(repr(policy)) == policy
    assert parse_policy(yaml.safe_load(yaml.safe_dump(policy_to_dict(policy)))) == policy
    assert parse_policy(json.loads(json.dumps(policy_to_dict(policy)))) == policy

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from swaa.errors import UserError
from swaa.policies import FullAttention, SinkTokens, SlidingWindow
from swaa.recipe import Decoding, Recipe

PAPER = (SlidingWindow(128) | SinkTokens(10)).in_phase("prefill").on_layers("::2")


def test_a_recipe_comes_back_from_its_dict_through_json() -> None:
    recipe = Recipe("best", PAPER, decoding=Decoding(max_new_tokens=8, temperature=0.7, top_p=0.9, stop=("\n",)))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_policy_may_be_given_as_text_or_mapping() -> None:
    text = "(SinkTokens(10) | SlidingWindow(128)).in_phase('prefill').on_layers('::2')"
    assert Recipe.from_dict({"name": "a", "policy": text}).policy == PAPER
    mapping = {"policy": "SlidingWindow", "window_size": 128}
    assert Recipe.from_dict({"name": "a", "policy": mapping}).policy == SlidingWindow(128)


def test_the_hash_ignores_the_name_the_key_order_and_the_way_of_writing() -> None:
    one = Recipe("one", SlidingWindow(8) | SinkTokens(2))
    other = Recipe.from_dict(
        {
            "decoding": {"seed": 0, "max_new_tokens": 32, "temperature": 0},
            "policy": {"union": ["SinkTokens(2)", {"policy": "SlidingWindow", "window_size": 8}]},
            "name": "other",
        }
    )
    assert one.hash == other.hash
    assert len(one.hash) == 64


@pytest.mark.parametrize(
    "changed",
    [
        {"policy": SlidingWindow(9)},
        {"decoding": Decoding(max_new_tokens=31)},
        {"decoding": Decoding(temperature=0.5)},
        {"decoding": Decoding(seed=1)},
        {"decoding": Decoding(stop=("\n",))},
    ],
)
def test_the_hash_tells_every_other_difference(changed: dict[str, object]) -> None:
    recipe = Recipe("a", SlidingWindow(8))
    assert dataclasses.replace(recipe, **changed).hash != recipe.hash


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    code = "from swaa.recipe import *; from swaa.policies import *; print(Recipe('x', SlidingWindow(8)).hash)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == Recipe("x", SlidingWindow(8)).hash
    golden = "62b9ca9bab37a34f7c7f6f8f2edc2ef4c13c6745a0dbd4197c01b11995cc3aa9"
    assert there == golden, "results on disk are found by this hash: changing it makes them be run again"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, r"Decoding.max_new_tokens: expected an int >= 1, got 0. Set it to 1 or more"),
        ({"max_new_tokens": True}, r"Decoding.max_new_tokens: expected an int >= 1, got True"),
        ({"temperature": -1}, r"Decoding.temperature: expected a number in \[0, 100\], got -1"),
        ({"temperature": "hot"}, r"Decoding.temperature: .* got 'hot'. Write a number without quotes."),
        ({"top_p": 0}, r"Decoding.top_p: expected a number in \(0, 1\], got 0"),
        ({"top_p": float("nan")}, r"Decoding.top_p: expected a number in \(0, 1\], got nan"),
        ({"seed": -1}, r"Decoding.seed: expected an int >= 0, got -1"),
        ({"stop": "\n"}, r"Decoding.stop: expected a list of non-empty strings"),
    ],
)
def test_decoding_refuses_what_makes_no_sense(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Decoding(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "FullAttention()"}, "recipes.3..name: this field is missing. Add it"),
        ({"name": "a"}, "recipes.3..policy: this field is missing. Add it"),
        ({"name": " ", "policy": "FullAttention()"}, "recipes.3..name: expected a non-empty string"),
        (
            {"name": "a", "policy": "SlidingWindow(0)"},
            r"recipes\[3\].policy: SlidingWindow.window_size: expected",
        ),
        (
            {"name": "a", "policy": "SlidingWindw(8)"},
            r"recipes\[3\].policy: unknown .*Did you mean 'SlidingWindow'",
        ),
        (
            {"name": "a", "polcy": "x"},
            r"unknown field 'recipes\[3\].polcy'. Did you mean 'recipes\[3\].policy'",
        ),
        (
            {"name": "a", "policy": "FullAttention()", "prompting": "dirct"},
            r"recipes\[3\].prompting: unknown value 'dirct'. Did you mean 'direct'",
        ),
        (
            {"name": "a", "policy": "FullAttention()", "decoding": {"max_tokens": 4}},
            r"\[3\].decoding.max_tokens.. Did you mean .recipes\[3\].decoding.max_new_tokens",
        ),
        (
            {"name": "a", "policy": "FullAttention()", "decoding": {"top_p": 2}},
            r"recipes\[3\].decoding.top_p: expected a number in \(0, 1\], got 2",
        ),
        ("FullAttention()", r"recipes\[3\]: expected a mapping of fields, got 'FullAttention\(\)'"),
    ],
)
def test_mistakes_in_a_file_are_named_by_their_dotted_path(values: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe.from_dict(values, path="recipes[3]")


def test_settings_of_the_experiment_hold_where_a_recipe_does_not_say() -> None:
    common = Decoding(max_new_tokens=8, seed=5)
    values = {"name": "a", "policy": "FullAttention()", "decoding": {"temperature": 1}}
    recipe = Recipe.from_dict(values, decoding=common)
    assert recipe == Recipe("a", FullAttention(), decoding=Decoding(max_new_tokens=8, seed=5, temperature=1.0))

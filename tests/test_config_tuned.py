"""Experiments that fine-tune: what their files may say, and which recipes share weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swaa.config import Experiment, load_experiment
from swaa.config.finetune import FineTuning
from swaa.config.tuned import OF_THE_EXPERIMENT, fine_tuning_of
from swaa.errors import UserError
from swaa.prompting import Prompting

TRAIN = {"tasks": [{"name": "needle_single"}], "lengths": [400], "num_examples": 4, "seed": 77}
FILE: dict[str, Any] = {
    "fine_tunings": {"sft": {"train": TRAIN}},
    "recipes": [
        {"name": "FA", "policy": "FullAttention()"},
        {"name": "swa", "policy": "SlidingWindow(4)"},
        {"name": "swa, SFT", "policy": "SlidingWindow(4)", "fine_tuning": "sft"},
    ],
    "tasks": [{"name": "needle_single"}],
    "lengths": [400],
    "output": "out",
}


def load(folder: Path, **changes: Any) -> Experiment:
    path = folder / "mine.yaml"
    path.write_text(json.dumps({**FILE, **changes}))
    return load_experiment(path)


def tuned(name: str, policy: str = "SlidingWindow(4)", tuning: str = "sft", **fields: Any) -> dict[str, Any]:
    return {"name": name, "policy": policy, "fine_tuning": tuning, **fields}


def folders(experiment: Experiment) -> dict[str, Path]:
    """The folder of the weights of each fine-tuned recipe."""
    asked = [recipe for recipe in experiment.recipes if recipe.fine_tuning is not None]
    return {recipe.name: fine_tuning_of(experiment, recipe).output for recipe in asked}


def test_an_experiment_with_a_training_comes_back_from_its_file(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    assert [recipe.fine_tuning and recipe.fine_tuning.name for recipe in experiment.recipes] == [None, None, "sft"]
    path = tmp_path / "again.yaml"
    path.write_text(experiment.to_yaml())
    again = load_experiment(path)
    assert again == experiment
    assert [recipe.hash for recipe in again.recipes] == [recipe.hash for recipe in experiment.recipes]
    assert folders(again) == folders(experiment)


def test_the_training_is_under_the_recipes_policy_on_the_experiments_model(tmp_path: Path) -> None:
    experiment = load(tmp_path, model={"name": "./some/model", "device": "cpu"})
    training = fine_tuning_of(experiment, experiment.recipes[2])
    assert isinstance(training, FineTuning)
    assert training.policy == experiment.recipes[2].policy
    assert training.model == experiment.model
    assert training.evaluation is None, "the experiment evaluates"
    assert training.train.seed == 77
    assert training.output.parent == Path("out/fine_tunings")


def test_weights_change_the_hash_of_a_recipe(tmp_path: Path) -> None:
    base = load(tmp_path)
    without, with_ = base.recipes[1:]
    assert without.hash != with_.hash
    assert load(tmp_path, recipes=FILE["recipes"][:2]).recipes[1].hash == without.hash
    for changes in (
        {"seed": 3},
        {"train": {**TRAIN, "seed": 78}},
        {"lora": None},
        {"optimizer": {"learning_rate": 0.1}},
    ):
        other = load(tmp_path, fine_tunings={"sft": {"train": TRAIN, **changes}})
        assert other.recipes[2].hash != with_.hash, changes
        assert folders(other) != folders(base), "another training has another folder"
    told = load(tmp_path, fine_tunings={"sft": {"seed": 0, "train": {**TRAIN, "batch_size": 8}, "validation": None}})
    assert told.recipes[2].hash == with_.hash, "a default that is said is no difference"
    assert folders(told) == folders(base)


def test_recipes_with_one_policy_and_one_training_share_the_weights(tmp_path: Path) -> None:
    recipes = [
        tuned("a"),
        tuned("b", prompting="chain_of_thought"),
        tuned("c", decoding={"max_new_tokens": 3}),
        tuned("d", policy="SlidingWindow(5)"),
        tuned("e", tuning="other"),
    ]
    trainings = {"sft": {"train": TRAIN}, "other": {"train": {**TRAIN, "seed": 78}}}
    found = folders(load(tmp_path, recipes=recipes, fine_tunings=trainings))
    assert found["a"] == found["b"] == found["c"]
    assert len({*found.values()}) == 3
    models = folders(load(tmp_path, recipes=recipes, fine_tunings=trainings, model={"name": "./another"}))
    assert not {*models.values()} & {*found.values()}, "nor do two models"


def test_ways_of_asking_cross_fine_tuned_recipes_too(tmp_path: Path) -> None:
    experiment = load(tmp_path, promptings=["direct", "chain_of_thought"])
    assert len({*folders(experiment).values()}) == 1
    assert list(folders(experiment)) == ["swa, SFT", "swa, SFT, CoT"]


def test_training_data_may_be_asked_in_several_ways(tmp_path: Path) -> None:
    ways = ["direct", {"name": "chain_of_thought", "budget": 8}]
    experiment = load(tmp_path, fine_tunings={"sft": {"train": {**TRAIN, "promptings": ways}}})
    training = fine_tuning_of(experiment, experiment.recipes[2])
    assert training.train.promptings == (Prompting(), Prompting("chain_of_thought", budget=8))
    path = tmp_path / "again.yaml"
    path.write_text(experiment.to_yaml())
    assert load_experiment(path) == experiment


@pytest.mark.parametrize("field", OF_THE_EXPERIMENT)
def test_what_the_experiment_says_cannot_be_said_again(tmp_path: Path, field: str) -> None:
    with pytest.raises(UserError, match=rf"fine_tunings.sft.{field}: the recipe and the experiment say this. Remove"):
        load(tmp_path, fine_tunings={"sft": {"train": TRAIN, field: "x"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fine_tunings": {"sft": {"train": {**TRAIN, "seed": 0}}}},
         r"fine_tunings.sft.*experiment.seed: 0 is train.seed, too, and both ask for needle_single at 400 tokens"),
        ({"seed": 77}, r"seed: 77 is train.seed, too"),
        ({"fine_tunings": {"sft": {"train": TRAIN, "validation": {**TRAIN, "seed": 0}}}},
         r"seed: 0 is validation.seed, too"),
        ({"fine_tunings": {}}, r"recipes\[2\].fine_tuning: unknown value 'sft'.* Known: none"),
        ({"recipes": [tuned("a", tuning="stf")]}, r"recipes\[0\].fine_tuning: unknown value 'stf'. Did you mean 'sft'"),
        ({"recipes": [tuned("a", tuning=3)]}, r"recipes\[0\].fine_tuning: unknown value 3"),  # type: ignore[arg-type]
        ({"fine_tunings": {"sft": {"train": TRAIN, "trian": 3}}}, r"unknown field 'fine_tunings.sft.trian'.*sft.train"),
        ({"fine_tunings": {"sft": {}}}, r"fine_tunings.sft: .*train: this field is missing"),
        ({"fine_tunings": {"sft": 3}}, r"fine_tunings.sft: expected a mapping of fields, got 3"),
        ({"fine_tunings": ["sft"]}, r"fine_tunings: expected a mapping of fields"),
        ({"fine_tunings": {"sft": {"train": {**TRAIN, "promptings": ["cot"]}}}},
         r"fine_tunings.sft: train.promptings\[0\]: unknown value 'cot'"),
        ({"fine_tunings": {"sft": {"train": {**TRAIN, "promptings": []}}}},
         r"fine_tunings.sft: train.promptings: expected a list of at least one prompting"),
        ({"fine_tunings": {"sft": {"train": TRAIN, "lora": None}}, "model": {"dtype": "bfloat16"}},
         r"fine_tunings.sft: .*bfloat16"),
        ({"recipes": [tuned("a"), tuned("b")]}, r"recipes: 'a' and 'b' are the same recipe"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_their_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changes)


def test_other_examples_of_the_same_seed_are_no_mistake(tmp_path: Path) -> None:
    """Another length, or another task."""
    for train in ({**TRAIN, "seed": 0, "lengths": [440]}, {**TRAIN, "seed": 0, "tasks": [{"name": "needle_multikey"}]}):
        assert load(tmp_path, fine_tunings={"sft": {"train": train}}).fine_tunings["sft"]


def test_a_file_is_not_trained_on_and_evaluated_whatever_the_seed(tmp_path: Path) -> None:
    """A seed only shuffles what a file holds, and a grader changes no example."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "Who?", "answer": "She."}\n')
    task = {"name": "file", "path": str(data)}
    for evaluated in (task, {**task, "grader": "exact"}):
        train = {"tasks": [task], "lengths": [300], "seed": 5}
        with pytest.raises(UserError, match=r"fine_tunings.sft.*the same"):
            load(tmp_path, fine_tunings={"sft": {"train": train}}, tasks=[evaluated])


def test_a_training_that_no_recipe_asks_for_is_no_mistake(tmp_path: Path) -> None:
    assert folders(load(tmp_path, recipes=FILE["recipes"][:2])) == {}

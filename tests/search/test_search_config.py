"""Search files: what they may say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swaa.config import Search, load_experiment, load_file, load_search
from swaa.errors import UserError
from swaa.search.choosing import check_precision, half_width, parse_scorers

TASK = [{"name": "needle_single"}]
FILE: dict[str, Any] = {
    "calibration": {"tasks": TASK, "length": 400},
    "space": {"windows": [16], "counts": [0, 2]},
    "scorers": ["add_one", {"name": "drop_one", "metric": "kl"}],
    "test": {"tasks": TASK, "lengths": [400, 440], "num_examples": 20},
}
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def read(**changes: Any) -> Search:
    """The file with whole sections, or ``section__field``, changed."""
    values = json.loads(json.dumps(FILE))
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            values.setdefault(section, {})[field] = value
        else:
            values[section] = value
    return Search.from_dict(values, output="out")


def test_a_search_comes_back_from_its_file(tmp_path: Path) -> None:
    search = read(budget__max_time_ratio=1, controls__patterns=["1::2"], precision=0.3)
    path = tmp_path / "mine.yaml"
    path.write_text(search.to_yaml())
    assert load_search(path) == load_file(path) == search
    assert (search.budget.max_time_ratio, search.precision) == (1.0, 0.3)
    assert (search.request_length, search.request_tokens) == (440, 32)
    assert (read(request__length=9).request_length, read(request__new_tokens=7).request_tokens) == (9, 7)


def test_what_is_measured_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for value, rounds in (({"rounds": 5, "check_length": 0}, 5), ({}, 3), (None, None)):
        search = read(measure=value)
        path.write_text(search.to_yaml())
        assert load_search(path) == search
        assert (search.measure and search.measure.rounds) == rounds
    assert read().measure == read(measure={}).measure
    assert load_search(path, ["measure.rounds=2"]).measure == read(measure={"rounds": 2}).measure
    path.write_text(read().to_yaml())
    assert load_search(path, ["measure=null"]).measure is None


def test_the_search_of_the_repository_is_one(tmp_path: Path) -> None:
    search = load_search(EXPERIMENTS / "search-smollm2.yaml")
    assert [scorer.name for scorer in parse_scorers(search)] == ["gate_gradient", "add_one", "drop_one"]
    with pytest.raises(UserError, match=r"this is a search, not an experiment. Run it with: swaa search"):
        load_experiment(EXPERIMENTS / "search-smollm2.yaml")
    with pytest.raises(UserError, match=r"this is an experiment, not a search. Run it with: swaa run"):
        load_search(EXPERIMENTS / "quickstart.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spase": {}}, "unknown field 'spase'. Did you mean 'space'?"),
        ({"space__window": [1]}, "unknown field 'space.window'. Did you mean 'space.windows'?"),
        (
            {"space__windows": []},
            "space.windows: expected a list of at least one number, got []. Write windows: [128].",
        ),
        ({"space__windows": [0]}, "space.windows[0]: expected an int >= 1, got 0"),
        ({"space__sinks": [-1]}, "space.sinks[0]: expected an int >= 0, got -1"),
        ({"space__counts": [2, 2]}, "space.counts: expected each number once, got 2"),
        ({"space__phases": ["prefil"]}, "space.phases[0]: unknown value 'prefil'. Did you mean 'prefill'?"),
        ({"space__unit": "neurons"}, "space.unit: unknown value 'neurons'"),
        ({"scorers": []}, "scorers: expected a list of at least one scorer, got []"),
        ({"budget__max_time_ratio": 0}, "budget.max_time_ratio: expected a number in (0, 100], got 0"),
        ({"budget__max_full_layers": -1}, "budget.max_full_layers: expected an int >= 0, got -1"),
        ({"budget__max_layers": 1}, "unknown field 'budget.max_layers'. Did you mean 'budget.max_full_layers'?"),
        ({"halving__keep": 0}, "halving.keep: expected a number in (0, 1], got 0"),
        ({"halving__metric": "bleu"}, "halving.metric: unknown value 'bleu'"),
        ({"controls__random": -1}, "controls.random: expected an int >= 0, got -1"),
        ({"controls__same_counts": "yes"}, "controls.same_counts: expected true or false, got 'yes'"),
        ({"scenarios__speedup": 0.5}, "scenarios.speedup: expected a number in [1, 1000], got 0.5"),
        ({"measure__rounds": 0}, "measure.rounds: expected an int >= 1, got 0"),
        ({"measure__rounds": 1.5}, "measure.rounds: expected an int >= 1, got 1.5"),
        ({"measure__check_length": -1}, "measure.check_length: expected an int >= 0, got -1"),
        ({"measure__repeats": 1}, "unknown field 'measure.repeats'."),
        ({"measure__round": 1}, "unknown field 'measure.round'. Did you mean 'measure.rounds'?"),
        (
            {"measure": False},
            "measure: expected fields such as rounds: 3, or null to measure nothing, got False. "
            "Write measure: {rounds: 3}.",
        ),
        ({"precision": 0}, "precision: expected a number in (0, 0.5], got 0"),
        ({"request__length": 0}, "request.length: expected an int >= 1, got 0"),
        ({"calibration": {"tasks": TASK}}, "calibration.length: this field is missing"),
        ({"calibration__tasks": [{"name": "needle"}]}, "calibration.tasks[0]: unknown task 'needle'"),
        ({"test__seed": 1000}, "test.seed: 1000 is calibration.seed, too, and what chooses may not judge."),
        ({"test__seed": 2000}, "test.seed: 2000 is halving.seed, too, and what chooses may not judge."),
        ({"halving__seed": 1000}, "halving.seed: 1000 is calibration.seed, too, and the second stage is to have other"),
        (
            {"space__unit": "heads", "controls__patterns": ["1::2"]},
            "controls.patterns: expected none where the unit is heads, for they name layers, got ['1::2']",
        ),
        (
            {"space__unit": "heads", "budget__max_full_layers": 8},
            "budget.max_full_layers: expected none where the unit is heads, got 8. Leave it out: space.counts says how "
            "many heads keep full attention. Or write unit: layers.",
        ),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(**changes)
    assert str(error.value).startswith(message)


def test_a_file_that_chooses_may_not_judge(tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "What is it?", "answer": "This."}\n')
    tasks = [{"name": "file", "path": str(data)}]
    with pytest.raises(UserError, match=r"test.tasks: file.* offers the same examples whatever the seed"):
        read(calibration__tasks=tasks, test__tasks=tasks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers": ["ad_one"]}, "scorers[0]: unknown scorer 'ad_one'. Did you mean 'add_one'?"),
        ({"scorers": ["add_one", {"name": "drop_one", "metrik": 1}]}, "scorers[1]: unknown field 'drop_one.metrik'."),
        ({"space__unit": "heads"}, "scorers[0]: add_one ranks layers, and space.unit is heads."),
        ({"scorers": ["head_gate"]}, "scorers[0]: head_gate ranks heads, and space.unit is layers."),
        ({"scorers": ["add_one", {"name": "add_one"}]}, "scorers[1]: add_one(metric=nll) is there already."),
    ],
)
def test_scorers_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_scorers(read(**changes))
    assert str(error.value).startswith(message)


def test_too_few_samples_for_the_interval_asked() -> None:
    check_precision(read(precision=0.2), 40)
    with pytest.raises(UserError) as error:
        check_precision(read(precision=0.1), 40)
    told = str(error.value)
    assert told.startswith("test.num_examples: 40 samples know an accuracy to +-0.148, and precision asks for +-0.1.")
    advised = int(told.partition("Set it to ")[2].partition(" ")[0])
    assert half_width(2 * advised) <= 0.1 < half_width(2 * (advised - 3))  # two lengths, so twice as many samples

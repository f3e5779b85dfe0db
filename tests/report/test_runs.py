from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from report.planted import FULL, TUNED, WINDOW, info, plant, record
from swaa.errors import UserError
from swaa.report import find_baseline, read_run
from swaa.report.runs import Sample, Stretch

RECORDS = [record(recipe, example, 1.0) for recipe in (FULL, WINDOW) for example in range(3)]


def test_a_finished_run_comes_back_whole(tmp_path: Path) -> None:
    stretch = {
        "recipe": "FA",
        "recipe_hash": FULL,
        "stretch": 0,
        "nll": 2,
        "delta_nll": 0.0,
        "long_nll": None,
        "key_tokens": 0,
        "tokens": 64,
    }
    dropped = {
        "task": "needle",
        "length_limit": 1800,
        "offered": 9,
        "kept": 8,
        "too_long": [{"example": "e9", "tokens": 2000}],
        "full": 0,
        "left_out": {"images": 2},
    }
    run = read_run(plant(tmp_path / "run", RECORDS, stretches=[stretch], dropped=[dropped]))
    assert run.records == tuple(RECORDS)
    assert (run.complete, run.note, run.finished) == (True, None, 6)
    assert run.perplexity == (Stretch("FA", FULL, 0, 2.0, 0.0, None, 0, 64),)
    assert [recipe.name for recipe in run.info.recipes] == ["FA", "window 128"]
    assert (run.info.recipes[0].is_full_attention, run.info.recipes[1].window) == (True, 128)
    assert run.info.tasks[0].grader == {"name": "recall"}
    assert run.info.model.context is None
    assert (run.info.provenance.hardware.cores, run.info.provenance.versions) == (2, {"torch": "2.13.0"})
    assert (run.dropped[0].too_long[0].tokens, run.dropped[0].left_out) == (2000, {"images": 2})


def test_samples_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    folder = plant(tmp_path / "run", RECORDS)
    run = read_run(folder)
    (folder / "samples.jsonl").write_text(
        '{"task": "needle", "length": 900, "example": "e0", "prompting": "direct", "prompt": "Hay\\u2028",'
        ' "prompt_tokens": 900, "answer": " 0", "references": ["0"], "metadata": {"depths": [0.5]}}\n{"task": "nee',
        encoding="utf-8",
    )
    assert run.samples == (Sample("needle", 900, "e0", "Hay\u2028", 900, " 0", "direct", ("0",), {"depths": [0.5]}),)
    assert run.samples is run.samples
    assert read_run(plant(tmp_path / "other", RECORDS)).samples == ()


def test_a_running_run_is_read_and_told(tmp_path: Path) -> None:
    folder = plant(tmp_path / "run", RECORDS, status="running", asked=16)
    with (folder / "records.jsonl").open("a") as file:
        file.write(RECORDS[0].to_json()[:50])
    run = read_run(folder)
    assert (run.finished, run.complete) == (6, False)
    told = f"{folder} has not ended (it runs, or was interrupted): 6 of 16 samples are on record."
    assert run.note == told
    short = read_run(plant(tmp_path / "short", RECORDS, asked=7))
    assert short.note == f"{tmp_path / 'short'} lacks records: 6 of 7 samples are on record."
    (folder / "records.jsonl").unlink()
    assert read_run(folder).records == ()


def test_records_are_those_of_the_run_in_its_order_under_its_names(tmp_path: Path) -> None:
    others = [record(TUNED, 0, 1.0), record(FULL, 0, 1.0, task="other"), record(FULL, 0, 1.0, length=3)]
    long = record(FULL, 0, 0.0, length=1800)
    renamed = dataclasses.replace(record(WINDOW, 1, 0.0), recipe="former name")
    written = [renamed, *others, long, record(WINDOW, 0, 0.0), record(FULL, 1, 1.0)]
    run = read_run(plant(tmp_path / "run", written))
    assert [(one.recipe, one.length, one.example) for one in run.records] == [
        ("FA", 900, "e1"),
        ("window 128", 900, "e1"),
        ("window 128", 900, "e0"),
        ("FA", 1800, "e0"),
    ]


def folder_of(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "this folder holds no run: it has no run.json. Name a folder that `swaa run` wrote"),
        ({"bench.json": "{}"}, "this folder holds no run"),
        ({"records.jsonl": ""}, "records without run.json: an earlier version of swaa wrote them. Run `swaa run"),
        ({"run.json": "{"}, "run.json: this file is no JSON .*. Run the same `swaa run` again"),
        ({"run.json": "[]"}, r"run.json: expected an object, got \[\]. Run the same"),
        ({"run.json": "{}"}, "run.json: status: this field is missing. Run the same"),
        ({"run.json": '{"format": 2}'}, "run.json: format: expected 1, got 2. Read it with the version"),
    ],
)
def test_what_is_no_run_is_one_clear_error(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_run(folder_of(tmp_path, files))


def test_a_folder_that_is_not_there_or_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such folder. Name the folder that `swaa run` wrote"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: this is a file, not a run's folder"):
        read_run(tmp_path / "file")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("asked", "6", "run.json: asked: expected a whole number, got '6'"),
        ("asked", True, "run.json: asked: expected a whole number, got True"),
        ("model", {"name": "m", "dtype": "float32"}, "run.json: model.device: this field is missing"),
        ("recipes", [{"name": "x", "hash": 3}], r"run.json: recipes\[0\].hash: expected a string, got 3"),
        ("lengths", 900, "run.json: lengths: expected a list, got 900"),
        ("tasks", [{"label": "x", "name": "x", "grader": []}], r"tasks\[0\].grader: expected an object, got \[\]"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, field: str, value: Any, message: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**info(), field: value}))
    with pytest.raises(UserError, match=message):
        read_run(tmp_path)


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    folder = plant(tmp_path / "run", RECORDS)
    (folder / "perplexity.jsonl").write_text('{"recipe": "FA"\n')
    with pytest.raises(UserError, match="perplexity.jsonl:1: this line is no JSON"):
        read_run(folder)
    (folder / "perplexity.jsonl").write_text('{"recipe": "FA", "recipe_hash": "f", "stretch": 0, "nll": "2"}\n')
    with pytest.raises(UserError, match="perplexity.jsonl:1: nll: expected a number, got '2'"):
        read_run(folder)


def test_the_baseline_is_the_model_as_it_is_or_the_one_named(tmp_path: Path) -> None:
    recipes = read_run(plant(tmp_path / "run", RECORDS, recipes=(TUNED, WINDOW, FULL))).info.recipes
    chosen = find_baseline(recipes)
    assert chosen is not None
    assert chosen.name == "FA"
    assert find_baseline(recipes, "window 128") is recipes[1]
    assert find_baseline(recipes[:2]) is None
    with pytest.raises(UserError, match="unknown recipe 'window'. Did you mean 'window 128'?"):
        find_baseline(recipes, "window")

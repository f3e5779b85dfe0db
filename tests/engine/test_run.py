from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swaa.compiler import chunking
from swaa.config import load_experiment
from swaa.engine import decode, run_experiment
from swaa.engine.folder import RunFolder
from swaa.errors import UserError
from swaa.report import Record, read_records, read_run

FORWARD = decode._forward


def comparable(path: Path) -> list[dict[str, Any]]:
    """Records without what is measured in time, in the order of their keys."""
    values = [json.loads(line) for line in path.read_text().splitlines()]
    for value in values:
        value["timing"] = {"new_tokens": value["timing"]["new_tokens"]}
        value["scores"]["forced_nll"] = round(value["scores"]["forced_nll"], 4)
    return sorted(values, key=lambda value: (value["recipe_hash"], value["task"], value["length"], value["example"]))


def test_a_run_leaves_a_record_of_every_sample_and_tables(experiment_file: Path) -> None:
    experiment = load_experiment(experiment_file)
    rows = run_experiment(experiment)
    records = read_records(experiment.output / "records.jsonl")
    assert len(records) == experiment.num_samples == 36
    assert len({record.key for record in records}) == 36
    assert [row.recipe for row in rows] == ["FA", "swa", "half"] * 4
    assert all(row.n == 3 for row in rows)
    check_record(records[0])
    by_name = {row.recipe: row for row in rows}
    assert by_name["FA"].visible_pair_share == by_name["FA"].kv_share == 1
    assert 0 < (by_name["swa"].visible_pair_share or 0) < (by_name["half"].visible_pair_share or 0) < 1
    table = list(csv.DictReader((experiment.output / "table.csv").open()))
    assert [line["recipe"] for line in table] == [row.recipe for row in rows]
    assert (experiment.output / "table.md").read_text().count("| FA |") == 4
    assert load_experiment(experiment.output / "experiment.yaml") == experiment


def check_record(record: Record) -> None:
    assert record.recipe == "FA"
    assert record.prompt_tokens == record.length
    assert record.generated is not None
    assert record.scores.keys() == {"score", "all_correct", "forced_exact", "forced_nll"}
    assert record.timing["prefill_seconds"] > 0
    assert record.timing["batch_size"] == 2
    assert record.versions.keys() == {"python", "swaa", "torch", "transformers", "lightning"}


def test_prompts_read_in_chunks_give_the_same_records(
    experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, passes = ["num_examples=1", "lengths=[400]"], {}
    for name, size in (("whole", "null"), ("chunks", "64"), ("auto", "auto")):
        lengths: list[int] = []
        monkeypatch.setattr(decode, "_forward", counting(lengths))
        monkeypatch.setattr(chunking, "CHUNK_ON_CPU", 100)
        overrides = [*few, f"model.prefill_chunk_size={size}"]
        run_experiment(load_experiment(experiment_file, overrides, output=tmp_path / name))
        passes[name] = [length for length in lengths if length > 50]  # the others read answers, or the rest of a prompt
    whole, chunks, auto = (comparable(tmp_path / name / "records.jsonl") for name in passes)
    assert chunks == whole
    assert auto == whole
    assert passes["whole"] == 6 * [400]
    assert passes["chunks"] == 36 * [64]
    assert sorted(passes["auto"]) == 8 * [100] + 4 * [400], "one recipe of the three slides in all layers"
    with pytest.raises(UserError, match=r"prefill_chunk_size: expected .*, got 0"):
        load_experiment(experiment_file, ["model.prefill_chunk_size=0"])


def counting(lengths: list[int]) -> Callable[..., Any]:
    """The engine's forward pass, which notes how many tokens it is given."""

    def noted(model: Any, ids: torch.Tensor, *args: Any, **options: Any) -> Any:
        lengths.append(ids.shape[1])
        return FORWARD(model, ids, *args, **options)

    return noted


def test_a_finished_run_is_not_run_again_and_needs_no_model(
    experiment_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(experiment_file, ["num_examples=1", "lengths=[400]"])
    first = run_experiment(experiment)
    before = (experiment.output / "records.jsonl").read_bytes()

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("swaa.engine.evaluation.load", refuse)
    assert run_experiment(experiment) == first
    assert (experiment.output / "records.jsonl").read_bytes() == before


def test_a_run_that_was_cut_short_goes_on_to_the_same_records(experiment_file: Path, tmp_path: Path) -> None:
    whole = load_experiment(experiment_file, output=tmp_path / "whole")
    run_experiment(whole)
    cut = load_experiment(experiment_file, output=tmp_path / "cut")
    lines = (whole.output / "records.jsonl").read_text().splitlines(keepends=True)
    with RunFolder(cut):
        torn = "".join(lines[:7]) + lines[7][:50]  # an odd number: one batch is half done, one line is torn
        (cut.output / "records.jsonl").write_text(torn)
    rows = run_experiment(cut)
    assert comparable(cut.output / "records.jsonl") == comparable(whole.output / "records.jsonl")
    assert (cut.output / "records.jsonl").read_text().startswith("".join(lines[:7])), "what was there stays"
    assert sum(row.n for row in rows) == whole.num_samples


def test_more_examples_and_recipes_are_added_to_what_is_there(experiment_file: Path) -> None:
    small = ["lengths=[400]", "num_examples=2"]
    run_experiment(load_experiment(experiment_file, small))
    experiment = load_experiment(experiment_file, ["lengths=[400]", "num_examples=3"])
    path = experiment.output / "records.jsonl"
    before = path.read_text()
    assert {row.n for row in run_experiment(experiment)} == {3}
    assert path.read_text().startswith(before)
    assert len(read_records(path)) == 18
    assert {row.n for row in run_experiment(load_experiment(experiment_file, small))} == {2}, "fewer are asked for"
    assert len(read_records(path)) == 18


def test_only_what_is_asked_for_is_scored(experiment_file: Path) -> None:
    small = ["num_examples=1", "lengths=[400]", "scoring=[teacher_forced]"]
    experiment = load_experiment(experiment_file, small)
    row = run_experiment(experiment)[0]
    record = read_records(experiment.output / "records.jsonl")[0]
    assert record.generated is None
    assert record.scores.keys() == {"forced_exact", "forced_nll"}
    assert row.accuracy is None
    assert row.forced is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lengths=[2045]", r"lengths: 2045 prompt tokens and 6 new ones are 2051 tokens, .* context of .* is 2048. "
         r"Ask for a length of at most 2042, or choose a model with a longer context."),
        ("recipes[2].policy=SlidingWindow(8).on_layers([9])", r"recipe 'half': .*layer"),
        ("model.name=./no/such/model", "there is no such model folder"),
        ("lengths=[20]", "length of needle_single: expected at least"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_runs(experiment_file: Path, override: str, message: str) -> None:
    experiment = load_experiment(experiment_file, [override])
    with pytest.raises(UserError, match=message):
        run_experiment(experiment)
    assert not (experiment.output / "records.jsonl").exists()


def test_a_mistake_in_the_model_name_does_not_spoil_the_folder(experiment_file: Path) -> None:
    small = ["num_examples=1", "lengths=[400]"]
    with pytest.raises(UserError, match="no such model folder"):
        run_experiment(load_experiment(experiment_file, [*small, "model.name=./no/such/model"]))
    assert len(run_experiment(load_experiment(experiment_file, small))) == 6


def test_another_text_in_the_haystacks_file_is_another_experiment(experiment_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "haystack.txt"
    text.write_text("The tide came in over the sand. " * 200)
    task = f"tasks=[{{name: needle_single, haystack: file, haystack_file: {text}}}]"
    experiment = load_experiment(experiment_file, [task, "num_examples=1", "lengths=[400]"])
    records = experiment.output / "records.jsonl"
    run_experiment(experiment)
    before = {record.example for record in read_records(records)}
    run_experiment(experiment)
    assert {record.example for record in read_records(records)} == before
    text.write_text("A train left the town at dawn. " * 200)
    run_experiment(experiment)
    assert len({record.example for record in read_records(records)} - before) == 1


def test_a_run_that_asks_for_less_by_other_names_is_described_anew(experiment_file: Path) -> None:
    run_experiment(load_experiment(experiment_file))
    fewer = load_experiment(experiment_file, ["num_examples=2", "recipes[0].name=full"])
    run_experiment(fewer)
    found = read_run(fewer.output)
    assert [recipe.name for recipe in found.info.recipes] == ["full", "swa", "half"]
    assert found.complete
    assert found.info.asked == len(found.records) == fewer.num_samples


def test_a_text_is_measured_in_a_run_and_when_it_is_asked_for_later(experiment_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes Jack a dull boy. " * 40)
    run_experiment(load_experiment(experiment_file, ["num_examples=1", "lengths=[400]"]))
    asked = f"perplexity={{num_stretches: 2, length: 128, short_length: 16, text_file: {text}}}"
    rows = run_experiment(load_experiment(experiment_file, ["num_examples=1", "lengths=[400]", asked]))
    shown = {row.recipe: row.delta_nll for row in rows}
    assert shown["FA"].value == 0
    assert shown["swa"].value != 0
    assert len(read_run(load_experiment(experiment_file).output).perplexity) == 2 * 3


def test_a_judge_without_an_endpoint_is_told_before_the_model_is_loaded(
    experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SWAA_JUDGE_BASE_URL", raising=False)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "Say yes.", "question": "?", "answer": "yes"}\n')
    task = f"tasks=[{{name: file, path: {data}, grader: {{name: judge, model: m}}}}]"
    with pytest.raises(UserError, match="SWAA_JUDGE_BASE_URL"):
        run_experiment(load_experiment(experiment_file, [task, "model.name=/nowhere"]))

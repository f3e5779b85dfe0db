"""``run.json`` and ``samples.jsonl``: all that a report needs to know of a run, and what it knows while it runs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from swaa.config import Experiment, load_experiment
from swaa.engine import run_experiment
from swaa.engine.folder import RecordWriter
from swaa.engine.interrupt import Interrupted
from swaa.report import Record, read_records
from swaa.report.runs import read_run

SMALL = ["num_examples=2", "lengths=[400]"]
COT = "{name: cot, policy: SlidingWindow(32), prompting: {name: chain_of_thought, budget: 2}}"
FULL = "{name: FA, policy: FullAttention()}"
WINDOWS = "{name: two, policy: \"SlidingWindow(16).on_layers([0]) | SlidingWindow(48).in_phase('decode')\"}"


@pytest.fixture
def experiment(experiment_file: Path, tmp_path: Path) -> Experiment:
    """Three recipes on a task of our own and on a file of which one example is too long."""
    lines = [{"prompt": "x" * size + " Who?", "answer": "She"} for size in (10, 500, 20, 200)]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    tasks = f"tasks=[{{name: needle_single}}, {{name: file, path: {data}}}]"
    return load_experiment(experiment_file, [f"recipes=[{FULL}, {COT}, {WINDOWS}]", tasks, *SMALL, "num_examples=4"])


def test_run_json_says_what_was_run(experiment: Experiment) -> None:
    run_experiment(experiment)
    values = json.loads((experiment.output / "run.json").read_text())
    assert values["format"] == 1
    assert values["status"] == "finished"
    told = {key: values["model"][key] for key in ("name", "dtype", "device", "num_layers", "num_heads", "context")}
    assert told == {
        "name": experiment.model.name, "dtype": "float32", "device": "cpu",
        "num_layers": 4, "num_heads": 4, "context": 2048,
    }  # fmt: skip
    assert [recipe["name"] for recipe in values["recipes"]] == ["FA", "cot", "two"]
    assert [recipe["hash"] for recipe in values["recipes"]] == [recipe.hash for recipe in experiment.recipes]
    assert [recipe["policy"] for recipe in values["recipes"]] == [repr(one.policy) for one in experiment.recipes]
    assert [recipe["window"] for recipe in values["recipes"]] == [None, 32, 48], "the largest one"
    assert [recipe["prompting"] for recipe in values["recipes"]] == ["direct", "chain_of_thought", "direct"]
    assert [recipe["fine_tuning"] for recipe in values["recipes"]] == [None] * 3
    assert values["recipes"][0]["decoding"]["max_new_tokens"] == 6
    assert [(task["label"], task["name"]) for task in values["tasks"]] == [
        (task.label, task.name) for task in experiment.tasks
    ]
    assert [task["grader"] for task in values["tasks"]] == [{"name": "recall"}] * 2
    expected = {"lengths": [400], "num_examples": 4, "seed": 0, "scoring": ["generate", "teacher_forced"]}
    assert {key: values[key] for key in expected} == expected
    check_dropped(values)
    check_provenance(values["provenance"])


def check_dropped(values: dict[str, Any]) -> None:
    """Four questions of our own, and three of the file: 500 characters are too many."""
    assert values["asked"] == 3 * (4 + 3)
    (dropped,) = values["dropped"]
    assert dropped["task"] == values["tasks"][1]["label"]
    assert {key: dropped[key] for key in ("length_limit", "offered", "kept")} == {
        "length_limit": 400, "offered": 4, "kept": 3,
    }  # fmt: skip
    (long,) = dropped["too_long"]
    assert long["example"].endswith("questions-2")
    assert long["tokens"] == 505 + 3


def check_provenance(values: dict[str, Any]) -> None:
    assert values.keys() >= {"git", "versions", "hardware", "command", "started"}
    assert values["versions"].keys() >= {"python", "swaa", "torch", "transformers", "lightning"}
    assert values["hardware"].keys() >= {"processor", "cores", "gpu", "memory_bytes"}
    assert values["hardware"]["cores"] >= 1
    assert values["hardware"]["memory_bytes"] > 1e8
    assert values["command"].partition(" ")[0] == "swaa"


def test_samples_are_written_as_the_model_got_them(experiment: Experiment, tokenizer: Any) -> None:
    run_experiment(experiment)
    lines = [json.loads(line) for line in (experiment.output / "samples.jsonl").read_text().splitlines()]
    wanted = {"task", "length", "example", "prompting", "prompt", "prompt_tokens", "answer", "references", "metadata"}
    assert all(line.keys() >= wanted for line in lines)
    places = [(line["task"], line["length"], line["example"], line["prompting"]) for line in lines]
    assert len({*places}) == len(places) == 2 * (4 + 3), "one an example and way of asking"
    for line in lines:
        assert len(tokenizer(line["prompt"], add_special_tokens=False)["input_ids"]) == line["prompt_tokens"]
        assert line["prompt"].count("<|assistant|>") == 1
        assert ("Think step by step" in line["prompt"]) == (line["prompting"] == "chain_of_thought")
        begin = line["metadata"]["prompt_start"]
        for start, end in line["metadata"].get("spans", []):
            assert line["prompt"][begin + start : begin + end].strip()
    records = read_records(experiment.output / "records.jsonl")
    sizes = {(line["example"], line["prompting"]): line["prompt_tokens"] for line in lines}
    assert all(sizes[record.example, record.prompting] == record.prompt_tokens for record in records)


def test_a_report_reads_what_a_run_wrote(experiment: Experiment) -> None:
    run_experiment(experiment)
    run = read_run(experiment.output)
    assert run.complete
    assert run.note is None
    assert run.finished == run.info.asked == 21
    assert [recipe.is_full_attention for recipe in run.info.recipes] == [True, False, False]
    assert [recipe.window for recipe in run.info.recipes] == [None, 32, 48]
    assert len(run.samples) == 14
    assert run.dropped[0].too_long[0].tokens == 508
    assert run.info.provenance.hardware.memory_bytes is not None
    named = {(sample.task, sample.length, sample.example, sample.prompting) for sample in run.samples}
    assert all((one.task, one.length, one.example, one.prompting) in named for one in run.records)


def test_a_run_that_is_interrupted_stays_running(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the first batch: what is there can be read, and going on finishes it."""
    append = RecordWriter.append

    def interrupted(writer: RecordWriter, records: Iterable[Record]) -> None:
        append(writer, records)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "append", interrupted)
        with pytest.raises(Interrupted, match="finished samples are kept"):
            run_experiment(experiment)
    run = read_run(experiment.output)
    assert run.info.status == "running"
    assert run.info.asked == 21
    assert 0 < run.finished < 21
    assert run.note is not None
    assert f"{run.finished} of 21" in run.note
    assert not (experiment.output / "table.md").exists()
    run_experiment(experiment)
    assert read_run(experiment.output).complete


def test_a_finished_run_that_is_asked_for_more_runs_again(experiment_file: Path) -> None:
    run_experiment(load_experiment(experiment_file, SMALL))
    more = load_experiment(experiment_file, ["num_examples=3", "lengths=[400]"])
    rows = run_experiment(more)
    info = read_run(more.output).info
    assert (info.status, info.num_examples, info.asked) == ("finished", 3, 3 * 2 * 3)
    assert {row.n for row in rows} == {3}

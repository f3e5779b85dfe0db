"""Several processes share an evaluation: the same records as one makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forking import Forks
from swaa.config import load_experiment
from swaa.engine.folder import RunFolder
from swaa.report import Record, read_run
from swaa.report.records import record_parts

OF_THE_PROCESS = ("timing", "git")


def answers(folder: Path) -> dict[Any, dict[str, Any]]:
    """The records without what differs from run to run, by key."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    assert len(lines) == len({Record.from_json(line).key for line in lines}), "a sample was run twice"
    found = {}
    for line in lines:
        values = {name: value for name, value in json.loads(line).items() if name not in OF_THE_PROCESS}
        values["timing"] = {"batch_size": json.loads(line)["timing"]["batch_size"]}
        found[Record.from_json(line).key] = values
    return found


def run(forks: Forks, file: Path, output: Path, *overrides: str, ranks: int = 1) -> None:
    """A whole run that goes well. A second process is started by the first one, or each rank's as a launcher would."""
    started = forks.start(["run", str(file), *overrides, "--output", str(output)], ranks=ranks)
    assert started.end() == [0] * ranks, started.err


@pytest.mark.slow
def test_two_processes_make_the_records_of_one(forks: Forks, experiment_file: Path, tmp_path: Path) -> None:
    run(forks, experiment_file, tmp_path / "one")
    run(forks, experiment_file, tmp_path / "two", "trainer.devices=2")
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    assert not record_parts(tmp_path / "two")
    assert read_run(tmp_path / "two").complete
    for table in ("table.md",):
        columns = [line.split("|")[:6] for line in (tmp_path / "one" / table).read_text().splitlines()]
        assert columns == [line.split("|")[:6] for line in (tmp_path / "two" / table).read_text().splitlines()]


def test_what_a_killed_process_wrote_is_kept(experiment_file: Path, tmp_path: Path) -> None:
    """Records of a second process lie in a file of its own until the run ends; the next run takes them over."""
    experiment = load_experiment(experiment_file, output=tmp_path / "run")
    records = [Record("FA", "0" * 64, "needle_single", 400, f"e{index}", 0, 400, " 1") for index in range(4)]
    with RunFolder(experiment) as folder:
        folder.writer(0).append(records[:2])
        folder.writer(1).append(records[1:])  # one of them twice
        part = tmp_path / "run" / "records-1.jsonl"
        part.write_text(part.read_text() + '{"torn')
        assert [record.example for record in folder.records()] == ["e0", "e1", "e2", "e3"]
    with RunFolder(experiment) as folder:
        assert not part.exists()
        assert (tmp_path / "run" / "records.jsonl").read_text().count("\n") == 4
        assert folder.records() == records


@pytest.mark.slow
def test_processes_with_nothing_to_do_keep_the_others_company(
    forks: Forks, experiment_file: Path, tmp_path: Path
) -> None:
    """A run that lacks a single batch, of a single set of weights, ends as it does in one process.

    The two are started as a launcher starts them, which the other tests do not, and without the seconds of imports.
    """
    few = ["num_examples=1", "lengths=[400]", "tasks=[{name: needle_single}]"]
    run(forks, experiment_file, tmp_path / "run", *few)
    records = tmp_path / "run" / "records.jsonl"
    whole = answers(tmp_path / "run")
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:-1]))
    run(forks, experiment_file, tmp_path / "run", *few, "trainer.devices=2", ranks=2)
    assert answers(tmp_path / "run") == whole

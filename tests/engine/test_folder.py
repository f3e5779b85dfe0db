from __future__ import annotations

from pathlib import Path

import pytest

from swaa.config import Experiment, load_experiment
from swaa.engine.folder import RunFolder
from swaa.errors import UserError
from swaa.report import Record


def record(example: str = "e0") -> Record:
    return Record("FA", "0" * 64, "needle_single", 400, example, 0, 400, " 1")


@pytest.fixture
def experiment(experiment_file: Path) -> Experiment:
    return load_experiment(experiment_file)


@pytest.fixture
def used(experiment: Experiment) -> Experiment:
    """An experiment whose folder has a record."""
    with RunFolder(experiment) as folder:
        folder.append([record()])
    return experiment


def test_a_line_is_on_disk_as_soon_as_it_is_appended(experiment: Experiment) -> None:
    with RunFolder(experiment) as folder:
        folder.append([record("a"), record("b")])
        assert (experiment.output / "records.jsonl").read_text().count("\n") == 2
        assert folder.finished() == {record("a").key, record("b").key}


def test_a_torn_last_line_is_dropped(used: Experiment) -> None:
    path = used.output / "records.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + good[:-1])  # complete, but for its line end: it cannot be trusted either
    with RunFolder(used) as folder:
        assert len(folder.records()) == 1
        folder.append([record("b")])
    assert path.read_bytes() == good + (record("b").to_json() + "\n").encode()


def test_a_spoilt_line_in_the_middle_is_named(used: Experiment) -> None:
    path = used.output / "records.jsonl"
    path.write_text("{nonsense\n" + path.read_text())
    with pytest.raises(UserError, match=r"records.jsonl:1: this line is no record .* or begin anew with --fresh"):
        RunFolder(used).__enter__()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "seed: 0 there, 1 now"),
        ("model.dtype=bfloat16", "model.dtype: 'float32' there, 'bfloat16' now"),
        ("scoring=[generate]", r"scoring: \['generate', 'teacher_forced'\] there, \['generate'\] now"),
        (
            "recipes[1].policy=SlidingWindow(9)",
            r"recipe 'swa': policy: .*SlidingWindow\(16\).* there, SlidingWindow\(9\) now",
        ),
        (
            "decoding.max_new_tokens=7",
            r"recipe 'FA': decoding: .*max_new_tokens=6.* there, .*max_new_tokens=7.* now",
        ),
    ],
)
def test_a_folder_of_a_different_experiment_is_refused(
    used: Experiment, experiment_file: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        RunFolder(load_experiment(experiment_file, [override])).__enter__()
    assert "Choose another folder with --output, or delete these results with --fresh." in str(caught.value)
    with RunFolder(used):
        pass  # the refusal changed nothing


@pytest.mark.parametrize(
    "override",
    [
        "num_examples=9",
        "lengths=[500]",
        "batch_size=1",
        "recipes[1].name=other",
        "tasks=[{name: needle_single}]",
    ],
)
def test_what_leaves_records_comparable_is_allowed(used: Experiment, experiment_file: Path, override: str) -> None:
    with RunFolder(load_experiment(experiment_file, [override])) as folder:
        assert len(folder.records()) == 1


def test_fresh_deletes_the_former_results_and_nothing_else(used: Experiment, experiment_file: Path) -> None:
    (used.output / "notes.txt").write_text("mine")
    with RunFolder(load_experiment(experiment_file, ["seed=1"]), fresh=True) as folder:
        assert folder.records() == []
    assert (used.output / "notes.txt").read_text() == "mine"


def test_records_without_their_experiment_are_refused(used: Experiment) -> None:
    (used.output / "experiment.yaml").unlink()
    with pytest.raises(UserError, match="has records, and no experiment.yaml to say of what"):
        RunFolder(used).__enter__()


def test_two_runs_do_not_share_a_folder(used: Experiment) -> None:
    with (
        RunFolder(used),
        pytest.raises(UserError, match="another process is running in .*Wait for it, or choose another"),
    ):
        RunFolder(used).__enter__()
    with RunFolder(used):
        pass  # it is free again


def test_an_output_that_is_a_file_is_refused(experiment_file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"output folder .*taken: .*Choose another with --output."):
        RunFolder(load_experiment(experiment_file, output=tmp_path / "taken")).__enter__()

"""The folder of a training: what it deletes, what it refuses, and what may differ when it goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from plants import Write, conversations, write_lines
from swaa.cli import main
from swaa.config import load_finetuning
from swaa.engine.tuning import run_finetuning
from swaa.engine.tuning.checkpoint import FolderCheckpoints, best, load_weights
from swaa.engine.tuning.outcome import Outcome

SHORT = {"max_steps": 2}


def tune(file: Path, *overrides: str, output: Path | None = None) -> Outcome:
    outcome = run_finetuning(load_finetuning(file, overrides, output=output), console=Console(quiet=True))
    assert outcome is not None
    return outcome


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- whose folder it is


@pytest.mark.parametrize("fresh", [[], ["--fresh"]], ids=["", "fresh"])
@pytest.mark.parametrize("name", ["logs", "checkpoints", "merged", "before", "after", "report.md", "finetune.yaml"])
def test_what_no_training_wrote_is_left_alone(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, fresh: list[str]
) -> None:
    mine = tmp_path / "mine"
    path = mine / name if "." in name else mine / name / "work.txt"
    path.parent.mkdir(parents=True)
    path.write_text("policy: FullAttention()\n")
    before = contents(mine)
    assert main(["finetune", str(write_config()), "-o", str(mine), *fresh]) == 2
    told = capsys.readouterr().err
    assert told == (
        f"swaa: error: output folder {mine}: {name}: already there, and no fine-tuning wrote them. Choose another with "
        "--output; nothing was touched.\n"
    )
    assert contents(mine) == before


def test_merging_into_a_folder_with_something_in_it(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(write_config(train=SHORT)).merged.parent
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    capsys.readouterr()
    assert main(["merge", str(run), "-o", str(mine)]) == 2
    said = f"swaa: error: --output: {mine} is not empty. Choose another folder; nothing in it was touched.\n"
    assert capsys.readouterr().err == said
    assert contents(mine) == {"config.json": b"{}"}


# --- what may differ


def unfinished(file: Path, output: Path) -> None:
    """As it stands before the last checkpoint is merged."""
    tune(file, output=output)
    shutil.rmtree(output / "merged")
    shutil.rmtree(max((output / "checkpoints").glob("step-*")))


def test_settings_of_the_machine_and_of_the_end_may_differ(
    write_config: Write, data_file: Path, tmp_path: Path
) -> None:
    file = write_config(validation={"files": [str(data_file)], "every": 2, "patience": 50}, lora=None)
    unfinished(file, tmp_path / "out")
    changes = ["model.kernel=dense", "model.device=auto", "validation.patience=90", "validation.min_delta=0.5"]
    outcome = tune(file, *changes, "trainer.publish=best", output=tmp_path / "out")
    assert outcome.merged.is_dir()


def test_more_patience_goes_on_where_less_had_stopped(write_config: Write, data_file: Path, tmp_path: Path) -> None:
    """No loss is better than the first by 1000 nats, so that every look counts against the patience."""
    never = {"files": [str(data_file)], "every": 1, "min_delta": 1000}
    file = write_config(validation={**never, "patience": 2})
    first = tune(file, output=tmp_path / "out")
    assert max(row["step"] for row in first.metrics) < 6
    shutil.rmtree(first.merged)
    again = tune(file, "validation.patience=90", output=tmp_path / "out")
    assert max(row["step"] for row in again.metrics) == 6


def test_data_is_known_by_its_content(write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_lines(tmp_path / "data.jsonl", conversations())
    file = write_config(train={"files": [str(data)]})
    unfinished(file, tmp_path / "out")
    moved = data.rename(tmp_path / "moved.jsonl")
    tune(file, f"train.files=[{moved}]", output=tmp_path / "out")
    other = write_lines(tmp_path / "other.jsonl", [*conversations()[:-1], {**conversations()[-1], "answer": "else"}])
    capsys.readouterr()
    assert main(["finetune", str(file), "-o", str(tmp_path / "out"), f"train.files=[{other}]"]) == 2
    told = capsys.readouterr().err
    assert f"  train.files: ['{moved}'] there, ['{other}'] now\n" in told
    assert told.index("--output") < told.index("--fresh")


def test_a_section_that_is_new_or_gone_is_one_line(
    write_config: Write, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(train=SHORT)
    tune(file)
    changes = ["lora=null", "annealing={start_window: 64}", f"validation={{files: [{data_file}]}}"]
    capsys.readouterr()
    assert main(["finetune", str(file), *changes]) == 2
    listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    assert [line.strip().partition(":")[0] for line in listed] == ["annealing", "lora", "validation"]
    assert listed[1].endswith(" there, None now")


def test_another_checkpoint_is_published_when_it_is_asked_for(
    write_config: Write, data_file: Path, tmp_path: Path
) -> None:
    """And the figures after the training are those of the new weights."""
    wrong = write_lines(
        tmp_path / "wrong.jsonl", [{**line, "answer": line["answer"][::-1]} for line in conversations()]
    )
    file = write_config(
        lora=None,
        optimizer={"learning_rate": 4e-3, "schedule": "constant"},
        train={"epochs": 12},
        validation={"files": [str(wrong)], "every": 2},
        evaluation=CHEAP,
    )
    first = tune(file)
    folder = first.merged.parent
    last = load_file(first.merged / "model.safetensors")
    again = tune(file, "trainer.publish=best")
    weights, kept = load_file(again.merged / "model.safetensors"), load_weights(folder / "checkpoints" / "best")
    assert any(not torch.equal(last[name], weights[name]) for name in last), (
        "the test needs a best that is not the last"
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(weights[name], kept[f"model.{name}"])
    assert again.texts["after"] != first.texts["after"]
    assert again.rows["after"][0].nll != first.rows["after"][0].nll
    assert again.rows["before"] == first.rows["before"]


# --- evaluations

CHEAP: dict[str, Any] = {
    "tasks": [{"name": "needle_single"}],
    "lengths": [300],
    "num_examples": 1,
    "decoding": {"max_new_tokens": 2},
    "text_tokens": 300,
    "text_window": 100,
}


def test_another_evaluation_leaves_the_training(write_config: Write, tmp_path: Path) -> None:
    file = write_config(train=SHORT, evaluation=CHEAP)
    tune(file)
    weights = contents(tmp_path / "tune" / "checkpoints"), contents(tmp_path / "tune" / "merged")
    other = ["evaluation.seed=7", "evaluation.scoring=[teacher_forced]", "evaluation.text_window=60"]
    outcome = tune(file, *other)
    assert contents(tmp_path / "tune" / "checkpoints") == weights[0]
    assert (tmp_path / "tune" / "merged" / "model.safetensors").read_bytes() == weights[1]["model.safetensors"]
    expected = tune(file, *other, output=tmp_path / "expected")
    losses = [[row.nll for one in (outcome, expected) for row in one.rows[when]] for when in ("before", "after")]
    assert all(here[:2] == here[2:] and None not in here for here in losses)
    assert outcome.texts == expected.texts
    for when in ("before", "after"):
        lines = (tmp_path / "tune" / when / "records.jsonl").read_text().splitlines()
        assert len(lines) == 2, "those of the former evaluation are gone"


def test_a_text_is_known_by_its_content(write_config: Write, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps. " * 40)
    file = write_config(train=SHORT, evaluation={**CHEAP, "text_file": str(text)})
    first = tune(file)
    text.write_text("some other words are here. " * 40)
    assert tune(file).texts["before"] != first.texts["before"]


def test_a_run_may_be_moved_and_named_otherwise(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_config(train=SHORT, evaluation=CHEAP)
    first = tune(file)
    (tmp_path / "tune").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for output in (tmp_path / "moved", Path("moved")):
        capsys.readouterr()
        again = tune(file, output=output)
        assert "Loading" not in capsys.readouterr().err, "nothing is measured again"
        assert (again.rows, again.texts) == (first.rows, first.texts)


# --- checkpoints


def checkpoint(value: float) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((3,), value)}, "global_step": 1}


@pytest.mark.parametrize("moment", [1, 2])
def test_the_best_is_there_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    writer = FolderCheckpoints()
    writer.save_checkpoint(checkpoint(1.0), tmp_path / "best")
    rename, times = Path.rename, [0]

    def cut_off(self: Path, target: Path) -> Path:
        times[0] += 1
        if times[0] == moment:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", cut_off)
    with pytest.raises(KeyboardInterrupt):
        writer.save_checkpoint(checkpoint(2.0), tmp_path / "best")
    monkeypatch.undo()
    kept = best(tmp_path)
    assert kept is not None
    assert load_weights(kept)["w"].tolist() == [1.0] * 3
    writer.save_checkpoint(checkpoint(3.0), tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert load_weights(tmp_path / "best")["w"].tolist() == [3.0] * 3


def test_the_name_of_a_checkpoint_is_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, seen = os.fsync, []

    def note(descriptor: int) -> None:
        sync(descriptor)
        named = os.fstat(descriptor).st_ino
        seen.append((named == tmp_path.stat().st_ino, (tmp_path / "step-000001").exists()))

    monkeypatch.setattr(os, "fsync", note)
    FolderCheckpoints().save_checkpoint(checkpoint(1.0), tmp_path / "step-000001")
    assert seen[-1] == (True, True)
    assert len([one for one in seen if not one[1]]) == 3, "two files and their folder, before it has its name"

"""Kill -9, Ctrl-C, and going on: a training that was cut off ends as one that was not, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from forking import PATIENCE, Forks
from plants import Write, conversations, write_lines
from swaa.cli import main
from swaa.config import load_finetuning
from swaa.engine.tuning import run_finetuning
from swaa.engine.tuning.module import FineTuner
from swaa.engine.tuning.outcome import Outcome

NOT_EQUAL = ("train/seconds", "train/tokens_per_second")


def tune(file: Path, output: Path, *overrides: str, fresh: bool = False) -> Outcome:
    config = load_finetuning(file, overrides, output=output)
    outcome = run_finetuning(config, fresh=fresh, console=Console(quiet=True))
    assert outcome is not None
    return outcome


def cut(forks: Forks, file: Path, output: Path, when: Callable[[], bool], how: signal.Signals = signal.SIGKILL) -> str:
    """Start a training in a process of its own and end it at a moment; what it said."""
    process = forks.start(["finetune", str(file), "-o", str(output)], threads=torch.get_num_threads())
    deadline = time.monotonic() + PATIENCE
    while not when():
        assert process.running, process.err
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    os.kill(process.pids[0], how)
    assert process.end() == [130 if how is signal.SIGINT else -how], process.err
    return process.err


def steps_logged(output: Path) -> int:
    """Of the latest part."""
    parts = sorted((output / "logs" / "csv").glob("from_step_*/metrics.csv"))
    return parts[-1].read_text().count("\n") - 1 if parts else 0


def newest(output: Path) -> str:
    return max((path.name for path in (output / "checkpoints").glob("step-*")), default="")


def assert_same(one: Outcome, other: Outcome) -> None:
    """Weights, optimizer states and metrics, bit for bit."""
    folders = [outcome.merged.parent for outcome in (one, other)]
    last = newest(folders[0])
    assert newest(folders[1]) == last
    for kept in (Path("checkpoints", last), Path("checkpoints", "best"), Path("merged")):
        first, second = (load_file(folder / kept / "model.safetensors") for folder in folders)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), kept
    states = [torch.load(folder / "checkpoints" / last / "state.pt", weights_only=True) for folder in folders]
    assert states[0]["lr_schedulers"] == states[1]["lr_schedulers"]
    first, second = (state["optimizer_states"][0]["state"] for state in states)
    assert first.keys() == second.keys()
    for index, values in first.items():
        assert all(torch.equal(values[name], second[index][name]) for name in values)
    metrics = [
        [{name: value for name, value in row.items() if name not in NOT_EQUAL} for row in outcome.metrics]
        for outcome in (one, other)
    ]
    assert metrics[0] == metrics[1]


WAYS: dict[str, dict[str, Any]] = {
    "lora": {
        "lora": {"dropout": 0.1, "targets": "all-linear"},
        "objective": {"name": "self_distillation", "label_weight": 0.5},
    },
    "all weights": {"lora": None, "train": {"pack_length": 250, "micro_batch_size": 1}},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_kill_9_at_any_moment_changes_no_bit(
    forks: Forks, write_config: Write, data_file: Path, tmp_path: Path, way: str
) -> None:
    """Killed before its first checkpoint, while a checkpoint is written, and at a random moment."""
    file = write_config(
        train={"epochs": 20},
        annealing={"start_window": 64, "share": 0.7},
        validation={"files": [str(data_file)], "every": 6},
        trainer={"checkpoint_every": 4},
        optimizer={"learning_rate": 2e-3},
    )
    values = json.loads(file.read_text())
    for name, section in WAYS[way].items():
        values[name] = {**values[name], **section} if isinstance(values.get(name), dict) and section else section
    file.write_text(json.dumps(values))
    whole = tune(file, tmp_path / "whole")
    assert [row["step"] for row in whole.metrics] == list(range(41))

    output = tmp_path / "cut"
    checkpoints = output / "checkpoints"
    moment = random.randrange(16, 28)
    cut(forks, file, output, lambda: steps_logged(output) >= 2)
    cut(forks, file, output, lambda: newest(output) >= "step-000012" and any(checkpoints.glob(".step-*.partial")))
    cut(forks, file, output, lambda: newest(output) >= f"step-{moment:06d}")
    assert not (output / "report.json").exists(), "the test must cut off a training that is under way"
    assert_same(whole, tune(file, output))
    assert not any(path.name.endswith(".partial") for path in checkpoints.iterdir())


@pytest.mark.slow
def test_ctrl_c_tells_how_to_go_on(forks: Forks, write_config: Write, tmp_path: Path) -> None:
    file, output = write_config(train={"epochs": 400}), tmp_path / "out"
    err = cut(forks, file, output, lambda: newest(output) >= "step-000006", signal.SIGINT)
    kept = newest(output)
    where = f"Interrupted; the last checkpoint in {output / 'checkpoints'}: after step {int(kept[5:])}."
    assert f"{where} Run the same command again to go on from there." in err
    assert "Traceback" not in err
    assert not (output / "merged").exists()


# ------------------------------------------------------------------------- cut off by hand, in this very process


class Stop(Exception):
    """Ends a training as a kill would: nothing is put in order after it."""


@pytest.fixture(scope="module")
def whole(write_config_to: Write, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A file, and what came of it: 12 steps in 6 epochs, a look after every third, a checkpoint after each.

    Beside its folder there is a copy of it as it stood after each step, as a kill would have left it.
    """
    folder = tmp_path_factory.mktemp("whole")
    other = write_lines(folder / "other.jsonl", [{**line, "answer": line["answer"][::-1]} for line in conversations()])
    file = write_config_to(
        folder,
        train={"epochs": 6},
        validation={"files": [str(other)], "every": 3},
        trainer={"checkpoint_every": 1},
        lora={"dropout": 0.1, "targets": "all-linear"},
        optimizer={"learning_rate": 0.02, "schedule": "constant"},  # so much that the loss on other answers rises
    )

    def keep(*_: Any) -> None:
        if step := newest(folder / "whole"):
            shutil.copytree(folder / "whole", folder / step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuner, "on_train_batch_start", keep)
        outcome = tune(file, folder / "whole")
    losses = [row["validation/loss"] for row in outcome.metrics if row["step"] in (3, 6, 9, 12)]
    assert min(losses) < losses[-1], "the tests need a best that is not the last"
    return file, outcome


Unfinished = tuple[Path, Outcome, Callable[[int], Path]]


@pytest.fixture
def unfinished(whole: tuple[Path, Outcome], tmp_path: Path) -> Unfinished:
    """The file and the outcome, and a folder of the same training as it stands after a step."""
    file, outcome = whole

    def stands(after: int) -> Path:
        step = f"step-{after:06d}"
        shutil.copytree(file.parent / step, tmp_path / step)
        return tmp_path / step

    return file, outcome, stands


@pytest.mark.parametrize("after", [1, 2, 3, 5, 6, 7, 11])
def test_a_training_goes_on_after_any_step(unfinished: Unfinished, after: int) -> None:
    """Among them steps with a look (3, 6, 9, 12) and an epoch's last ones (even)."""
    file, whole, stands = unfinished
    output = stands(after)
    assert newest(output) == f"step-{after:06d}"
    again = tune(file, output)
    assert_same(whole, again)
    assert [row["step"] for row in again.metrics] == list(range(13))
    assert [int(row["step"]) for row in again.metrics if "validation/loss" in row] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("step", [6, 12])
def test_a_look_that_is_cut_off_is_taken_again(
    whole: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    file, outcome = whole
    look = FineTuner.validation_step

    def stop(self: FineTuner, batch: Any, index: int) -> None:
        if self.global_step == step:
            raise Stop
        look(self, batch, index)

    monkeypatch.setattr(FineTuner, "validation_step", stop)
    with pytest.raises(Stop):
        tune(file, tmp_path / "cut")
    monkeypatch.undo()
    assert_same(outcome, tune(file, tmp_path / "cut"))


def test_a_checkpoint_that_is_cut_off_while_it_is_written_is_passed_over(
    whole: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, outcome = whole
    output, save = tmp_path / "cut", torch.save

    def torn(values: Any, path: Path) -> None:
        save(values, path)
        if "step-000005" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            raise Stop

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(Stop):
        tune(file, output)
    monkeypatch.undo()
    assert [path.name for path in (output / "checkpoints").rglob("state.pt") if "000005" in str(path)], "torn"
    assert newest(output) == "step-000004"
    assert_same(outcome, tune(file, output))
    assert not list((output / "checkpoints").glob(".*"))


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_checkpoint_is_named(
    unfinished: Unfinished, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    file, whole, stands = unfinished
    output = stands(4)
    damaged = output / "checkpoints" / "step-000004" / name
    if damage == "gone":
        damaged.unlink()
    else:
        os.truncate(damaged, 0 if damage == "empty" else damaged.stat().st_size // 2)
    capsys.readouterr()
    assert main(["finetune", str(file), "-o", str(output)]) == 2
    told = capsys.readouterr().err.rpartition("swaa: error: ")[2]
    assert told.startswith(f"damaged checkpoint {damaged.parent}: ")
    assert told.endswith("Delete this folder to resume from the one before it.\n")
    assert told.count("\n") == 1
    for path in damaged.parent.iterdir():
        path.unlink()
    damaged.parent.rmdir()
    assert_same(whole, tune(file, output))


def test_another_configuration_cannot_go_on(
    unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _, stands = unfinished
    output = stands(4)
    changes = ["train.epochs=7", "lora.r=8", "policy=SlidingWindow(3)", "seed=4", "validation.every=2"]
    for change in changes:
        assert main(["finetune", str(file), "-o", str(output), change]) == 2
        told = capsys.readouterr().err
        key, _, value = change.partition("=")
        listed = [line for line in told.splitlines() if line.startswith("  ")]
        assert told.startswith(f"swaa: error: {output} holds another training:")
        assert len(listed) == 1
        assert listed[0].startswith(f"  {key}: ")
        assert listed[0].endswith(f"{value} now") or f"'{value}' now" in listed[0]
        assert "--fresh" in told
    assert main(["finetune", str(file), "-o", str(output), *changes]) == 2
    listed = [line.strip().partition(":")[0] for line in capsys.readouterr().err.splitlines() if line[:2] == "  "]
    assert listed == sorted(change.partition("=")[0] for change in changes)

    # what changes no weight may differ
    outcome = tune(file, output, "trainer.checkpoint_every=5")
    assert len(outcome.metrics) == 13


@pytest.mark.parametrize("wrong", ["missing", "extra", "shape"])
def test_a_checkpoint_that_lacks_weights_is_not_gone_on_from(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    file = write_config(trainer={"checkpoint_every": 3})
    outcome = tune(file, tmp_path / "tune")
    checkpoints = tmp_path / "tune" / "checkpoints"
    shutil.rmtree(outcome.merged)
    shutil.rmtree(checkpoints / "step-000006")
    weights = load_file(checkpoints / "step-000003" / "model.safetensors")
    name = sorted(weights)[2]
    if wrong == "missing":
        del weights[name]
    elif wrong == "extra":
        name = "model.more.weight"
        weights[name] = torch.zeros(2)
    else:
        weights[name] = weights[name][1:].clone()
    save_file(weights, checkpoints / "step-000003" / "model.safetensors")
    assert main(["finetune", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"cannot go on from {checkpoints / 'step-000003'}: trainable state: " in told
    assert name in told
    assert [path.name for path in checkpoints.iterdir()] == ["step-000003"]


def test_other_samples_cannot_go_on(write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = conversations()
    data = write_lines(tmp_path / "changing.jsonl", lines)
    file = write_config(train={"files": [str(data)]})
    outcome = tune(file, tmp_path / "tune")
    for name in ("merged/model.safetensors", "merged/config.json"):
        (outcome.merged.parent / name).unlink()
    outcome.merged.rename(tmp_path / "gone")
    write_lines(data, [*lines[:-1], {**lines[-1], "answer": "else"}])
    assert main(["finetune", str(file)]) == 2
    told = capsys.readouterr().err
    assert "holds a training on other samples (14 samples there, 14 now): the data has changed." in told
    write_lines(data, lines)
    assert main(["finetune", str(file)]) == 0


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_finished_training_started_again_does_nothing_but_print(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], evaluated: bool
) -> None:
    task = {
        "tasks": [{"name": "needle_single"}],
        "lengths": [300],
        "num_examples": 1,
        "decoding": {"max_new_tokens": 2},
    }
    file = write_config(evaluation={**task, "text_tokens": 300, "text_window": 100} if evaluated else None)
    command = ["finetune", str(file)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    before = {path: path.read_bytes() for path in (tmp_path / "tune").rglob("*") if path.is_file()}
    assert tmp_path / "tune" / "report.json" in before
    began = time.monotonic()
    assert main(command) == 0
    assert time.monotonic() - began < 1
    captured = capsys.readouterr()
    assert captured.out == printed
    assert "Loading" not in captured.err, "no model is loaded"
    assert {path: path.read_bytes() for path in (tmp_path / "tune").rglob("*") if path.is_file()} == before


def test_fresh_begins_anew(write_config: Write, tmp_path: Path) -> None:
    file = write_config()
    tune(file, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    outcome = tune(file, tmp_path / "out", "train.max_steps=3", fresh=True)
    assert [row["step"] for row in outcome.metrics] == [1, 2, 3]
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000003"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    expected = tune(file, tmp_path / "other", "train.max_steps=3")
    first, second = (load_file(one.merged / "model.safetensors") for one in (outcome, expected))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_cannot_train_in_one_folder(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    file = write_config()
    (tmp_path / "tune").mkdir()
    with FileLock(tmp_path / "tune" / ".lock"):
        assert main(["finetune", str(file)]) == 2
    assert f"another process is running in {tmp_path / 'tune'}." in capsys.readouterr().err

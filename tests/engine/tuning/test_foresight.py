"""What is found out before anything is trained, and what the environment may not do to a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.accelerators import MPSAccelerator
from rich.console import Console

import swaa.engine.tuning.run as running
from plants import Write
from swaa.cli import main
from swaa.config import load_finetuning
from swaa.engine.tuning import run_finetuning
from swaa.engine.tuning.module import FineTuner

CHEAP: dict[str, Any] = {
    "tasks": [{"name": "needle_single"}],
    "lengths": [300],
    "num_examples": 1,
    "decoding": {"max_new_tokens": 2},
    "text_tokens": 300,
    "text_window": 100,
}
NEEDLES = "tasks: [{name: needle_single}], lengths: [300]"


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(["finetune", *argv]) == 2
    return capsys.readouterr().err.rpartition("swaa: error: ")[2].strip()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["evaluation.seed=-1"], "evaluation.seed: expected an int >= 0, got -1."),
        (["evaluation.num_examples=0"], "evaluation.num_examples: expected an int >= 1, got 0."),
        (["evaluation.batch_size=x"], "evaluation.batch_size: expected an int >= 1, got 'x'."),
        (["evaluation.scoring=[generat]"], "evaluation.scoring[0]: unknown value 'generat'. Did you mean 'generate'?"),
        (["evaluation.scoring=5"], "evaluation.scoring: expected a list of at least one scoring, got 5."),
        (["evaluation.lengths=[300, 0]"], "evaluation.lengths[1]: expected an int >= 1, got 0."),
        (["evaluation.text_file=3"], "evaluation.text_file: expected a non-empty string, got 3."),
        (
            ["validation={files: [a.jsonl], scoring: [generate]}"],
            "validation.scoring: 'generate' answers the prompts of tasks, and there are no tasks.",
        ),
        (
            [f"validation={{{NEEDLES}, seed: 10000}}"],
            "evaluation.seed: 10000 is validation.seed, too, and both ask for needle_single at 300 tokens: these are "
            "the same examples. Set evaluation.seed to another number.",
        ),
        (
            [f"train={{{NEEDLES}, seed: 3}}", f"validation={{{NEEDLES}, seed: 3}}"],
            "validation.seed: 3 is train.seed, too, and both ask for needle_single at 300 tokens",
        ),
        ([f"train={{{NEEDLES}, seed: 10000}}"], "evaluation.seed: 10000 is train.seed, too"),
    ],
    ids=str,
)
def test_a_mistake_is_told_with_its_place_in_the_file(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    file = str(write_config(evaluation=CHEAP))
    assert told(capsys, file, *changes).removeprefix(f"{file}: ").startswith(message)
    assert not (tmp_path / "tune").exists()


def test_the_seeds_of_nobodys_choice_are_apart(write_config: Write) -> None:
    needles = {"tasks": [{"name": "needle_single"}], "lengths": [300]}
    config = load_finetuning(write_config(train={"files": [], **needles}, validation=needles, evaluation=needles))
    assert config.validation is not None
    assert config.evaluation is not None
    assert (config.train.seed, config.validation.seed, config.evaluation.seed) == (0, 5_000, 10_000)
    # what differs in one of task, length and seed is no shared example
    file = write_config(
        train={"files": [], **needles}, validation={**needles, "lengths": [301], "seed": 0}, evaluation=needles
    )
    assert load_finetuning(file).validation is not None


@pytest.mark.parametrize("launched", [False, True], ids=["alone", "launched"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lengths": [4000]},
            "evaluation: lengths: 4000 prompt tokens and 2 new ones are 4002 tokens, and the context",
        ),
        ({"text_file": "none.txt"}, "evaluation.text_file: none.txt: cannot be read as UTF-8 text"),
        ({"text_file": "short.txt"}, "evaluation.text_file: the text has 40 tokens, and a stretch of 100 is wanted."),
    ],
    ids=str,
)
def test_an_evaluation_that_cannot_be_costs_no_training(
    write_config: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    launched: bool,
    changes: dict[str, Any],
    message: str,
) -> None:
    """Neither where the model is evaluated first, nor where other processes wait for this one to train."""
    (tmp_path / "short.txt").write_text("abcd " * 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "from_outside", lambda config: launched)
    assert told(capsys, str(write_config(evaluation={**CHEAP, **changes}))).startswith(message)
    assert not (tmp_path / "tune" / "before").exists()
    assert not (tmp_path / "tune" / "logs").exists()


def test_the_base_model_is_evaluated_before_it_is_trained(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = []

    def note(self: FineTuner) -> None:
        there.append(sorted(path.name for path in (tmp_path / "tune" / "before").iterdir() if path.name[0] != "."))

    monkeypatch.setattr(FineTuner, "on_train_start", note)
    run_finetuning(load_finetuning(write_config(evaluation=CHEAP, train={"max_steps": 1})), console=Console(quiet=True))
    evaluated = ["experiment.yaml", "records.jsonl", "run.json", "samples.jsonl", "table.csv", "table.md"]
    assert there == [[*evaluated, "text.json"]]


def test_a_mistake_in_the_data_is_told_before_the_base_model_is_evaluated(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text("{broken\n")
    file = write_config(evaluation=CHEAP, train={"files": [str(tmp_path / "bad.jsonl")]})
    assert "bad.jsonl:1: not JSON" in told(capsys, str(file))
    assert not (tmp_path / "tune" / "before").exists()


def test_text_is_read_no_further_than_the_context(write_config: Write) -> None:
    evaluation = {**CHEAP, "text_tokens": 10_000, "text_window": 5_000}
    config = load_finetuning(write_config(evaluation=evaluation, train={"max_steps": 1}))
    outcome = run_finetuning(config, console=Console(quiet=True))
    assert outcome is not None
    assert outcome.texts["before"].num_tokens == 4 * 2047


def test_a_trained_model_is_let_go_of_before_the_next_one_is_loaded(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc

    alive, publish = [], running.publish_checkpoint

    def look(*args: Any, **options: Any) -> None:
        alive.append(sum(type(one) is FineTuner for one in gc.get_objects()))
        publish(*args, **options)

    monkeypatch.setattr(running, "publish_checkpoint", look)
    gc.collect()
    gc.disable()
    try:
        config = load_finetuning(write_config(train={"max_steps": 1}))
        run_finetuning(config, console=Console(quiet=True))
    finally:
        gc.enable()
    assert alive == [0]


@pytest.mark.parametrize("name", ["NODE_RANK", "RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_one_process_is_no_helper_whatever_its_environment_says(
    write_config: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from swaa.engine.processes import helps

    monkeypatch.setenv(name, "1")
    assert not helps(load_finetuning(write_config()))
    assert helps(load_finetuning(write_config(), ["trainer.devices=2"]))
    assert helps(load_finetuning(write_config(), ["trainer.num_nodes=2"]))


def test_a_stray_rank_trains_all_the_same(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    config = load_finetuning(write_config(train={"max_steps": 1}))
    assert run_finetuning(config, console=Console(quiet=True)) is not None


@pytest.mark.parametrize(("size", "devices"), [("2", 1), ("1", 2), ("4", 2)])
def test_a_launcher_of_other_processes_is_refused(
    write_config: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, size: str, devices: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    assert told(capsys, str(write_config()), f"trainer.devices={devices}") == (
        f"trainer.devices: {devices} on each of trainer.num_nodes: 1 makes {devices} processes, and WORLD_SIZE is "
        f"{size}, as torchrun sets it. Set trainer.devices to the processes of a machine (--nproc-per-node), or unset "
        "WORLD_SIZE if nothing has started this process."
    )


def test_a_training_is_where_its_model_is(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac, Lightning would take MPS, where nothing else of this training is."""
    seen = []
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))

    def note(self: FineTuner) -> None:
        seen.append((self.device.type, type(self.trainer.accelerator).__name__))

    monkeypatch.setattr(FineTuner, "on_train_start", note)
    config = load_finetuning(write_config(train={"max_steps": 1}), ["model.device=auto"])
    run_finetuning(config, console=Console(quiet=True))
    assert seen in ([("cpu", "CPUAccelerator")], [("cuda", "CUDAAccelerator")])

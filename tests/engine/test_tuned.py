"""Experiments that fine-tune, end to end: what is trained, what is evaluated, and what a second run does again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch.optim import AdamW

from swaa.config import Experiment, load_experiment
from swaa.config.tuned import fine_tuning_of
from swaa.engine import run_experiment
from swaa.engine.interrupt import Interrupted
from swaa.engine.prompting import count_tokens
from swaa.engine.tuning.checkpoint import latest, step_of
from swaa.engine.tuning.data import conversations
from swaa.errors import UserError
from swaa.prompting import Prompting
from swaa.report import Record, read_records
from swaa.report.runs import read_run
from swaa.tasks import Example
from swaa.tasks.conversations import Conversation

POLICY = "SlidingWindow(16) | SinkTokens(2)"
COT = {"name": "chain_of_thought", "instruction": "Think.", "marker": "So:", "budget": 2}
QUIET = Console(quiet=True)


def write(folder: Path, model: Path | str, name: str = "mine", **changes: Any) -> Path:
    """Two examples at 400 tokens; a training of two steps of all weights."""
    train = {"tasks": [{"name": "needle_single"}], "lengths": [400], "num_examples": 4, "seed": 99, "batch_size": 2}
    training = {
        "train": {**train, "micro_batch_size": 2, "promptings": ["direct"]},
        "lora": None,
        "optimizer": {"learning_rate": 0.02, "warmup": 0},
        "trainer": {"checkpoint_every": 1},
    }
    values: dict[str, Any] = {
        "model": {"name": str(model), "device": "cpu"},
        "fine_tunings": {"sft": training},
        "recipes": [
            {"name": "swa", "policy": POLICY},
            {"name": "swa, SFT", "policy": POLICY, "fine_tuning": "sft"},
            {"name": "swa, SFT, CoT", "policy": POLICY, "fine_tuning": "sft", "prompting": COT},
        ],
        "tasks": [{"name": "needle_single"}],
        "lengths": [400],
        "num_examples": 2,
        "decoding": {"max_new_tokens": 6},
        "output": str(folder / name),
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({**values, **changes}))
    return path


def records_of(experiment: Experiment) -> list[Record]:
    return read_records(experiment.output / "records.jsonl")


def said(records: list[Record], recipe: str) -> dict[str, tuple[object, ...]]:
    """What came of each example under a recipe; likelihoods as far as float32 carries them."""
    return {
        one.example: (one.generated, one.final, one.ending, round(one.scores.get("forced_nll", 0.0), 4))
        for one in records
        if one.recipe == recipe
    }


def trainings(experiment: Experiment) -> list[Path]:
    return sorted((experiment.output / "fine_tunings").iterdir())


def bytes_of(folder: Path) -> Mapping[str, tuple[bytes, int]]:
    """Every file below a folder, with the time at which it was written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def ran(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment that has been run."""
    experiment = load_experiment(write(tmp_path_factory.mktemp("tuned"), model_folder))
    run_experiment(experiment, console=QUIET)
    return experiment


def test_recipes_with_one_policy_share_one_training(ran: Experiment) -> None:
    (folder,) = trainings(ran)
    assert folder.name.startswith("sft-")
    assert (folder / "merged" / "model.safetensors").exists()
    assert not (folder / "before").exists(), "the experiment evaluates"
    assert len((folder / "report.md").read_text()) > 0


def test_the_trained_recipe_answers_otherwise_than_the_base(ran: Experiment) -> None:
    records = records_of(ran)
    base, tuned = said(records, "swa"), said(records, "swa, SFT")
    assert base.keys() == tuned.keys()
    assert all(base[example] != tuned[example] for example in base)
    assert {one.recipe_hash for one in records} == {recipe.hash for recipe in ran.recipes}


def test_the_trained_recipe_answers_as_the_merged_model(ran: Experiment, tmp_path: Path) -> None:
    """An experiment of its own, whose model is the folder that the training published."""
    (folder,) = trainings(ran)
    recipes = [{"name": "direct", "policy": POLICY}, {"name": "CoT", "policy": POLICY, "prompting": COT}]
    changes = {"recipes": recipes, "fine_tunings": {}}
    alone = load_experiment(write(tmp_path, folder / "merged", **changes))
    run_experiment(alone, console=QUIET)
    assert said(records_of(ran), "swa, SFT") == said(records_of(alone), "direct")
    assert said(records_of(ran), "swa, SFT, CoT") == said(records_of(alone), "CoT")
    base = load_experiment(write(tmp_path, ran.model.name, "base", **changes))
    run_experiment(base, console=QUIET)
    assert said(records_of(ran), "swa") == said(records_of(base), "direct"), "weights do not leak into the next recipe"


def test_a_report_knows_which_recipes_are_trained(ran: Experiment) -> None:
    run = read_run(ran.output)
    assert run.complete
    assert [recipe.fine_tuning for recipe in run.info.recipes] == [None, "sft", "sft"]
    assert run.info.asked == 6


def test_a_second_run_trains_and_answers_nothing_again(ran: Experiment) -> None:
    before = bytes_of(ran.output)
    run_experiment(ran, console=QUIET)
    after = bytes_of(ran.output)
    same = [name for name in before if name.startswith("fine_tunings") or name == "records.jsonl"]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_lost_records_are_made_anew_from_the_same_weights(ran: Experiment) -> None:
    """The training is not run again, only its published weights are read."""
    path = ran.output / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    whole = {recipe.name: said(records_of(ran), recipe.name) for recipe in ran.recipes}
    (folder,) = trainings(ran)
    weights = bytes_of(folder / "merged")["model.safetensors"]
    steps = bytes_of(folder / "checkpoints")
    path.write_text("".join(line for line in lines if json.loads(line)["recipe"] != "swa, SFT"))
    run_experiment(ran, console=QUIET)
    assert {recipe.name: said(records_of(ran), recipe.name) for recipe in ran.recipes} == whole
    assert bytes_of(folder / "merged")["model.safetensors"] == weights
    assert bytes_of(folder / "checkpoints") == steps


def test_the_order_of_the_recipes_does_not_matter(ran: Experiment, tmp_path: Path) -> None:
    """A trained recipe first, the model as it is after it."""
    values = json.loads(write(tmp_path, ran.model.name).read_text())
    turned = load_experiment(write(tmp_path, ran.model.name, recipes=values["recipes"][::-1]))
    run_experiment(turned, console=QUIET)
    for recipe in ran.recipes:
        assert said(records_of(turned), recipe.name) == said(records_of(ran), recipe.name)


# ---------------------------------------------------------------------------------------------- what is refused


def test_the_experiments_own_examples_are_not_trained_on(tmp_path: Path, model_folder: Path) -> None:
    file = write(tmp_path, model_folder, seed=99)
    with pytest.raises(UserError, match=r"fine_tunings.sft.*seed: 99 is train.seed, too"):
        load_experiment(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [2045]}, r"lengths: 2045 prompt tokens and 6 new ones are 2051 tokens"),
        ({"recipes": [{"name": "a", "policy": f"({POLICY}).on_layers([9])", "fine_tuning": "sft"}]}, "layer"),
    ],
)
def test_a_mistake_in_the_evaluation_costs_no_training(
    tmp_path: Path, model_folder: Path, changes: dict[str, Any], message: str
) -> None:
    experiment = load_experiment(write(tmp_path, model_folder, **changes))
    with pytest.raises(UserError, match=message):
        run_experiment(experiment, console=QUIET)
    assert not list(experiment.output.rglob("step-*")), "nothing was trained"


# ---------------------------------------------------------------------------------------------- interruption


def test_a_training_that_was_interrupted_goes_on(
    ran: Experiment, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C as the first checkpoint is written; then the run is that of an uninterrupted one."""
    experiment = load_experiment(write(tmp_path, model_folder))
    folder = fine_tuning_of(experiment, experiment.recipes[1]).output
    checkpoints = folder / "checkpoints"
    press_when(monkeypatch, lambda: checkpoints.exists() and latest(checkpoints) is not None)
    with pytest.raises(Interrupted, match="Run the same command again"):
        run_experiment(experiment, console=QUIET)
    monkeypatch.undo()
    kept = latest(checkpoints)
    assert kept is not None
    assert step_of(kept) == 1
    assert not (folder / "merged").exists()
    assert records_of(experiment) == []
    run_experiment(experiment, console=QUIET)
    for recipe in ran.recipes:
        assert said(records_of(experiment), recipe.name) == said(records_of(ran), recipe.name)


def press_when(monkeypatch: pytest.MonkeyPatch, ready: Callable[[], bool]) -> None:
    """Ctrl-C before the first optimizer step at which it is ``ready``."""
    step = AdamW.step

    def pressed(optimizer: Any, *args: Any, **options: Any) -> Any:
        if ready():
            monkeypatch.setattr(AdamW, "step", step)
            os.kill(os.getpid(), signal.SIGINT)
        return step(optimizer, *args, **options)

    monkeypatch.setattr(AdamW, "step", pressed)


# ---------------------------------------------------------------------------------------------- what is trained on


def test_chains_of_thought_to_train_on(model_folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    """Every example once in each way of asking, with its reasoning before the marker."""
    values = json.loads(write(tmp_path, model_folder).read_text())
    values["fine_tunings"]["sft"]["train"]["promptings"] = ["direct", COT]
    experiment = load_experiment(write(tmp_path, model_folder, fine_tunings=values["fine_tunings"]))
    source = fine_tuning_of(experiment, experiment.recipes[1]).train
    made = conversations(source, tokenizer)
    assert len(made) == len({one.id for one in made}) == 2 * 4
    (task,) = source.tasks
    examples = list(task.examples(length=400, num_examples=4, seed=99, count_tokens=partial(count_tokens, tokenizer)))
    for place, example in enumerate(examples):
        direct, cot = made[2 * place : 2 * place + 2]
        assert direct.turns[0].content == example.prompt
        assert direct.turns[1].content == example.answer_prefix + example.answer
        assert direct.answer == example.answer
        assert cot.turns[0].content == f"{example.prompt}\n\nThink."
        assert example.reasoning
        assert cot.turns[1].content.startswith(f"{example.reasoning}\nSo: ")
        assert cot.answer == cot.turns[1].content, "all of it is learnt"
        final = Prompting.parse(COT, "p").final(cot.turns[1].content, cut=False).text
        assert all(reference in final for reference in example.references)
        assert all(reference in example.reasoning for reference in example.references), "it leads to the answer"


def test_a_task_without_reasoning_cannot_teach_it() -> None:
    example = Example("e1", "Who?", "It is", " she", ("she",))
    assert Conversation.of_example(example).answer == " she"
    with pytest.raises(UserError, match=r"example e1: its task gives no reasoning to learn. Train on direct .*distil"):
        Conversation.of_example(example, Prompting("chain_of_thought"))
    thinking = Example("e2", "Who?", "", "she", ("she",), reasoning="Hm.")
    with pytest.raises(UserError, match=r"no reference reply for 'thinking'"):
        Conversation.of_example(thinking, Prompting("thinking"))


def test_a_text_is_read_with_the_trained_weights(ran: Experiment, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes Jack a dull boy. " * 40)
    told = dict(json.loads(Path(ran.output.parent / "mine.yaml").read_text()))
    told["perplexity"] = {"num_stretches": 1, "length": 128, "short_length": 16, "text_file": str(text)}
    file = tmp_path / "read.yaml"
    file.write_text(json.dumps(told))
    rows = run_experiment(load_experiment(file), console=QUIET)  # in the folder that is there
    base, tuned, reasoning = (row.delta_nll for row in rows)
    assert base is not None
    assert tuned is not None
    assert reasoning is not None
    assert abs(base.value - tuned.value) > 1e-3
    assert tuned.value == reasoning.value, "the same weights under the same policy"


def test_other_training_data_in_the_same_file_are_another_training(model_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    training = {"train": {"files": [str(data)], "batch_size": 1}, "lora": None, "trainer": {"checkpoint_every": 1}}
    file = write(tmp_path, model_folder, fine_tunings={"sft": training})

    def digest(answer: str) -> str:
        data.write_text(json.dumps({"prompt": "Say it.", "answer": answer}) + "\n")
        tuned = load_experiment(file).recipes[1].fine_tuning
        assert tuned is not None
        return tuned.digest

    assert digest("yes") == digest("yes") != digest("no")
    data.unlink()
    with pytest.raises(UserError, match=r"fine_tunings.sft.train.files: .*data.jsonl: No such file"):
        load_experiment(file)


def test_processes_of_a_launcher_are_not_left_to_train(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(write(tmp_path, model_folder, trainer={"devices": 2}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="weights are not trained yet, .*Run it first without a launcher"):
        run_experiment(experiment, console=QUIET)
    with pytest.raises(UserError, match="--fresh: with processes that something else starts"):
        run_experiment(experiment, console=QUIET, fresh=True)

"""A small real fine-tuning from its file to the published model, and what it writes on the way."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import swaa
from plants import ANSWERS, Write, conversations, write_lines
from swaa.cli import main
from swaa.config import load_finetuning
from swaa.engine.prompting import count_tokens
from swaa.engine.run import run_experiment
from swaa.engine.text_nll import read_text, text_nll
from swaa.engine.tuning import run_finetuning
from swaa.engine.tuning.outcome import Outcome
from swaa.errors import UserError
from swaa.hf.loading import load
from swaa.tasks import NeedleSingle
from swaa.tasks.conversations import Conversation

LEARNS: dict[str, Any] = {
    "train": {"epochs": 30},
    "optimizer": {"learning_rate": 4e-3},
    "validation": {"every": 20},
    "lora": None,
}


def tune(file: Path, *overrides: str, fresh: bool = False) -> Outcome:
    outcome = run_finetuning(load_finetuning(file, overrides), fresh=fresh, console=Console(quiet=True))
    assert outcome is not None
    return outcome


def looks(outcome: Outcome, name: str) -> dict[int, float]:
    rows = [row for row in outcome.metrics if f"validation/{name}" in row]
    return {int(row["step"]): row[f"validation/{name}"] for row in rows}


def says(folder: Path | str, words: Sequence[str]) -> dict[str, str]:
    """What a model answers, letter by letter, to prompts it was trained on; under the policy it brings along."""
    model, tokenizer = swaa.load(str(folder), dtype="float32", device="cpu")
    said = {}
    for line in conversations():
        word = line["id"].partition("-")[0]
        if word in words:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": line["prompt"]}], add_generation_prompt=True, return_tensors="pt"
            )["input_ids"]
            out = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
            said[line["id"]] = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return said


# ---------------------------------------------------------------------------------------------- it learns, for real


@pytest.mark.parametrize(
    "lora", [None, {"r": 16, "targets": "all-linear", "dropout": 0.0}], ids=["all weights", "lora"]
)
def test_a_tiny_model_learns_what_it_could_not_guess(
    write_config: Write, data_file: Path, model_folder: Path, lora: dict[str, Any] | None
) -> None:
    changes = {**LEARNS, "lora": lora, "validation": {"every": 20, "files": [str(data_file)]}}
    file = write_config(**changes)
    outcome = tune(file)
    assert list(looks(outcome, "exact")) == [0, 20, 40, 60]
    losses = [row["train/loss"] for row in outcome.metrics if "train/loss" in row]
    assert len(losses) == 60
    assert looks(outcome, "exact")[0] == 0
    assert looks(outcome, "loss")[0] > 4, "an untrained model is far off"
    assert looks(outcome, "exact")[60] >= 0.9
    assert looks(outcome, "loss")[60] < 0.3
    assert sum(losses[-5:]) < 0.1 * sum(losses[:5])

    said = says(outcome.merged, list(ANSWERS))
    right = [said[line["id"]] == line["answer"] for line in conversations()]
    assert sum(right) >= 0.9 * len(right)
    before = says(model_folder, list(ANSWERS))
    assert not any(before[line["id"]] == line["answer"] for line in conversations())


def test_a_file_of_the_finished_training(write_config: Write, data_file: Path) -> None:
    file = write_config(validation={"files": [str(data_file)], "every": 4}, trainer={"checkpoint_every": 3})
    outcome = tune(file)
    folder = outcome.merged.parent
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best", "step-000003", "step-000006"]
    assert list(looks(outcome, "loss")) == [0, 4, 6], "a look before the first step and one after the last"
    assert load_finetuning(folder / "finetune.yaml") == load_finetuning(file)
    report = json.loads((folder / "report.json").read_text())
    assert report["metrics"] == [dict(row) for row in outcome.metrics]
    assert [row["step"] for row in report["metrics"]] == [0, 1, 2, 3, 4, 5, 6]
    facts = report["facts"]
    assert facts["steps"] == 6
    assert facts["samples"] == 14
    assert facts["weights trained"] == "LoRA r 16, alpha 32, on q_proj, k_proj, v_proj"
    first, last = (row["train/loss"] for row in (report["metrics"][1], report["metrics"][-1]))
    assert facts["loss, first and last step"] == f"{first:.4f}, {last:.4f}"
    assert (report["before"], report["after"], report["delta_nll"], report["too_long"]) == ([], [], None, [])
    text = (folder / "report.md").read_text()
    final = looks(outcome, "loss")[6]
    assert f"| {final:.4f} |" in text
    card = (outcome.merged / "README.md").read_text()
    assert "SlidingWindow(12) | SinkTokens(2)" in card
    assert "import swaa" in card


def test_figures_before_and_after(write_config: Write, tmp_path: Path, model_folder: Path) -> None:
    """On real tasks and text, each what a run of its own gives for the base and for the merged model."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    task = {"tasks": [{"name": "needle_single"}], "lengths": [300], "num_examples": 3}
    evaluation = {
        **task,
        "text_file": str(text),
        "text_tokens": 400,
        "text_window": 100,
        "decoding": {"max_new_tokens": 3},
    }
    outcome = tune(write_config(evaluation=evaluation, train={"epochs": 2}, optimizer={"learning_rate": 0.01}))
    folder = outcome.merged.parent
    for when, name in {"before": model_folder, "after": outcome.merged}.items():
        rows = outcome.rows[when]
        assert [row.recipe for row in rows] == ["FA", "policy"]
        records = [json.loads(line) for line in (folder / when / "records.jsonl").read_text().splitlines()]
        assert len(records) == 6
        model, tokenizer = load(str(name), swaa.FullAttention(), dtype="float32", device="cpu")
        own = text_nll(model, tokenizer, text.read_text(), num_tokens=400, window=100)
        assert outcome.texts[when] == own
    assert outcome.rows["before"][0].nll != outcome.rows["after"][0].nll
    assert outcome.delta_nll == outcome.texts["after"].nats_per_token - outcome.texts["before"].nats_per_token
    assert outcome.delta_nll != 0
    report = json.loads((folder / "report.json").read_text())
    assert report["delta_nll"] == outcome.delta_nll
    assert [row["recipe"] for row in report["before"] + report["after"]] == ["FA", "policy"] * 2
    assert f"{outcome.delta_nll:+.4f}" in (folder / "report.md").read_text()
    card = (outcome.merged / "README.md").read_text()
    assert card.count("full attention |") == 2
    assert card.count("the policy |") == 2


def test_self_distillation_without_labels_comes_closer_to_the_teacher(
    write_config: Write, tmp_path: Path, model_folder: Path
) -> None:
    """Held-out prompts, judged by loops over both models' probabilities; the labels in the file are nonsense."""
    lines = [{**line, "answer": "zzzzz"} for line in conversations()]
    file = write_config(
        train={"files": [str(write_lines(tmp_path / "nonsense.jsonl", lines))], "epochs": 12},
        policy="SlidingWindow(4)",
        lora={"targets": "all-linear", "dropout": 0.0},
        objective={"name": "self_distillation", "temperature": 1.0},
        optimizer={"learning_rate": 5e-3},
    )
    outcome = tune(file)
    divergences = [row["train/divergence"] for row in outcome.metrics if "train/divergence" in row]
    assert divergences[-1] < 0.6 * divergences[0]

    def distribution(folder: Any, policy: Any, ids: torch.Tensor) -> list[list[float]]:
        model, _ = swaa.load(str(folder), policy, dtype="float32", device="cpu")
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits[0, -6:].double().softmax(-1).tolist()

    _, tokenizer = load(str(model_folder), swaa.FullAttention(), device="cpu")
    apart = {"base": 0.0, "tuned": 0.0}
    for prompt in ("aaa bbb aaa aaa what of sage?", "bbb aaa bbb bbb bbb what of moss?"):
        ids = tokenizer(f"<|user|>{prompt}</s><|assistant|>zzzzz", return_tensors="pt")["input_ids"]
        teacher = distribution(model_folder, swaa.FullAttention(), ids)
        for name, folder in {"base": model_folder, "tuned": outcome.merged}.items():
            student = distribution(folder, swaa.SlidingWindow(4), ids)
            for p, q in zip(teacher, student, strict=True):
                apart[name] += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert apart["tuned"] < 0.7 * apart["base"]


def test_a_look_says_what_an_evaluation_of_the_merged_model_says(
    write_config: Write, tmp_path: Path, tokenizer: Any
) -> None:
    """Two of four examples are learnt by heart; the others are right by no more than luck."""
    task = {"tasks": [{"name": "needle_single"}], "lengths": [300], "seed": 5}
    asked = {**task, "num_examples": 4, "decoding": {"max_new_tokens": 10}, "scoring": ["generate", "teacher_forced"]}
    counter = partial(count_tokens, tokenizer)
    examples = NeedleSingle().examples(length=300, num_examples=2, seed=5, count_tokens=counter)
    learnt = tmp_path / "learnt.jsonl"
    learnt.write_text("".join(Conversation.of_example(one).to_json() + "\n" for one in examples))
    file = write_config(
        train={"files": [str(learnt)], "batch_size": 2, "epochs": 60},
        lora=None,
        optimizer={"learning_rate": 3e-3},
        validation={**asked, "every": 100, "batch_size": 3},
    )
    outcome = tune(file)
    assert list(looks(outcome, "loss")) == [0, 60], "one after the last step, though none falls due"
    asked_alone = load_finetuning(write_config("other", evaluation={**asked, "batch_size": 1, "text_tokens": 0}))
    rows = {}
    for when, model in {"before": asked_alone.model.name, "after": str(outcome.merged)}.items():
        experiment = asked_alone.experiment(model, tmp_path / when)
        assert experiment is not None
        rows[when] = run_experiment(experiment, console=Console(quiet=True))
    row = rows["after"][1]
    assert row.recipe == "policy"
    assert row.accuracy is not None
    assert row.forced is not None
    assert 0 < row.forced.value < 1
    assert looks(outcome, "forced_exact")[60] == row.forced.value
    assert looks(outcome, "all_correct")[60] == row.accuracy.value
    assert looks(outcome, "forced_exact")[0] == 0
    assert looks(outcome, "score")[60] == pytest.approx(row.score)
    assert rows["before"][1].forced.value == 0  # type: ignore[union-attr]


def test_looks_are_under_the_policy_itself_while_windows_still_shrink(write_config: Write, data_file: Path) -> None:
    first: dict[str, dict[str, float]] = {}
    for name, annealing in {"annealed": {"start_window": 200}, "target": None}.items():
        file = write_config(name, annealing=annealing, validation={"files": [str(data_file)]}, train={"max_steps": 1})
        rows = tune(file).metrics
        first[name] = {"look": rows[0]["validation/loss"], "step": rows[1]["train/loss"]}
    assert first["annealed"]["look"] == first["target"]["look"]
    assert abs(first["annealed"]["step"] - first["target"]["step"]) > 1e-3


# ------------------------------------------------------------------------------------- stopping early, and the best


def overfits(write_config: Write, tmp_path: Path, data_file: Path, **changes: Any) -> Path:
    """Validated on answers other than those it learns, so that the loss there rises sooner or later."""
    other = [{**line, "answer": line["answer"][::-1]} for line in conversations()]
    wrong = write_lines(tmp_path / "wrong.jsonl", other)
    return write_config(
        train={"epochs": 20},
        optimizer={"learning_rate": 4e-3, "schedule": "constant"},
        lora=None,
        validation={"files": [str(wrong)], "every": 2, **changes.pop("validation", {})},
        trainer={"checkpoint_every": 4, **changes.pop("trainer", {})},
        **changes,
    )


def test_training_stops_early_and_the_best_is_published(write_config: Write, tmp_path: Path, data_file: Path) -> None:
    file = overfits(write_config, tmp_path, data_file, validation={"patience": 2}, trainer={"publish": "best"})
    outcome = tune(file)
    folder = outcome.merged.parent
    losses = looks(outcome, "loss")
    during = {step: loss for step, loss in losses.items() if step > 0}
    best = min(during, key=lambda step: during[step])
    assert max(losses) == best + 4, "two looks without a better one"
    assert max(losses) < 40
    assert [row["step"] for row in outcome.metrics] == list(range(max(losses) + 1)), "no step after it"
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert f"step-{max(losses):06d}" in names

    assert published_from(outcome.merged, folder / "checkpoints" / "best")
    # killed between the last checkpoint and the merging: no further step when it goes on
    checkpoint = load_file(folder / "checkpoints" / f"step-{max(losses):06d}" / "model.safetensors")
    for name in ("merged", "report.json"):
        remove(folder / name)
    again = tune(file)
    assert [row["step"] for row in again.metrics] == [row["step"] for row in outcome.metrics]
    kept = load_file(folder / "checkpoints" / f"step-{max(losses):06d}" / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in checkpoint.items())


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def published_from(merged: Path, checkpoint: Path) -> bool:
    """Are the published weights those of the checkpoint?"""
    published, kept = load_file(merged / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    shared = [name for name in kept if name.removeprefix("model.") in published]
    assert len(shared) > 10
    return all(torch.equal(kept[name], published[name.removeprefix("model.")]) for name in shared)


@pytest.mark.parametrize("publish", ["best", "last"])
def test_what_is_published(write_config: Write, tmp_path: Path, data_file: Path, publish: str) -> None:
    outcome = tune(overfits(write_config, tmp_path, data_file, trainer={"publish": publish}))
    checkpoints = outcome.merged.parent / "checkpoints"
    during = {step: loss for step, loss in looks(outcome, "loss").items() if step > 0}
    assert min(during, key=lambda step: during[step]) < 36, "the test needs a best that is not the last"
    expected = {"best": checkpoints / "best", "last": checkpoints / "step-000040"}
    assert [name for name, path in expected.items() if published_from(outcome.merged, path)] == [publish]


def test_the_best_may_be_the_last_step_though_no_look_falls_due_there(write_config: Write, data_file: Path) -> None:
    outcome = tune(
        write_config(
            train={"epochs": 5},
            lora=None,
            optimizer={"learning_rate": 3e-3},
            validation={"files": [str(data_file)], "every": 4},
            trainer={"publish": "best"},
        )
    )
    losses = looks(outcome, "loss")
    assert list(losses) == [0, 4, 8, 10]
    assert min(losses, key=lambda step: losses[step]) == 10, "the test needs a last that is best"
    assert published_from(outcome.merged, outcome.merged.parent / "checkpoints" / "step-000010")


# -------------------------------------------------------------------------------------------- samples, logs, merging


def test_samples_left_out_are_counted_and_named(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = conversations()
    for place in (3, 8):
        lines[place]["prompt"] = "ab " * 60
    file = write_config(
        train={"files": [str(write_lines(tmp_path / "long.jsonl", lines))], "max_length": 100, "too_long": "drop"}
    )
    assert main(["finetune", str(file)]) == 0
    names = f"{lines[3]['id']}, {lines[8]['id']}"
    assert f"2 samples are too long and left out: {names}" in capsys.readouterr().err
    report = json.loads((tmp_path / "tune" / "report.json").read_text())
    assert report["too_long"] == [lines[3]["id"], lines[8]["id"]]
    assert report["facts"]["samples"] == 12
    assert f"2: {names}" in (tmp_path / "tune" / "report.md").read_text()
    assert names in (tmp_path / "tune" / "merged" / "README.md").read_text()
    again = run_finetuning(load_finetuning(file), console=Console(quiet=True))
    assert again is not None
    assert again.too_long == (lines[3]["id"], lines[8]["id"])


def test_metrics_go_where_they_are_asked_to(write_config: Write) -> None:
    file = write_config(trainer={"loggers": ["csv", "tensorboard"]})
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(
            UserError, match=r"'tensorboard' needs the package tensorboard. Run: pip install 'swaa\[tensorboard\]'"
        ):
            tune(file)
        return
    outcome = tune(file)
    assert list((outcome.merged.parent / "logs" / "tensorboard").rglob("events.*"))
    assert len(outcome.metrics) == 6


def test_merging_a_checkpoint_of_an_unfinished_training(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = tune(write_config(lora=None))
    folder = outcome.merged.parent
    for name in ("merged", "report.json", "report.md"):
        remove(folder / name)
    checkpoint = folder / "checkpoints" / "step-000004"
    target = tmp_path / "early"
    assert main(["merge", str(folder), "--checkpoint", "step-000004", "-o", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert published_from(target, checkpoint)
    assert not published_from(target, folder / "checkpoints" / "step-000006")
    assert main(["merge", str(folder), "-o", str(tmp_path / "late")]) == 0
    assert published_from(tmp_path / "late", folder / "checkpoints" / "step-000006")
    capsys.readouterr()
    wrong = {
        (str(folder), "--checkpoint", "step-000005"): "there is no 'step-000005' in",
        (str(folder), "--checkpoint", "best"): "There are: step-000004, step-000006.",
        (str(tmp_path / "early"),): "expected the folder of a fine-tuning, and it has no finetune.yaml",
    }
    for argv, message in wrong.items():
        assert main(["merge", *argv, "-o", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    shutil.copytree(checkpoint, checkpoint.with_name(".best.former"))  # killed between the old best and the new one
    assert main(["merge", str(folder), "--checkpoint", "best", "-o", str(tmp_path / "best")]) == 0
    assert published_from(tmp_path / "best", checkpoint)


# ---------------------------------------------------------------------------------------------------- text's figures


def test_the_likelihood_of_text_is_what_a_loop_sums_up(model: Any, tokenizer: Any) -> None:
    text = "".join(chr(97 + (5 * place * place) % 26) for place in range(190))
    ids = tokenizer(text)["input_ids"]
    for num_tokens, window, starts in ((90, 30, (0, 80, 160)), (1_000, 60, (0, 65, 130)), (5, 40, (0,))):
        total, count = 0.0, 0
        for start in starts:
            with torch.no_grad():
                logits = model(torch.tensor([ids[start : start + window]])).logits[0].double()
            for place in range(window - 1):
                row = logits[place].tolist()
                top = max(row)
                total -= row[ids[start + place + 1]] - top - math.log(sum(math.exp(value - top) for value in row))
                count += 1
        found = text_nll(model, tokenizer, text, num_tokens=num_tokens, window=window)
        assert found.num_tokens == count
        assert found.nats_per_token == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(UserError, match="the text has 190 tokens, and a stretch of 200 is wanted"):
        text_nll(model, tokenizer, text, num_tokens=400, window=200)


def test_stretches_of_text_begin_as_the_tokenizer_begins_texts(model: Any, tokenizer: Any) -> None:
    class Beginning:
        """As Llama's: a token of its own before every text."""

        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> dict[str, list[int]]:
            ids = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
            return {"input_ids": [1, *ids] if add_special_tokens else ids}

    text = "".join(chr(97 + (5 * place * place) % 26) for place in range(190))
    ids = tokenizer(text)["input_ids"]
    total, count = 0.0, 0
    for start in (0, 80, 161):
        stretch = ids[start : start + 29]
        with torch.no_grad():
            probabilities = model(torch.tensor([[1, *stretch]])).logits[0].double().softmax(-1)
        for place, token in enumerate(stretch):
            total -= math.log(float(probabilities[place, token]))
            count += 1
    found = text_nll(model, Beginning(), text, num_tokens=90, window=30)
    assert found.num_tokens == count == 87
    assert found.nats_per_token == pytest.approx(total / count, rel=1e-5)
    without = text_nll(model, tokenizer, text, num_tokens=90, window=30)
    assert abs(without.nats_per_token - found.nats_per_token) > 1e-3


def test_texts_come_from_python_or_from_a_file(tmp_path: Path) -> None:
    assert len(read_text(None)) > 100_000
    (tmp_path / "text").write_text("äh", encoding="utf-8")
    assert read_text(str(tmp_path / "text")) == "äh"
    (tmp_path / "latin").write_bytes("äh".encode("latin-1"))
    for name in ("latin", "none"):
        with pytest.raises(UserError, match="evaluation.text_file: .*: cannot be read as UTF-8 text"):
            read_text(str(tmp_path / name))

"""``swaa finetune`` on what cannot work: one message that names it, exit code 2, and nothing trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from plants import Write, conversations, write_lines
from swaa.cli import main


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a command that a user's mistake ends; loading bars may stand before it."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    before, _, told = captured.err.rpartition("swaa: error: ")
    assert all("it/s" in line for line in before.splitlines() if line.strip())
    assert told.count("\n") == 1
    return told.strip()


GOOD = json.dumps({"prompt": "what?", "answer": "that"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "FILE: no conversations. Write one a line: "),
        ("\n \n", "FILE: no conversations. Write one a line: "),
        (f"{GOOD}\n{{broken\n", "FILE:2: not JSON ("),
        (f"\n\n{GOOD}\n[1]\n", "FILE:4: this line: expected an object"),
        (f'{GOOD}\n{{"prompt": "x"}}\n', "FILE:2: missing fields: expected "),
        (f'{GOOD}\n{{"prompt": "x", "answer": ""}}\n', "FILE:2: answer: empty answer."),
        ('{"prompt": "x", "anwser": "y"}', "FILE:1: unknown field 'anwser'. Did you mean 'answer'?"),
        (
            '{"id": "quiet", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}',
            "FILE:1: turn 2 of 2 (assistant): empty answer.",
        ),
        ('{"messages": [{"role": "assistant", "content": "y"}]}', "FILE:1: turn 1: expected the system's turn or "),
        (f'{GOOD[:-1]}, "id": "a"}}\n{GOOD[:-1]}, "id": "a"}}\n', "FILE:2: id: 'a' is already the id of line 1."),
    ],
    ids=lambda value: value[:24],
)
def test_data_that_cannot_be_learnt_from(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(content)
    told = refused(["finetune", str(write_config(train={"files": [str(data)]}))], capsys)
    assert message.replace("FILE", str(data)) in told
    assert not (tmp_path / "tune" / "checkpoints").exists()


def test_samples_that_are_too_long_are_counted_and_named(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = conversations()
    for place in (2, 9):
        lines[place]["prompt"] = "ab " * 1000
    file = write_config(train={"files": [str(write_lines(tmp_path / "long.jsonl", lines))]})
    told = refused(["finetune", str(file)], capsys)
    assert all(part in told for part in ("2 ", lines[2]["id"], lines[9]["id"], "2048", "drop"))
    lengths = [len(line["prompt"]) for line in conversations()]
    told = refused(["finetune", str(file), "train.max_length=5", "train.too_long=drop"], capsys)
    assert len(lengths) == 14
    assert "14" in told
    assert "5 tokens" in told
    told = refused(["finetune", str(file), "train.pack_length=30", "train.micro_batch_size=1"], capsys)
    assert "30 tokens" in told
    told = refused(["finetune", str(file), "train.max_length=4096"], capsys)
    assert told.startswith("train.max_length: 4096 tokens, and the model's context is 2048.")
    told = refused(
        ["finetune", str(write_config()), f"validation.files=[{tmp_path / 'long.jsonl'}]"],
        capsys,
    )
    assert lines[2]["id"] in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["lora.targets=[q_proj,nope]"], "unknown LoRA target 'nope'."),
        (["lora.r=0"], "lora.r: expected an int >= 1, got 0."),
        (["trian={}"], "unknown field 'trian'. Did you mean 'train'?"),
        (["train.epoch=3"], "unknown field 'train.epoch'. Did you mean 'train.epochs'?"),
        (["lora.rank=3"], "unknown field 'lora.rank'. Did you mean 'lora.r'?"),
        (["objective.name=distil"], "objective.name: "),
        (["optimizer.schedule=liner"], "Did you mean 'linear'?"),
        (["trainer.strategy=fsdp"], "Did you mean 'fsdp2'?"),
        (["annealing={share: 0.3}"], "annealing.start_window"),
        (["annealing={start_window: 3, end_window: 9}"], "annealing.start_window: expected an int >= 9, got 3."),
        (["objective={name: self_distillation}", "lora=null"], "the model with its adapter off as the teacher"),
        (["train=null"], "train"),
        (["train={epochs: 3}"], "there are neither tasks nor files"),
        (["train.files=[none.jsonl]"], "none.jsonl: there is no such file."),
        (["train.pack_length=300", "train.micro_batch_size=2"], "train.micro_batch_size: expected 1 with pack_length"),
        (["policy=SlidingWindow(4).on_layers(9)"], "layer 9 is out of range"),
        (["policy=SlidingWindw(4)"], "Did you mean 'SlidingWindow'?"),
        (["model.dtype=float16"], "model.dtype: AdamW divides by nothing in float16"),
        (["model.dtype=bfloat16", "lora=null"], "Write dtype: float32 with trainer.mixed_precision: bfloat16."),
        (["trainer.publish=best"], "trainer.publish: 'best' is told by the validation loss"),
        (["trainer.loggers=[csvs]"], "trainer.loggers[0]"),
    ],
    ids=str,
)
def test_settings_that_cannot_work(
    write_config: Write, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    assert message in refused(["finetune", str(write_config()), *changes], capsys)


def test_each_command_names_the_one_that_a_file_is_for(
    write_config: Write, experiment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write_config())
    for command, kind in {"run": "an experiment", "bench": "a benchmark", "distill": "a distillation"}.items():
        message = f"{file}: this is a fine-tuning, not {kind}. Run it with: swaa finetune {file}"
        assert refused([command, file], capsys) == message
    other = str(experiment_file)
    message = f"{other}: this is an experiment, not a fine-tuning. Run it with: swaa run {other}"
    assert refused(["finetune", other], capsys) == message


def test_a_missing_train_section(write_config: Write, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_config(lora={})
    values = json.loads(file.read_text())
    del values["train"]
    file.write_text(json.dumps(values))
    assert "train" in refused(["finetune", str(file)], capsys)


def test_a_loss_that_is_no_number_is_told_with_the_step(
    write_config: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, model: Any, capsys: Any
) -> None:
    """Some weights of a downloaded model are broken."""
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3] = float("nan")
    assert isinstance(model, LlamaForCausalLM)
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    told = refused(["finetune", str(write_config()), f"model.name={tmp_path / 'broken'}"], capsys)
    assert told.startswith("step 1: the loss is nan, and no number. The last good checkpoint: none yet.")
    assert not (tmp_path / "tune" / "merged").exists()

"""What a validation shows: the objective itself, by loops over both models' probabilities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import swaa
from plants import Write, conversations
from swaa.config import load_finetuning
from swaa.engine.tuning import run_finetuning
from swaa.engine.tuning.outcome import Outcome
from swaa.hf.loading import load

TEMPERATURE, LABEL_WEIGHT = 2.0, 0.3


def tune(file: Path) -> Outcome:
    outcome = run_finetuning(load_finetuning(file), console=Console(quiet=True))
    assert outcome is not None
    return outcome


def logits(model: Any, tokenizer: Any, line: dict[str, str]) -> tuple[list[list[float]], list[int]]:
    """Rows that predict the answer and its end, and the tokens that they shall predict."""
    prompt = tokenizer(f"<|user|>{line['prompt']}</s><|assistant|>")["input_ids"]
    answer = tokenizer(f"{line['answer']}</s>")["input_ids"]
    decodes = [False] * len(prompt) + [True] * (len(answer) - 1) + [False]
    with torch.no_grad():
        ids, mask = torch.tensor([prompt + answer]), torch.tensor([decodes])
        rows = model(input_ids=ids, decode_mask=mask, use_cache=False).logits[0].double().tolist()
    return rows[len(prompt) - 1 : -1], answer


def log_softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp((value - top) / temperature) for value in row))
    return [(value - top) / temperature - total for value in row]


def test_the_loss_of_a_validation_is_what_is_minimised(
    write_config: Write, data_file: Path, model_folder: Path
) -> None:
    file = write_config(
        lora={"targets": "all-linear", "dropout": 0.5},
        policy="SlidingWindow(4)",
        objective={"name": "self_distillation", "temperature": TEMPERATURE, "label_weight": LABEL_WEIGHT},
        optimizer={"learning_rate": 0.02},
        validation={"files": [str(data_file)], "every": 6, "batch_size": 5},
    )
    outcome = tune(file)
    seen = outcome.metrics[-1]
    student, tokenizer = load(str(outcome.merged), swaa.parse_policy("SlidingWindow(4)"), dtype="float32", device="cpu")
    teacher, _ = load(str(model_folder), swaa.FullAttention(), dtype="float32", device="cpu")
    swaa.apply_policy(teacher, swaa.FullAttention())
    divergence, cross_entropy, count = 0.0, 0.0, 0
    for line in conversations():
        ours, answer = logits(student, tokenizer, line)
        theirs, _ = logits(teacher, tokenizer, line)
        for mine, its, token in zip(ours, theirs, answer, strict=True):
            cross_entropy -= log_softmax(mine)[token]
            p, q = log_softmax(its, TEMPERATURE), log_softmax(mine, TEMPERATURE)
            divergence += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            count += 1
    divergence, cross_entropy = divergence / count, cross_entropy / count
    expected = (1 - LABEL_WEIGHT) * TEMPERATURE**2 * divergence + LABEL_WEIGHT * cross_entropy
    assert seen["validation/divergence"] == pytest.approx(divergence, rel=1e-3)
    assert seen["validation/cross_entropy"] == pytest.approx(cross_entropy, rel=1e-4)
    assert seen["validation/loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(expected - cross_entropy) > 0.1
    assert divergence > 1e-3


def test_with_labels_it_is_the_cross_entropy(write_config: Write, data_file: Path) -> None:
    outcome = tune(write_config(validation={"files": [str(data_file)], "every": 3}))
    looks = [row for row in outcome.metrics if "validation/loss" in row]
    assert len(looks) == 3
    for row in looks:
        assert row["validation/loss"] == row["validation/cross_entropy"]
        assert "validation/divergence" not in row

"""Against stock ``hf``: equal to the last digit under full attention, and different where a policy must differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM

from harness.conftest import TASKS, asked
from swaa import SlidingWindow, load
from swaa.harness import evaluate
from swaa.harness.tasks import find_tasks


@pytest.mark.parametrize("batch_size", [1, 3])
def test_full_attention_is_stock_hf_to_the_last_digit(model: Any, tokenizer: Any, tasks: Path, batch_size: int) -> None:
    """Metrics, log-likelihoods of every choice, and generated text; no tolerance."""
    manager, names = find_tasks(TASKS, tasks, {})
    stock = lm_eval.simple_evaluate(
        HFLM(model, tokenizer=tokenizer, batch_size=batch_size), tasks=names, task_manager=manager, bootstrap_iters=0
    )
    ours = evaluate(
        model,
        TASKS,
        policy="FullAttention()",
        tokenizer=tokenizer,
        batch_size=batch_size,
        include_path=tasks,
        bootstrap_iters=0,
    )
    assert ours["results"] == stock["results"]
    answers = {task: [sample["resps"] for sample in stock["samples"][task]] for task in TASKS}
    assert {task: [sample["resps"] for sample in ours["samples"][task]] for task in TASKS} == answers
    assert all(any(texts) for texts in answers.values())
    assert model.config._attn_implementation == "sdpa", "the model is left as it was"


def test_the_batch_does_not_matter(model: Any, tokenizer: Any, tasks: Path) -> None:
    policy = "(SlidingWindow(6) | SinkTokens(2)).in_phase('prefill')"

    def answers(batch_size: int) -> list[Any]:
        options = {"batch_size": batch_size, "include_path": tasks, "bootstrap_iters": 0}
        results = evaluate(model, TASKS, policy=policy, tokenizer=tokenizer, **options)
        return [sample["resps"] for task in TASKS for sample in results["samples"][task]]

    one, four = answers(1), answers(4)
    assert _numbers(one) == pytest.approx(_numbers(four), abs=1e-3)
    assert _texts(one) == _texts(four)
    assert any(_texts(one))


def _numbers(answers: Any) -> list[float]:
    if isinstance(answers, list | tuple):
        return [number for answer in answers for number in _numbers(answer)]
    return [] if isinstance(answers, str) else [float(answers)]


def _texts(answers: Any) -> list[str]:
    if isinstance(answers, list | tuple):
        return [text for answer in answers for text in _texts(answer)]
    return [answers] if isinstance(answers, str) else []


def test_a_batch_size_can_be_found_by_trying(ours: Any) -> None:
    lm = ours(SlidingWindow(4).in_phase("prefill"), batch_size="auto", max_batch_size=2, max_length=32)
    requests = [asked("loglikelihood", "abc" * one, "de") for one in range(1, 6)]
    found = lm.loglikelihood(requests, disable_tqdm=True)
    lm.batch_size_per_gpu = 1
    assert _numbers(found) == pytest.approx(_numbers(lm.loglikelihood(requests, disable_tqdm=True)), abs=1e-4)


def test_a_window_too_short_for_the_evidence_changes_the_score(smollm2: Path, tasks: Path) -> None:
    """The colour is told in the first sentence, some 70 tokens before it is asked for; a choice has one token."""

    model, tokenizer = load(smollm2, dtype="float32", device="cpu")

    def accuracy(policy: str) -> float:
        options = {"include_path": tasks, "limit": 4, "bootstrap_iters": 0}
        results = evaluate(model, "far_colours", policy=policy, tokenizer=tokenizer, **options)
        return float(results["results"]["far_colours"]["acc,none"])

    assert accuracy("FullAttention()") == 1.0
    assert accuracy("SlidingWindow(16)") < 1.0


def test_a_chat_template_is_applied_once(model: Any, tokenizer: Any, tasks: Path) -> None:
    results = evaluate(
        model, "echo", tokenizer=tokenizer, include_path=tasks, chat_template=True, limit=1, system="Be brief."
    )
    ((prompt, _),) = results["samples"]["echo"][0]["arguments"]
    assert prompt == "<|system|>Be brief.</s><|user|>one two three one two three one two</s><|assistant|>"
    assert results["swaa"]["chat_template"] is True

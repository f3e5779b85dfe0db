"""What an evaluation costs beside the model, and what batches bring.

    pytest tests/benchmarks/test_evaluation.py -s

prints the figures. SmolLM2-135M's shape and tokenizer, random weights, four of its 30 layers (SWAA_LAYERS=30 for all),
float32. The fewer the layers, the larger the share of what is not the model. Seconds are those of the processor: with
one thread they are those of the clock on a machine that does nothing else, and a busy machine changes them little.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from swaa import FullAttention, SinkTokens, SlidingWindow
from swaa.config import Experiment, ModelConfig
from swaa.engine import evaluation, run_experiment
from swaa.recipe import Decoding, Recipe
from swaa.report import read_records
from swaa.tasks import get_task

LAYERS = int(os.environ.get("SWAA_LAYERS", "4"))
WHOLE = LAYERS == 30
EXAMPLES = 50 if WHOLE else 10
MOST = 0.05 if WHOLE else 0.10
"""The goal is for the whole model; with a seventh of it, what is not the model weighs far more."""
POLICY = (SlidingWindow(256) | SinkTokens(10)).in_phase("prefill")


@pytest.fixture(scope="module")
def folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, with the real tokenizer."""
    made = tmp_path_factory.mktemp("shape")
    config = AutoConfig.from_pretrained(smollm2, num_hidden_layers=LAYERS, dtype="float32")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(made)
    return made


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Seconds:
    """Processor time: of the whole, of these parts of it."""

    whole: float = 0.0
    load: float = 0.0
    forward: float = 0.0
    samples: float = 0.0

    @property
    def rest(self) -> float:
        """Neither the model's forward passes nor its load."""
        return self.whole - self.load - self.forward

    @property
    def share(self) -> float:
        """What the rest is of the run without the load."""
        return self.rest / (self.whole - self.load)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    """Filled by what a test runs."""
    spent = Seconds()
    load = evaluation.load

    def timed_load(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        model, tokenizer = load(*args, **options)
        forward = model.forward

        @functools.wraps(forward)
        def timed(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return forward(*args, **options)
            finally:
                spent.forward += time.process_time() - start

        model.forward = timed
        spent.load += time.process_time() - start
        return model, tokenizer

    make_samples = evaluation.make_samples

    def timed_samples(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        made = make_samples(*args, **options)
        spent.samples += time.process_time() - start
        return made

    monkeypatch.setattr(evaluation, "load", timed_load)
    monkeypatch.setattr(evaluation, "make_samples", timed_samples)
    return spent


def experiment_of(folder: Path, output: Path, **changes: Any) -> Experiment:
    told: dict[str, Any] = {
        "recipes": tuple(
            Recipe(repr(one), one, decoding=Decoding(max_new_tokens=8)) for one in (FullAttention(), POLICY)
        ),
        "tasks": (get_task("needle_single")(),),
        "lengths": (1000,),
        "output": output,
        "model": ModelConfig(str(folder), device="cpu"),
        "num_examples": EXAMPLES,
    }
    return Experiment(**{**told, **changes})


def run(experiment: Experiment, seconds: Seconds) -> None:
    start = time.process_time()
    run_experiment(experiment, console=Console(quiet=True))
    seconds.whole += time.process_time() - start
    assert len(read_records(experiment.output / "records.jsonl")) == experiment.num_samples


def test_the_overhead_of_an_evaluation(folder: Path, tmp_path: Path, seconds: Seconds, benchmark: Any) -> None:
    """Everything but the forward passes: making samples, batches, choosing tokens, grading, writing, tables."""
    run(experiment_of(folder, tmp_path / "warm", num_examples=2), Seconds())
    seconds.forward = seconds.load = seconds.samples = 0.0
    benchmark.pedantic(run, (experiment_of(folder, tmp_path / "run"), seconds), rounds=1)
    print(
        f"\n{2 * EXAMPLES} samples of 1,000 tokens, {LAYERS} layers: {seconds.whole:.1f} s, of which the load "
        f"{seconds.load:.1f} s, the forward passes {seconds.forward:.1f} s, the rest {seconds.rest:.2f} s: "
        f"{100 * seconds.share:.1f} % without the load. Of the rest, {seconds.samples:.2f} s made the prompts."
    )
    assert seconds.share < MOST


def test_batches_of_eight(folder: Path, tmp_path: Path, seconds: Seconds, benchmark: Any) -> None:
    """Prompts of several lengths, generated and teacher-forced answers."""
    recipe = Recipe("swa", POLICY, decoding=Decoding(max_new_tokens=24))

    def of(batch_size: int, num_examples: int = 4) -> Experiment:
        output = tmp_path / f"{batch_size}-{num_examples}"
        sizes = {"lengths": (150, 250), "num_examples": num_examples, "batch_size": batch_size}
        return experiment_of(folder, output, recipes=(recipe,), **sizes)

    run(of(8, 1), Seconds())
    rates = {}
    for batch_size in (1, 8):
        spent = Seconds()
        seconds.forward = seconds.load = seconds.samples = 0.0
        if batch_size == 1:
            run(of(1), spent)
        else:
            benchmark.pedantic(run, (of(8), spent), rounds=1)
        rates[batch_size] = of(batch_size).num_samples / (spent.whole - seconds.load)
    print(
        f"\nsamples a second, {LAYERS} layers: {rates[1]:.2f} one by one, {rates[8]:.2f} in batches of 8: "
        f"{rates[8] / rates[1]:.1f}x"
    )
    assert rates[8] >= 1.5 * rates[1]

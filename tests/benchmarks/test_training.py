"""How fast training goes: batches of one, padded and packed; and a long sample against a dense mask.

    SWAA_LAYERS=30 pytest tests/benchmarks/test_training.py -s

prints the figures of a whole SmolLM2-135M (random weights); without the variable it has two layers, for CI, and only
the ways that are compared are timed. They run by turns in the same process. The floors asserted are below what a quiet
machine shows.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swaa import apply_policy
from swaa.config import Objective
from swaa.engine.tuning.batch import TrainingBatch, collate
from swaa.engine.tuning.objective import compute_losses
from swaa.engine.tuning.samples import TrainingSample
from swaa.engine.tuning.steps import plan_steps
from swaa.hf.lora import add_lora

LAYERS = int(os.environ.get("SWAA_LAYERS", "2"))
WHOLE = LAYERS == 30
POLICY = "FullAttention().on_layers('1::4', otherwise=(SlidingWindow(128) | SinkTokens(10)).in_phase('prefill'))"
ANSWER = 12
VOCABULARY = 49_152


def make_model(dtype: torch.dtype) -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(dtype)
    model.requires_grad_(False)
    add_lora(model, dropout=0.0, seed=0)
    return model.train()


def make_samples(lengths: list[int]) -> list[TrainingSample]:
    draw = random.Random(0)
    return [
        TrainingSample(f"sample-{i}", tuple(draw.randrange(VOCABULARY) for _ in range(n)), ((n - ANSWER, n),))
        for i, n in enumerate(lengths)
    ]


def micro_batches(samples: list[TrainingSample], *, micro: int, pack: int | None) -> list[TrainingBatch]:
    """One optimizer step over all samples."""
    (step,) = plan_steps(
        [len(sample.ids) for sample in samples],
        [ANSWER] * len(samples),
        batch_size=len(samples),
        micro_batch_size=micro,
        pack_length=pack,
        world_size=1,
        epochs=1,
        seed=0,
    )
    return [collate([[samples[i] for i in row] for row in part.rows], pad=0) for part in step.ranks[0]]


def run(model: Any, batches: list[TrainingBatch]) -> float:
    """One optimizer step's forward and backward passes; the loss."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = compute_losses(model, batch, Objective()).total
        loss.backward()
        total += float(loss.detach())
    return total


def least_seconds(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least seconds of each way, taken by turns. Each has been run before: that warmed it up."""
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            least[name] = min(least[name], time.perf_counter() - start)
    return least


@pytest.mark.slow
def test_batches_of_one_padded_and_packed(benchmark: Any) -> None:
    """Mixed lengths in random order: padded micro-batches of four as they come, as a plain data loader has them."""
    draw = random.Random(1)
    samples = make_samples([round(64 * 16 ** draw.random()) for _ in range(24)])
    model = make_model(torch.bfloat16)
    fours = [samples[start : start + 4] for start in range(0, len(samples), 4)]
    batches = {
        "batch 1": micro_batches(samples, micro=1, pack=None),
        "batch 4, padded as they come": [collate([[one] for one in four], pad=0) for four in fours],
        "batch 4, padded, sorted": micro_batches(samples, micro=4, pack=None),
        "packed in rows of 2,048": micro_batches(samples, micro=1, pack=2048),
    }
    compared = ("batch 4, padded as they come", "packed in rows of 2,048")
    tokens = sum(len(sample.ids) for sample in samples)
    with apply_policy(model, POLICY):
        losses = {name: run(model, some) for name, some in batches.items()}
        timed = batches if WHOLE else {name: batches[name] for name in compared}
        seconds = least_seconds({name: lambda some=some: run(model, some) for name, some in timed.items()}, 2)  # type: ignore[misc]
        benchmark.pedantic(run, (model, batches["packed in rows of 2,048"]), rounds=1)
    mix = f"{len(samples)} samples of 64 to 1,024 tokens (log-uniform), {tokens} in all"
    print(f"\n{LAYERS} layers, bf16, {mix}, LoRA on q, k, v")
    for name, value in seconds.items():
        print(f"  {name:<30} {tokens / value:7.0f} tokens/s   loss {losses[name]:.3f}")
    padded, packed = (seconds[name] for name in compared)
    print(f"  packed over padded: {padded / packed:.2f}x")
    assert max(losses.values()) - min(losses.values()) < 0.01 * max(losses.values())
    assert padded / packed >= 1.15


@pytest.mark.slow
def test_a_long_sample_against_a_dense_mask(benchmark: Any) -> None:
    samples = make_samples([4096])
    batches = micro_batches(samples, micro=1, pack=None)
    model = make_model(torch.float32)
    policy = "SlidingWindow(256) | SinkTokens(10)"

    def step(kernel: str) -> float:
        with apply_policy(model, policy, kernel=kernel):
            return run(model, batches)

    ours = step("auto")
    assert abs(ours - step("dense")) < 1e-3 * ours
    seconds = least_seconds({"dense mask": lambda: step("dense"), "auto (blockwise)": lambda: step("auto")}, 1)
    benchmark.pedantic(step, ("auto",), rounds=1)
    print(f"\n{LAYERS} layers, float32, a training step on 4,096 tokens under {policy}")
    for name, value in seconds.items():
        print(f"  {name:<30} {value:7.2f} s   {4096 / value:7.0f} tokens/s")
    ratio = seconds["dense mask"] / seconds["auto (blockwise)"]
    print(f"  ratio: {ratio:.2f}x")
    assert ratio >= 1.5

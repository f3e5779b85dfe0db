"""Prefill, decode step, whole request and peak memory of a sliding recipe, against full attention in the same run.

    pytest tests/benchmarks/test_request.py -s

prints the figures. Four layers with the heads of SmolLM2-135M and little else, random weights, bf16, one thread: so
a busy machine slows all ways alike. Ways take turns. The floors asserted are far below what is measured.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

import swaa
from swaa.engine.bench_measure import Reading, stream, time_request
from swaa.engine.decode import now
from swaa.hf.baselines import NO_ATTENTION, attention, random_model

CONFIG = {
    "model_type": "llama",
    "hidden_size": 144,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
WINDOW, SINKS = 256, 10
POLICY = swaa.SlidingWindow(WINDOW) | swaa.SinkTokens(SINKS)
KV_BYTES_A_KEY = 2 * 4 * 3 * 64 * 2  # keys and values, layers, heads, size, bf16
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model(CONFIG, dtype="bfloat16", device="cpu", seed=0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompt_of(length: int) -> torch.Tensor:
    return torch.randint(512, (1, length), generator=torch.Generator().manual_seed(0))


def sliding(model: Any) -> Any:
    return swaa.apply_policy(model, POLICY)


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least seconds of each way, taken by turns, after one turn to warm up."""
    least = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = now(CPU)
            way()
            if turn:
                least[name] = min(least[name], now(CPU) - start)
    return least


def told(what: str, seconds: Mapping[str, float]) -> None:
    parts = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items())
    print(f"\n{what}: {parts}: {seconds['full'] / seconds['sliding']:.1f}x")


def test_prefill(model: Any, benchmark: Any) -> None:
    prompt = prompt_of(4096)

    def read(dressed: Any, reading: Reading) -> float:
        with dressed:
            return time_request(model, prompt, 1, reading).prefill_seconds

    def ours() -> float:
        return read(sliding(model), Reading(tells_prompt=True))

    seconds = in_turn(
        {
            "full": lambda: read(contextlib.nullcontext(), Reading()),
            "sliding": ours,
            "floor": lambda: read(attention(model, NO_ATTENTION), Reading(caches=False)),
        },
        rounds=2,
    )
    benchmark.pedantic(ours, rounds=2)
    told("prefill, 4,096 tokens", seconds)
    assert seconds["full"] >= 1.3 * seconds["sliding"]


def test_decode_step(model: Any, benchmark: Any) -> None:
    prompt = prompt_of(8192)
    with torch.no_grad(), sliding(model):
        short = stream(model, prompt, Reading(tells_prompt=True))
        next(short)
        ours = in_turn({"sliding": lambda: next(short)}, rounds=12)
        benchmark.pedantic(lambda: next(short), rounds=10)
    with torch.no_grad():
        whole = stream(model, prompt, Reading(chunk=2048))
        next(whole)
        seconds = {**in_turn({"full": lambda: next(whole)}, rounds=12), **ours}
    with torch.no_grad(), sliding(model):  # and once more, should the machine have got quieter meanwhile
        seconds["sliding"] = min(seconds["sliding"], *in_turn({"sliding": lambda: next(short)}, rounds=12).values())
    told("decode step after 8,192 tokens", seconds)
    assert seconds["full"] >= 1.3 * seconds["sliding"]


def test_a_decode_step_is_as_fast_after_a_long_prompt_as_after_a_short_one(model: Any) -> None:
    with torch.no_grad(), sliding(model):
        streams = {name: stream(model, prompt_of(length), Reading(tells_prompt=True)) for name, length in LENGTHS}
        for steps in streams.values():
            next(steps)
        seconds = in_turn({name: lambda steps=steps: next(steps) for name, steps in streams.items()}, rounds=15)
    assert seconds["long"] <= 2 * seconds["short"]


LENGTHS = (("short", 512), ("long", 8192))


def test_whole_request(model: Any, benchmark: Any) -> None:
    prompt = prompt_of(4096)

    def request(dressed: Any, reading: Reading) -> None:
        with dressed:
            time_request(model, prompt, 16, reading)

    def ours() -> None:
        request(sliding(model), Reading(tells_prompt=True))

    ways = {"full": lambda: request(contextlib.nullcontext(), Reading()), "sliding": ours}
    seconds = in_turn(ways, rounds=2)
    benchmark.pedantic(ours, rounds=2)
    told("request, 4,096 in and 16 out", seconds)
    assert seconds["full"] >= 1.3 * seconds["sliding"]


def test_peak_memory_of_chunked_prefill(model: Any, benchmark: Any) -> None:
    """Bounded by window and chunk: a prompt twice as long takes no more, where full attention's cache doubles.

    The resident set is what the allocator happens to keep, some MB more or less from run to run; what a prompt needs
    is the least of several.
    """

    def peak(length: int) -> int:
        with sliding(model):
            timing = time_request(model, prompt_of(length), 2, Reading(chunk=1024, tells_prompt=True))
        assert timing.kv_bytes == KV_BYTES_A_KEY * (WINDOW - 1 + SINKS)
        if timing.peak_bytes is None or timing.rest_bytes is None:
            pytest.skip("peak memory is read from /proc")
        return timing.peak_bytes - timing.rest_bytes

    peak(2048)  # what is set up once
    pairs = [(peak(4096), peak(8192)) for _ in range(3)]
    half, whole = (min(peaks) for peaks in zip(*pairs, strict=True))
    with attention(model, "sdpa"):
        full = time_request(model, prompt_of(8192), 2, Reading())
    assert full.kv_bytes == KV_BYTES_A_KEY * 8192
    assert full.peak_bytes is not None
    assert full.rest_bytes is not None
    benchmark.pedantic(peak, (2048,), rounds=1)
    print(
        f"\npeak of a chunked prefill: {half / 1e6:.0f} MB for 4,096 tokens, {whole / 1e6:.0f} MB for 8,192; "
        f"full attention, in one pass: {(full.peak_bytes - full.rest_bytes) / 1e6:.0f} MB"
    )
    assert whole <= half + 8e6, "the prompt's own ids take 64 kB of it"


def test_memory_is_flat_while_decoding(model: Any) -> None:
    from swaa.hf import held_bytes

    with torch.no_grad(), sliding(model):
        steps = stream(model, prompt_of(600), Reading(tells_prompt=True))
        held = [held_bytes(cache) for _, cache in itertools.islice(steps, 300)]
    assert max(held[100:]) <= 2 * held[0]
    assert max(held[200:]) <= max(held[:200])

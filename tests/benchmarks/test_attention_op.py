"""How long one layer's attention takes, by kernel, against SDPA: all of them in turn in the same run.

    pytest tests/benchmarks/test_attention_op.py -s

prints the figures. The floors asserted are far below them, since other work on the machine slows kernels unevenly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from swaa import FullAttention, SinkTokens, SlidingWindow
from swaa.compiler.layout import TokenLayout
from swaa.compiler.plan import has_cpp_compiler
from swaa.compiler.program import AttentionProgram
from swaa.policies import bind

HEADS, KV_HEADS, SIZE = 9, 3, 64  # SmolLM2-135M
LENGTH = 8192
POLICY = SlidingWindow(256) | SinkTokens(10)
LAYER = bind(POLICY, 1, HEADS).layers[0]


def tensors(queries: int, keys: int, *, needs_grad: bool = False) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, length, SIZE, generator=random).bfloat16().requires_grad_(needs_grad)
        for heads, length in ((HEADS, queries), (KV_HEADS, keys), (KV_HEADS, keys))
    ]


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least seconds of each way, taken by turns. Long ones have been run before: that warmed them up.

    With as many threads as suit it best: on a busy machine, handing work to a second one can cost a hundred times more.
    """
    least = dict.fromkeys(ways, float("inf"))
    all_threads = torch.get_num_threads()
    try:
        for turn in range(2 * rounds):
            torch.set_num_threads(1 if turn % 2 else all_threads)
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                least[name] = min(least[name], time.perf_counter() - start)
    finally:
        torch.set_num_threads(all_threads)
    return least


def report(title: str, seconds: Mapping[str, float], baseline: str) -> dict[str, float]:
    """Print a line for each way; how many times as fast as the baseline each is."""
    ratios = {name: seconds[baseline] / value for name, value in seconds.items()}
    print(f"\n{title}, at most {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        print(f"  {name:<28} {value * 1e3:8.1f} ms   {ratios[name]:5.2f}x")
    return ratios


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward(benchmark: Any) -> None:
    query, key, value = tensors(LENGTH, LENGTH)
    names = ["auto", "blockwise", *(["flex"] if has_cpp_compiler() else [])]
    programs = {name: AttentionProgram(TokenLayout.contiguous(LENGTH), name) for name in names}

    def attend(name: str) -> Tensor:
        return programs[name].attend(LAYER, query, key, value)

    with torch.no_grad():
        exact = AttentionProgram(TokenLayout.contiguous(LENGTH), "dense").attend(LAYER, query, key, value)
        for name in names:
            torch.testing.assert_close(attend(name), exact, rtol=0.05, atol=0.02)
        ways: dict[str, Callable[[], object]] = {
            "SDPA causal": lambda: scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        }
        ways |= {name: lambda name=name: attend(name) for name in names}  # type: ignore[misc]
        ratios = report(f"forward, {LENGTH:,} tokens, {POLICY}, bf16", in_turn(ways, 4), "SDPA causal")
        benchmark.pedantic(attend, ("auto",), rounds=5)
    assert ratios["auto"] >= 2.5
    assert ratios["blockwise"] >= 2.5
    assert ratios.get("flex", 9) >= 1.5


@pytest.mark.slow
def test_forward_and_backward(benchmark: Any) -> None:
    inputs = tensors(LENGTH, LENGTH, needs_grad=True)
    upstream = torch.randn(1, HEADS, LENGTH, SIZE, generator=torch.Generator().manual_seed(1)).bfloat16()
    programs = {name: AttentionProgram(TokenLayout.contiguous(LENGTH), name) for name in ("dense", "auto")}
    mask = programs["dense"].dense_mask(LAYER)

    def dense() -> tuple[Tensor, ...]:
        out = scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)
        return torch.autograd.grad(out, inputs, upstream)

    def auto() -> tuple[Tensor, ...]:
        return torch.autograd.grad(programs["auto"].attend(LAYER, *inputs), inputs, upstream)

    for mine, theirs in zip(auto(), dense(), strict=True):
        assert (mine - theirs).float().norm() <= 0.03 * theirs.float().norm()
    title = f"forward and backward, {LENGTH:,} tokens, {POLICY}, bf16"
    ratios = report(title, in_turn({"SDPA, dense mask": dense, "auto (blockwise)": auto}, 2), "SDPA, dense mask")
    benchmark.pedantic(auto, rounds=3)
    assert ratios["auto (blockwise)"] >= 4


@pytest.mark.slow
def test_a_chunk_of_full_attention_over_a_long_cache(benchmark: Any) -> None:
    queries, keys = 2048, 32_768
    query, key, value = tensors(queries, keys)
    layer = bind(FullAttention(), 1, HEADS).layers[0]
    programs = {
        name: AttentionProgram(TokenLayout.contiguous(queries, offset=keys - queries), name)
        for name in ("auto", "blockwise", "dense")
    }

    def attend(name: str) -> Tensor:
        return programs[name].attend(layer, query, key, value)

    with torch.no_grad():
        exact = attend("dense")
        for name in ("auto", "blockwise"):
            torch.testing.assert_close(attend(name), exact, rtol=0.05, atol=0.02)
        ways = {name: lambda name=name: attend(name) for name in programs}  # type: ignore[misc]
        title = f"full attention, {queries:,} queries at the end of {keys:,} keys, bf16"
        ratios = report(title, in_turn(ways, 2), "dense")
        benchmark.pedantic(attend, ("auto",), rounds=3)
    assert ratios["auto"] >= 0.9


def test_a_decode_step_over_an_evicted_cache(benchmark: Any) -> None:
    keys, held = 8192, 266
    query, key, value = tensors(1, keys)
    layer = bind(FullAttention(), 1, HEADS).layers[0]
    whole = AttentionProgram(TokenLayout.contiguous(1, offset=keys - 1))
    evicted = AttentionProgram(TokenLayout.contiguous(1, offset=held - 1), all_visible=True)

    def step() -> Tensor:
        return evicted.attend(layer, query, key[:, :, :held], value[:, :, :held])

    with torch.no_grad():
        seconds = in_turn({"all keys": lambda: whole.attend(layer, query, key, value), "held keys": step}, 100)
        ratios = report(f"decode step, {held} of {keys:,} keys", seconds, "all keys")
        benchmark.pedantic(step, rounds=20)
    assert ratios["held keys"] >= 2

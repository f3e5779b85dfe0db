"""Which kernel a layer runs on, as a table; and the lengths that kernels are compiled for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa import FullAttention, SinkTokens, SlidingWindow, UserError
from swaa.compiler import plan
from swaa.compiler.attention import bucket_length
from swaa.compiler.plan import DENSE_ON_CPU_UP_TO, Job, Kernel, choose_kernel
from swaa.policies import bind

FULL = bind(FullAttention(), 1, 1).layers[0]
SPARSE = bind(SlidingWindow(8) | SinkTokens(2), 1, 1).layers[0]
LONG = Job(8192, 8192)
SHORT = Job(512, 512)
ON_GPU = replace(SHORT, device_type="cuda")


@pytest.fixture(autouse=True)
def compiler_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "has_cpp_compiler", lambda: True)


@pytest.mark.parametrize(
    ("layer", "job", "requested", "kernel", "reason", "is_fallback"),
    [
        (FULL, LONG, "auto", Kernel.CAUSAL, "full attention without padding", False),
        (FULL, SHORT, "auto", Kernel.CAUSAL, "full attention without padding", False),
        (FULL, replace(LONG, needs_grad=True, dropout=0.1), "auto", Kernel.CAUSAL, "full attention", False),
        (FULL, LONG, "flex", Kernel.CAUSAL, "full attention without padding", False),
        (FULL, LONG, "dense", Kernel.DENSE, "asked for", False),
        (FULL, replace(LONG, is_square=False), "auto", Kernel.FLEX, "padded or offset", False),
        (FULL, replace(SHORT, is_square=False), "auto", Kernel.DENSE, "too short to repay compiling", False),
        (FULL, replace(LONG, has_softcap=True), "auto", Kernel.FLEX, "padded or offset", False),
        (FULL, replace(LONG, has_sink_logits=True), "auto", Kernel.DENSE, "sink logits", True),
        (SPARSE, LONG, "auto", Kernel.FLEX, "sparse mask", False),
        (SPARSE, SHORT, "auto", Kernel.DENSE, "too short to repay compiling", False),
        (SPARSE, SHORT, "flex", Kernel.FLEX, "asked for", False),
        (SPARSE, LONG, "dense", Kernel.DENSE, "asked for", False),
        (SPARSE, ON_GPU, "auto", Kernel.FLEX, "sparse mask", False),
        (SPARSE, replace(LONG, query_length=1, is_square=False), "auto", Kernel.DENSE, "one query", False),
        (SPARSE, replace(LONG, query_length=1, is_square=False), "flex", Kernel.DENSE, "one query", False),
        (SPARSE, replace(LONG, needs_grad=True), "auto", Kernel.DENSE, "no backward pass on CPU", True),
        (SPARSE, replace(ON_GPU, needs_grad=True), "auto", Kernel.FLEX, "sparse mask", False),
        (SPARSE, replace(LONG, dropout=0.1), "auto", Kernel.DENSE, "no attention dropout", True),
        (SPARSE, replace(ON_GPU, dropout=0.1), "auto", Kernel.DENSE, "no attention dropout", True),
        (SPARSE, replace(LONG, has_softcap=True), "auto", Kernel.FLEX, "sparse mask", False),
        (SPARSE, replace(ON_GPU, has_sink_logits=True), "auto", Kernel.DENSE, "sink logits", True),
        (SPARSE, replace(LONG, value_dim_differs=True), "auto", Kernel.DENSE, "keys and values differ in size", True),
        (SPARSE, replace(ON_GPU, value_dim_differs=True), "auto", Kernel.FLEX, "sparse mask", False),
        (SPARSE, Job(2048, DENSE_ON_CPU_UP_TO // 2048), "auto", Kernel.DENSE, "too short", False),
        (SPARSE, Job(2048, DENSE_ON_CPU_UP_TO // 2048 + 1), "auto", Kernel.FLEX, "sparse mask", False),
    ],
)
def test_the_choice(layer: object, job: Job, requested: str, kernel: Kernel, reason: str, is_fallback: bool) -> None:
    chosen = choose_kernel(layer, job, requested)  # type: ignore[arg-type]
    assert chosen.kernel is kernel
    assert reason in chosen.reason
    assert chosen.is_fallback == is_fallback
    assert str(chosen) == f"{kernel.value} ({chosen.reason})"


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "has_cpp_compiler", lambda: False)
    chosen = choose_kernel(SPARSE, LONG)
    assert (chosen.kernel, chosen.is_fallback) == (Kernel.DENSE, True)
    assert "there is no C++ compiler" in chosen.reason
    assert choose_kernel(SPARSE, ON_GPU).kernel is Kernel.FLEX


@pytest.mark.parametrize(
    ("job", "obstacle"),
    [
        (replace(LONG, needs_grad=True), "FlexAttention has no backward pass on CPU"),
        (replace(LONG, dropout=0.1), "FlexAttention has no attention dropout"),
        (replace(LONG, has_sink_logits=True), "sink logits .s_aux. need the dense kernel"),
    ],
)
def test_asked_for_what_cannot_be(job: Job, obstacle: str) -> None:
    message = f"kernel: 'flex' was asked for, but {obstacle}. Use kernel='auto' or 'dense'."
    with pytest.raises(UserError, match=message):
        choose_kernel(SPARSE, job, "flex")


def test_an_unknown_kernel() -> None:
    with pytest.raises(UserError, match="kernel: expected 'auto' or .*'dense', got 'flash'. Leave it out for 'auto'."):
        choose_kernel(SPARSE, LONG, "flash")


@given(st.integers(1, 1 << 20), st.sampled_from((16, 64, 128)))
def test_buckets(length: int, block_size: int) -> None:
    bucket = bucket_length(length, block_size)
    blocks = -(-length // block_size)
    assert bucket >= length
    assert bucket % block_size == 0
    assert bucket // block_size <= blocks * 1.25
    assert bucket_length(bucket, block_size) == bucket, "a bucket is its own"
    assert bucket_length(max(1, length - 1), block_size) <= bucket


def test_there_are_few_buckets() -> None:
    assert len({bucket_length(length) for length in range(1, 131_073, 100)}) < 40

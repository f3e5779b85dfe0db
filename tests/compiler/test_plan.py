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
OFFSET = Job(2048, 102_400, is_square=False)
TINY = Job(128, 128)
ON_GPU = replace(SHORT, device_type="cuda")
GPU_OFFSET = replace(OFFSET, device_type="cuda")
FASTER = "sparse mask; faster than flex on CPU"
LOGITS = "sink logits run on it only where it is asked for: proven on CPU alone"
TRAINED = "sink logits that are trained need plain tensor operations"


@pytest.fixture(autouse=True)
def compiler_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "has_cpp_compiler", lambda: True)


@pytest.mark.parametrize(
    ("layer", "job", "requested", "kernel", "reason", "is_fallback"),
    [
        # full attention: SDPA's causal kernel wherever no score is changed
        (FULL, LONG, "auto", Kernel.CAUSAL, "full attention without padding", False),
        (FULL, TINY, "auto", Kernel.CAUSAL, "full attention without padding", False),
        (FULL, replace(LONG, needs_grad=True, dropout=0.1), "auto", Kernel.CAUSAL, "full attention", False),
        (FULL, LONG, "flex", Kernel.CAUSAL, "full attention without padding", False),
        (FULL, LONG, "blockwise", Kernel.CAUSAL, "full attention without padding", False),
        (FULL, LONG, "dense", Kernel.DENSE, "asked for", False),
        (FULL, replace(OFFSET, in_runs=True), "auto", Kernel.CAUSAL, "full attention, in runs of tokens", False),
        (FULL, replace(GPU_OFFSET, in_runs=True), "auto", Kernel.CAUSAL, "full attention, in runs of tokens", False),
        (FULL, replace(OFFSET, in_runs=True), "blockwise", Kernel.BLOCKWISE, "asked for", False),
        (FULL, replace(GPU_OFFSET, in_runs=True), "flex", Kernel.FLEX, "asked for", False),
        (FULL, OFFSET, "auto", Kernel.BLOCKWISE, "padded or offset; faster than flex on CPU", False),
        (FULL, GPU_OFFSET, "auto", Kernel.FLEX, "padded or offset", False),
        (FULL, replace(TINY, is_square=False), "auto", Kernel.DENSE, "padded or offset; short", False),
        (FULL, replace(LONG, has_softcap=True), "auto", Kernel.BLOCKWISE, "changed scores; faster", False),
        (FULL, replace(LONG, has_sink_logits=True), "auto", Kernel.BLOCKWISE, "changed scores; faster", False),
        (FULL, replace(LONG, has_scores=True), "auto", Kernel.BLOCKWISE, "changed scores; faster", False),
        (FULL, replace(OFFSET, in_runs=True, has_scores=True), "auto", Kernel.BLOCKWISE, "padded or offset", False),
        (FULL, replace(TINY, has_scores=True), "auto", Kernel.DENSE, "changed scores; short", False),
        (FULL, replace(LONG, has_scores=True), "flex", Kernel.FLEX, "asked for", False),
        (SPARSE, replace(LONG, hides_nothing=True), "auto", Kernel.CAUSAL, "full attention at this length", False),
        # one query
        (SPARSE, replace(LONG, query_length=1, is_square=False), "auto", Kernel.DENSE, "one query", False),
        (SPARSE, replace(LONG, query_length=1, is_square=False), "flex", Kernel.DENSE, "one query", False),
        # CPU
        (SPARSE, LONG, "auto", Kernel.BLOCKWISE, FASTER, False),
        (SPARSE, SHORT, "auto", Kernel.BLOCKWISE, FASTER, False),
        (SPARSE, TINY, "auto", Kernel.DENSE, "sparse mask; short", False),
        (SPARSE, Job(256, DENSE_ON_CPU_UP_TO // 256), "auto", Kernel.DENSE, "short", False),
        (SPARSE, Job(256, DENSE_ON_CPU_UP_TO // 256 + 1), "auto", Kernel.BLOCKWISE, FASTER, False),
        (SPARSE, replace(LONG, needs_grad=True), "auto", Kernel.BLOCKWISE, FASTER, False),
        (SPARSE, replace(LONG, dropout=0.1), "auto", Kernel.BLOCKWISE, FASTER, False),
        (SPARSE, replace(LONG, value_dim_differs=True), "auto", Kernel.BLOCKWISE, FASTER, False),
        (SPARSE, replace(LONG, has_softcap=True), "auto", Kernel.BLOCKWISE, FASTER, False),
        (SPARSE, replace(LONG, has_sink_logits=True), "auto", Kernel.BLOCKWISE, FASTER, False),
        (SPARSE, replace(LONG, has_sink_logits=True), "flex", Kernel.FLEX, "asked for", False),
        (SPARSE, replace(TINY, has_sink_logits=True), "auto", Kernel.DENSE, "sparse mask; short", False),
        (SPARSE, SHORT, "flex", Kernel.FLEX, "asked for", False),
        (SPARSE, TINY, "blockwise", Kernel.BLOCKWISE, "asked for", False),
        (SPARSE, LONG, "dense", Kernel.DENSE, "asked for", False),
        # CUDA
        (SPARSE, ON_GPU, "auto", Kernel.FLEX, "sparse mask", False),
        (SPARSE, replace(ON_GPU, needs_grad=True), "auto", Kernel.FLEX, "sparse mask", False),
        (SPARSE, replace(ON_GPU, value_dim_differs=True), "auto", Kernel.FLEX, "sparse mask", False),
        (SPARSE, replace(ON_GPU, dropout=0.1), "auto", Kernel.BLOCKWISE, "no attention dropout", True),
        (SPARSE, replace(ON_GPU, has_sink_logits=True), "auto", Kernel.BLOCKWISE, LOGITS, True),
        (SPARSE, replace(ON_GPU, has_sink_logits=True), "flex", Kernel.FLEX, "asked for", False),
        (SPARSE, replace(ON_GPU, trains_sink_logits=True), "auto", Kernel.BLOCKWISE, TRAINED, True),
        (SPARSE, replace(ON_GPU, has_scores=True), "auto", Kernel.FLEX, "sparse mask", False),
        (SPARSE, replace(TINY, device_type="cuda", dropout=0.1), "auto", Kernel.DENSE, "no attention dropout", True),
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
    assert choose_kernel(SPARSE, LONG).kernel is Kernel.BLOCKWISE
    assert choose_kernel(SPARSE, ON_GPU).kernel is Kernel.FLEX
    with pytest.raises(UserError, match="kernel: 'flex' was asked for, but there is no C.. compiler. Use"):
        choose_kernel(SPARSE, LONG, "flex")


@pytest.mark.parametrize(
    ("job", "obstacle"),
    [
        (replace(LONG, needs_grad=True), "FlexAttention has no backward pass on CPU"),
        (replace(LONG, dropout=0.1), "FlexAttention has no attention dropout"),
        (replace(LONG, has_sink_logits=True, trains_sink_logits=True), TRAINED),
    ],
)
def test_asked_for_what_cannot_be(job: Job, obstacle: str) -> None:
    message = f"kernel: 'flex' was asked for, but {obstacle}. Use kernel='auto', 'blockwise' or 'dense'."
    with pytest.raises(UserError, match=message):
        choose_kernel(SPARSE, job, "flex")


def test_an_unknown_kernel() -> None:
    with pytest.raises(
        UserError,
        match="kernel: expected 'auto' or 'flex' or 'blockwise' or 'dense', got 'flash'. Leave it out for 'auto'.",
    ):
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

"""How long prompts are cut: by the rule, counted anew here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa.compiler import ModelShape, prefill_chunk
from swaa.compiler.chunking import CHUNK_ON_CPU, even_chunk
from swaa.policies import parse_policy

SHAPE = ModelShape(num_layers=4, num_heads=2, num_kv_heads=1, head_dim=8)
SLIDES = ["SlidingWindow(256) | SinkTokens(10)", "(SlidingWindow(256)).in_phase('prefill')", "SlidingWindow(4095)"]
READS_ALL = [
    "FullAttention()",
    "FullAttention().on_layers('1::2', otherwise=SlidingWindow(256))",
    "SlidingWindow(256).in_phase('decode')",
    "SlidingWindow(4096)",
    "PrefixLM() | SlidingWindow(256)",
    "SlidingWindow(256) | TopBlocks(64, 2)",
]


@given(st.integers(1, 300_000))
def test_chunks_are_even_and_near_the_best_size(length: int) -> None:
    chunk = even_chunk(length, "cpu")
    if chunk is None:
        assert length < 2 * CHUNK_ON_CPU
        return
    sizes = [min(chunk, length - start) for start in range(0, length, chunk)]
    assert sum(sizes) == length
    assert CHUNK_ON_CPU <= chunk < 1.5 * CHUNK_ON_CPU
    assert min(sizes) > 0.9 * max(sizes), "no handful of tokens is left for a pass of its own"


@pytest.mark.parametrize("text", SLIDES)
def test_where_no_layer_reads_all_the_prompt_is_cut(text: str) -> None:
    assert prefill_chunk(parse_policy(text), SHAPE, 4096, "cpu") == 2048
    assert prefill_chunk(parse_policy(text), SHAPE, 4095, "cpu") is None
    assert prefill_chunk(parse_policy(text), SHAPE, 4096, "cuda") is None


@pytest.mark.parametrize("text", READS_ALL)
def test_elsewhere_it_is_read_in_one_pass(text: str) -> None:
    assert prefill_chunk(parse_policy(text), SHAPE, 4096, "cpu") is None


def test_a_longer_prompt_shows_that_a_window_hides_something() -> None:
    assert prefill_chunk(parse_policy("SlidingWindow(4096)"), SHAPE, 8192, "cpu") == 2048

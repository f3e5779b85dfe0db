"""What costs are over: the model without a policy, as transformers runs it."""

from __future__ import annotations

import dataclasses
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.compiler.shape import ModelShape
from swaa.compiler.timing import CPU_FLOAT32, Machine, prefill_work, step_work
from swaa.config import Budget, Search
from swaa.policies import FullAttention, SlidingWindow
from swaa.search.budget import CostModel, Costs, excess

few = settings(max_examples=settings.default.max_examples // 10)
RATES = [item.name for item in fields(Machine) if item.name != "name"]
machines = st.lists(st.floats(1, 1e12), min_size=len(RATES), max_size=len(RATES)).map(
    lambda rates: Machine("drawn", **dict(zip(RATES, rates, strict=True)))
)


def model_of(machine: Machine, length: int = 400, new_tokens: int = 2) -> CostModel:
    return CostModel(ModelShape(4, 2, 1, 8, bytes_per_value=4), length, new_tokens, machine, "cpu", "auto")


@few
@given(machines, st.integers(1, 600), st.integers(1, 40))
def test_full_attentions_own_ratio_is_one(machine: Machine, length: int, new_tokens: int) -> None:
    whole = model_of(machine, length, new_tokens).costs(FullAttention(), 4)
    assert whole == Costs(4, 1.0, 1.0)
    assert excess(Budget(max_time_ratio=1.0, max_kv_share=1.0), whole) == 0


@few
@given(machines, st.integers(1, 40))
def test_a_candidates_ratio_is_over_transformers_own_attention(machine: Machine, new_tokens: int) -> None:
    """Counted by hand: weights twice a token, half of all pairs and half a tile, all keys copied at each step."""
    length, layers, heads, size = 400, 4, 2, 8
    model = model_of(machine, length, new_tokens)
    shape = model.shape
    weights = layers * shape.layer_weights * length + shape.head_weights
    pairs = heads * (length * (length + 1) / 2 + length * 64)
    prefill = 2 * weights / machine.linear_flops + layers * 4 * size * pairs / machine.causal_flops + 1 / machine.passes
    step = 4 * (layers * shape.layer_weights + shape.head_weights) / machine.weight_bytes + 1 / machine.passes
    copied = sum(2 * layers * size * 4 * (length + number) / machine.copied_kv_bytes for number in range(1, new_tokens))
    full = prefill + (new_tokens - 1) * step + copied
    policy = SlidingWindow(16)
    own = machine.seconds(prefill_work(policy, shape, length))
    if new_tokens > 1:
        own += (new_tokens - 1) * machine.seconds(step_work(policy, shape, length, new_tokens - 1))
    assert model.costs(policy, 0).time_ratio == pytest.approx(own / full)


def test_planned_chunks_are_on_the_bill() -> None:
    fast = dataclasses.replace(CPU_FLOAT32, chunked_linear_flops=1e15, passes=1e9, policy_calls=1e9)
    whole = model_of(fast, 8192)
    planned = dataclasses.replace(whole, plans_chunks=True)
    assert planned.costs(SlidingWindow(16), 0).time_ratio < whole.costs(SlidingWindow(16), 0).time_ratio
    assert planned.costs(FullAttention(), 4) == whole.costs(FullAttention(), 4)
    asked = {
        "calibration": {"tasks": [{"name": "needle_single"}], "length": 400},
        "space": {"windows": [16], "counts": [0]},
        "scorers": ["add_one"],
    }
    asked |= {"test": {"tasks": [{"name": "needle_single"}], "lengths": [300]}}
    for size, plans in (("auto", True), (None, False), (64, False)):
        search = Search.from_dict({**asked, "model": {"name": "m", "prefill_chunk_size": size}}, output="out")
        assert CostModel.of(search, whole.shape, "cpu").plans_chunks is plans


def test_a_policy_that_saves_nothing_costs_its_calls() -> None:
    """On a tiny model calls of a policy are dear: a candidate may be slower than full attention, which is not."""
    model = model_of(CPU_FLOAT32)
    assert model.costs(SlidingWindow(16), 0).time_ratio > 1
    assert model.costs(FullAttention(), 4).time_ratio == 1

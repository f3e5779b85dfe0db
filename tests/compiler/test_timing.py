"""The time model: work against counts by loops, the fit against a machine that is known, and predictions' order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from swaa import SinkTokens, SlidingWindow, UserError, parse_policy
from swaa.compiler import ModelShape
from swaa.compiler.plan import BLOCK_SIZES
from swaa.compiler.timing import (
    CPU_BFLOAT16,
    KINDS,
    Machine,
    Work,
    default_machine,
    fit,
    floor_step_work,
    floor_work,
    full_prefill_work,
    full_step_work,
    predict,
    prefill_work,
    step_work,
)

SHAPE = ModelShape(num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64)  # SmolLM2-135M
POLICY = SlidingWindow(100) | SinkTokens(10)
RECIPES = {
    "naive": "SlidingWindow(256)",
    "sink": "SlidingWindow(256) | SinkTokens(10)",
    "sink, FA decode": "(SlidingWindow(256) | SinkTokens(10)).in_phase('prefill')",
    "sink, half": "FullAttention().on_layers('1::2', otherwise=SlidingWindow(256) | SinkTokens(10))",
    "sink, FA decode, half": (
        "FullAttention().on_layers('1::2', otherwise=(SlidingWindow(256) | SinkTokens(10)).in_phase('prefill'))"
    ),
    "full": "FullAttention()",
}


def test_the_default_shape_is_smollm2s() -> None:
    hidden, inner, keys = 576, 1536, 192
    assert SHAPE.hidden_size == hidden
    assert SHAPE.layer_weights == 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    assert SHAPE.head_weights == 49_152 * hidden
    with pytest.raises(UserError, match="shape.layer_weights: expected an int >= 0, got -1. Check the model's config"):
        dataclasses.replace(SHAPE, layer_weights=-1)


def test_the_floor_counts_every_weight_once_a_token() -> None:
    assert floor_work(SHAPE, 7).linear_flops == 2 * (7 * 30 * SHAPE.layer_weights + SHAPE.head_weights)
    assert floor_step_work(SHAPE).weight_bytes == 2 * (30 * SHAPE.layer_weights + SHAPE.head_weights)


def test_in_chunks_the_head_is_computed_for_each() -> None:
    work = floor_work(SHAPE, 9, 4)
    assert work.linear_flops == 0
    assert work.chunked_linear_flops == 2 * (9 * 30 * SHAPE.layer_weights + 3 * SHAPE.head_weights)
    assert work.passes == 3
    whole, chunks = prefill_work(POLICY, SHAPE, 8192), prefill_work(POLICY, SHAPE, 8192, chunk=2048)
    assert chunks.blockwise_flops == whole.blockwise_flops
    assert (chunks.linear_flops, whole.chunked_linear_flops) == (0, 0)
    assert (chunks.policy_calls, whole.policy_calls) == (4 * 30, 30)
    predicted = predict(POLICY, SHAPE, 8192, 5, CPU_BFLOAT16, chunk=2048)
    assert predicted.prefill == CPU_BFLOAT16.seconds(chunks)
    assert predicted.full_prefill == CPU_BFLOAT16.seconds(full_prefill_work(SHAPE, 8192))


@pytest.mark.parametrize("kernel", ["blockwise", "flex"])
def test_attention_is_counted_in_whole_blocks(kernel: str) -> None:
    length, (height, width) = 700, BLOCK_SIZES["blockwise" if kernel == "blockwise" else "flex on CPU"]
    blocks = {
        (q // height, k // width) for q in range(length) for k in range(q + 1) if q - k < 100 or k < 10
    }  # those that hold a visible pair
    work = prefill_work(POLICY, SHAPE, length, kernel=kernel)
    assert getattr(work, f"{kernel}_flops") == 4 * 64 * 9 * 30 * len(blocks) * height * width
    assert work.causal_flops == work.dense_flops == 0


def test_each_layer_is_counted_on_its_own_kernel() -> None:
    work = prefill_work(POLICY.on_layers("::3"), SHAPE, 1024)
    assert work.causal_flops == pytest.approx(20 / 30 * full_prefill_work(SHAPE, 1024).causal_flops)
    assert work.blockwise_flops == pytest.approx(10 / 30 * prefill_work(POLICY, SHAPE, 1024).blockwise_flops)
    dense = prefill_work(POLICY, SHAPE, 1024, kernel="dense")
    assert dense.dense_flops == 4 * 64 * 9 * 30 * 1024**2
    longer = SlidingWindow(4096)  # hides nothing here, so it is computed as plain causal attention
    assert prefill_work(longer, SHAPE, 1024).causal_flops == full_prefill_work(SHAPE, 1024).causal_flops


def test_a_decode_step_reads_what_is_kept() -> None:
    a_key = 2 * 64 * 2  # bytes of a key and its value
    window = step_work(POLICY, SHAPE, 4096, 63).kv_bytes / a_key / 3 / 30
    assert window == 99 + 10 + 1  # the kept keys and the new one
    everything = step_work(POLICY.in_phase("prefill"), SHAPE, 4096, 63).kv_bytes / a_key / 3 / 30
    assert everything == 4096 + sum(range(1, 64)) / 63
    assert full_step_work(SHAPE, 4096, 63).copied_kv_bytes / a_key / 3 / 30 == everything


def test_a_predicate_that_intervals_do_not_know_is_counted_as_all_causal_blocks() -> None:
    from swaa.policies import Predicate

    @dataclasses.dataclass(frozen=True, repr=False)
    class Odd(Predicate):
        def visible(self, q, k):  # type: ignore[no-untyped-def]
            return (q - k).remainder(2) == 0  # a method that intervals lack

        @classmethod
        def examples(cls) -> tuple[Odd, ...]:
            return (cls(),)

    work = prefill_work(Odd(), SHAPE, 1024)
    assert work.blockwise_flops == full_prefill_work(SHAPE, 1024).causal_flops


def test_predictions_have_the_order_of_the_paper() -> None:
    ratios = {
        name: predict(parse_policy(text), SHAPE, 8192, 64, CPU_BFLOAT16).request_ratio for name, text in RECIPES.items()
    }
    assert sorted(ratios, key=ratios.__getitem__) == list(RECIPES)
    assert ratios["full"] <= 1.02, "swaa's own full attention costs no more than transformers'"


def test_seconds_add_up() -> None:
    found = predict(POLICY, SHAPE, 4096, 11, CPU_BFLOAT16)
    assert found.request == pytest.approx(found.prefill + 10 * found.step)
    assert found.full_request == pytest.approx(found.full_prefill + 10 * found.full_step)
    alone = predict(POLICY, SHAPE, 4096, 1, CPU_BFLOAT16)
    assert alone.step == 0
    assert alone.step_ratio is None
    assert alone.request_ratio == alone.prefill_ratio
    assert predict(POLICY, SHAPE, 4096, 0, CPU_BFLOAT16) == alone


def test_seconds_are_work_over_rates() -> None:
    machine = dataclasses.replace(CPU_BFLOAT16, linear_flops=10.0, passes=4.0)
    assert machine.seconds(Work(linear_flops=30, passes=2)) == 3.5
    assert Work(passes=1) + Work(passes=2, kv_bytes=5) == Work(passes=3, kv_bytes=5)


def observed(machine: Machine) -> list[tuple[Work, float]]:
    works = []
    for length in (2048, 8192):
        works += [floor_work(SHAPE, length), full_prefill_work(SHAPE, length), full_step_work(SHAPE, length, 63)]
        for text in RECIPES.values():
            policy = parse_policy(text)
            works += [prefill_work(policy, SHAPE, length), step_work(policy, SHAPE, length, 63)]
    return [(work, machine.seconds(work)) for work in [*works, floor_step_work(SHAPE)]]


def test_a_fit_finds_the_machine_behind_the_times() -> None:
    truth = dataclasses.replace(
        CPU_BFLOAT16, linear_flops=9e11, causal_flops=5e10, blockwise_flops=4e10, copied_kv_bytes=9e9, kv_bytes=2e9
    )
    found = fit(CPU_BFLOAT16, observed(truth), "found")
    assert found.name == "found"
    assert found.flex_flops == CPU_BFLOAT16.flex_flops, "nothing observed it"
    for work, seconds in observed(truth):
        assert found.seconds(work) == pytest.approx(seconds, rel=0.05)
    for kind in ("linear_flops", "causal_flops", "blockwise_flops", "copied_kv_bytes", "kv_bytes"):
        assert getattr(found, kind) == pytest.approx(getattr(truth, kind), rel=0.1)


def test_a_fit_gives_no_kind_of_work_a_negative_time() -> None:
    times = [(Work(linear_flops=1e11), 1.0), (Work(linear_flops=1e11, causal_flops=1e11), 0.8)]
    found = fit(CPU_BFLOAT16, times, "odd")
    assert all(getattr(found, kind) > 0 for kind in KINDS)
    assert found.causal_flops == CPU_BFLOAT16.causal_flops


def test_the_default_machine_follows_device_and_dtype() -> None:
    names = {default_machine(*facts).name for facts in (("cpu", 2), ("cpu", 4), ("cuda", 2))}
    assert len(names) == 3
    assert all("docs/performance.md" in default_machine("cpu", size).name for size in (2, 4))


def test_machines_are_read_from_a_result(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"machine": CPU_BFLOAT16.to_dict()}))
    assert Machine.read(path) == CPU_BFLOAT16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "machine: .*bench.json holds no benchmark's result .*Give the bench.json that 'swaa bench' wrote"),
        ("{}", "holds no benchmark's result \\(KeyError\\('machine'\\)\\)"),
        ('{"machine": null}', "fits no machine, for want of baselines. Add 'full' and 'floor' to its baselines"),
        ('{"machine": {"nam": 1}}', "unknown field 'machine.nam'. Did you mean 'machine.name'?"),
        ('{"machine": {"name": "x"}}', "machine.linear_flops: expected a value, got None. Let swaa bench write it."),
    ],
)
def test_what_is_no_machine_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        Machine.read(path)


@pytest.mark.parametrize("rate", [0, -1.0, "fast", True, float("inf")])
def test_a_rate_is_a_number_above_zero(rate: object) -> None:
    with pytest.raises(UserError, match=r"machine.kv_bytes: expected a number > 0 \(a second\), got"):
        dataclasses.replace(CPU_BFLOAT16, kv_bytes=rate)


@pytest.mark.parametrize("chunk", [None, 2048])
def test_products_in_chunks_and_in_one_pass_keep_their_ratio_where_one_of_them_is_measured(chunk: int | None) -> None:
    """Or a slow machine would seem to gain as much by chunks as it is slower."""
    slow = dataclasses.replace(
        CPU_BFLOAT16,
        linear_flops=CPU_BFLOAT16.linear_flops / 10,
        chunked_linear_flops=CPU_BFLOAT16.chunked_linear_flops / 10,
    )
    works = [floor_work(SHAPE, length, chunk) for length in (4096, 8192, 16384)]
    fitted = fit(CPU_BFLOAT16, [(work, slow.seconds(work)) for work in works], "fitted")
    assert fitted.linear_flops == pytest.approx(slow.linear_flops, rel=0.05)
    assert fitted.chunked_linear_flops == pytest.approx(slow.chunked_linear_flops, rel=0.05)

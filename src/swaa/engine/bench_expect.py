"""What is known of a benchmark's rows before they run: visible pairs, and the time that the model of time predicts.

The same counts turn measured times back into a machine profile.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable

import torch

from swaa.compiler import ModelShape, estimate_cost
from swaa.compiler.timing import (
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
from swaa.config import Baseline, Benchmark
from swaa.engine.bench_rows import chunk_of
from swaa.hf.loading import DTYPES
from swaa.hf.shape import shape_of
from swaa.recipe import Recipe
from swaa.report.bench import Expected, Run


def benchmark_shape(benchmark: Benchmark) -> ModelShape:
    """The sizes of the benchmark's model, without its weights."""
    model = benchmark.model
    return shape_of(model.config or model.name or "", DTYPES[model.dtype])


def device_type(benchmark: Benchmark) -> str:
    """Where the benchmark runs: cpu, cuda or mps."""
    device = benchmark.model.device
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def expectations(benchmark: Benchmark, shape: ModelShape, machine: Machine) -> dict[tuple[str, int], Expected]:
    """Shares of visible pairs and predicted ratios, by row and length.

    The model of time knows prefills in one pass and ``auto`` chunks, not those of a size that a user asked for.
    """
    found = {}
    for length in benchmark.lengths:
        for entry in benchmark.entries:
            expected = _expected(entry, benchmark, shape, length, machine)
            if isinstance(benchmark.prefill_chunk_size, int):
                expected = dataclasses.replace(expected, prefill=None, request=None)
            found[entry.name, length] = expected
    return found


def _expected(
    entry: Recipe | Baseline, benchmark: Benchmark, shape: ModelShape, length: int, machine: Machine
) -> Expected:
    chunk = chunk_of(entry, benchmark, shape, length, device_type(benchmark))
    if isinstance(entry, Baseline):
        if entry.name != "floor":
            return Expected(1, 1, 1, 1, 1) if entry.name == "full" else Expected()
        steps = benchmark.new_tokens - 1
        prefill, step = machine.seconds(floor_work(shape, length, chunk)), machine.seconds(floor_step_work(shape))
        full, full_step = (
            machine.seconds(work) for work in (full_prefill_work(shape, length), full_step_work(shape, length, steps))
        )
        request = (prefill + steps * step) / (full + steps * full_step)
        return Expected(0, 0, prefill / full, step / full_step if steps else None, request)
    steps = benchmark.new_tokens - 1
    cost = estimate_cost(entry.policy, shape, length, steps)
    prefill_pairs = sum(layer.prefill_pairs for layer in cost.layers) / (shape.num_layers * cost.full.prefill_pairs)
    decode_pairs = None
    if steps:
        decode_pairs = sum(layer.decode_pairs for layer in cost.layers) / (shape.num_layers * cost.full.decode_pairs)
    predicted = predict(
        entry.policy,
        shape,
        length,
        benchmark.new_tokens,
        machine,
        device_type=device_type(benchmark),
        kernel=benchmark.model.kernel,
        chunk=chunk,
    )
    return Expected(prefill_pairs, decode_pairs, predicted.prefill_ratio, predicted.step_ratio, predicted.request_ratio)


def fitted_machine(benchmark: Benchmark, shape: ModelShape, runs: Iterable[Run], name: str) -> Machine | None:
    """The machine that the measured times show; None unless ``full`` and ``floor`` are among them."""
    entries = {entry.name: entry for entry in benchmark.entries}
    cells: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.row, run.length), []).append(run)
    if not {"full", "floor"} <= {row for row, _ in cells}:
        return None
    observed: list[tuple[Work, float]] = []
    for (row, length), group in cells.items():
        entry, steps, kind = entries[row], benchmark.new_tokens - 1, device_type(benchmark)
        chunk = chunk_of(entry, benchmark, shape, length, kind)
        if isinstance(entry, Recipe):
            reading = prefill_work(
                entry.policy, shape, length, device_type=kind, kernel=benchmark.model.kernel, chunk=chunk
            )
            works = reading, step_work(entry.policy, shape, length, steps)
        elif row == "full":
            works = full_prefill_work(shape, length), full_step_work(shape, length, steps)
        elif row == "floor":
            works = floor_work(shape, length, chunk), floor_step_work(shape)
        else:
            continue
        if row == "floor" or not isinstance(benchmark.prefill_chunk_size, int):
            observed.append((works[0], statistics.median(run.prefill_seconds for run in group)))
        medians = [run.step_median for run in group if run.step_median is not None]
        if medians:
            observed.append((works[1], statistics.median(medians)))
    return fit(default_machine(device_type(benchmark), shape.bytes_per_value), observed, name)

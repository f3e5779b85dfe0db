"""The winners of a search, timed beside the model without a policy, by the engine of ``swaa bench``.

Ratios are of one session: what was interrupted, or was measured of other winners, is measured anew.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from swaa.config import Baseline, Benchmark, BenchmarkModel, Search
from swaa.engine.bench import run_benchmark
from swaa.engine.bench_check import DEFAULT_LENGTH
from swaa.engine.bench_folder import RESULT
from swaa.policies import AttentionPolicy
from swaa.recipe import Recipe
from swaa.report.bench import Log, Run
from swaa.report.bench_table import Result
from swaa.search.folder import BENCH

UNPOLICED = "full"
"""The benchmark's row of the model without a policy: transformers' own causal attention and cache."""
HIDDEN = 128
"""Keys that the widest window hides from the last query of a comparison with the dense mask."""


@dataclass(frozen=True)
class Timed:
    """A recipe that was timed.

    Attributes:
        name: of the recipe.
        ratios: time of the whole request over that of the model without a policy, of each round.
        kv_share: bytes of keys and values that are held after the prompt, over those of the model without a policy.
    """

    name: str
    ratios: tuple[float, ...]
    kv_share: float | None

    @property
    def time_ratio(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest of the rounds."""
        return min(self.ratios), max(self.ratios)


@dataclass(frozen=True)
class Measurement:
    """What the timing of the winners found.

    Attributes:
        timed: the recipes, in the order of the winners.
        left_out: why rows of the benchmark could not be timed, by name.
        machine: where.
        prompt_length, new_tokens: of the request, in tokens.
        rounds: timed requests of each.
        full_seconds: the median request of the model without a policy; None where it could not be timed.
    """

    timed: tuple[Timed, ...]
    left_out: Mapping[str, str]
    machine: str
    prompt_length: int
    new_tokens: int
    rounds: int
    full_seconds: float | None

    def of(self, name: str) -> Timed | None:
        """The recipe of that name; None where it was not timed."""
        return next((one for one in self.timed if one.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        timed = [{**vars(one), "time_ratio": one.time_ratio, "ends": one.ends} for one in self.timed]
        return {**vars(self), "timed": timed, "left_out": dict(self.left_out)}


def benchmark_of(search: Search, winners: Mapping[str, AttentionPolicy]) -> Benchmark:
    """The benchmark that times the winners at the request of a search; it asks for a measurement."""
    asked, model = search.measure, search.model
    assert asked is not None
    return Benchmark(
        recipes=tuple(Recipe(name, policy) for name, policy in winners.items()),
        lengths=(search.request_length,),
        output=search.output / BENCH,
        baselines=(Baseline(UNPOLICED),),
        model=BenchmarkModel(model.name, dtype=model.dtype, device=model.device, kernel=model.kernel),
        new_tokens=search.request_tokens,
        repeats=asked.rounds,
        prefill_chunk_size=model.prefill_chunk_size,
        check_length=_check_length(search) if asked.check_length is None else asked.check_length,
    )


def _check_length(search: Search) -> int:
    """So few that comparing takes less than timing, and enough that every window of the space hides something."""
    seen = max(search.space.windows) + max(search.space.sinks)
    return min(DEFAULT_LENGTH, search.request_length, seen + HIDDEN)


def measure(search: Search, winners: Mapping[str, AttentionPolicy], console: Console) -> Measurement:
    """Time the winners, at least one, beside the model without a policy; what is on record is not measured again.

    Raises:
        UserError, Interrupted: see :func:`run_benchmark`.
    """
    benchmark = benchmark_of(search, winners)
    result = run_benchmark(benchmark, fresh=not _stands(benchmark), console=console)
    return summary(benchmark, result)


def summary(benchmark: Benchmark, result: Result) -> Measurement:
    """The measurement that a benchmark's result holds."""
    log = result.log
    full = _rounds(log, UNPOLICED)
    kv = {row.row: row.kv_bytes for row in result.summaries}
    whole = kv.get(UNPOLICED)
    timed = []
    for recipe in benchmark.recipes:
        rounds = _rounds(log, recipe.name)
        ratios = [rounds[each].request_seconds / full[each].request_seconds for each in sorted(rounds.keys() & full)]
        if ratios:
            held = kv.get(recipe.name)
            timed.append(Timed(recipe.name, tuple(ratios), held / whole if held is not None and whole else None))
    return Measurement(
        timed=tuple(timed),
        left_out=dict(result.left_out),
        machine=machine_name(log.sessions[-1]) if log.sessions else "no machine: nothing ran",
        prompt_length=benchmark.lengths[0],
        new_tokens=benchmark.new_tokens,
        rounds=benchmark.repeats,
        full_seconds=statistics.median(run.request_seconds for run in full.values()) if full else None,
    )


def machine_name(session: Mapping[str, Any]) -> str:
    """The machine of a session in words, with its load at the beginning, where the system tells."""
    threads, load = session["threads"], session.get("load")
    name = session.get("gpu") or f"{session['cpu']}, {threads} thread{'s' * (threads != 1)}"
    return name if load is None else f"{name}, load {load:g} at the start"


def _rounds(log: Log, row: str) -> dict[int, Run]:
    return {run.repeat: run for run in log.runs if run.row == row}


def _stands(benchmark: Benchmark) -> bool:
    """Is this very benchmark on record, from beginning to end? Its table is written last."""
    try:
        result = json.loads((benchmark.output / RESULT).read_text(encoding="utf-8"))
        before, left_out = dict(result["benchmark"]), result["left_out"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # there is none, or it was torn: then everything is measured anew, and it is written again
    now = {**benchmark.to_dict(), "output": before.get("output")}  # the folder may have been moved
    return before == now and not left_out

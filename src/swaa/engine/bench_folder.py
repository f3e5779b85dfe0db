"""The folder of a benchmark. It can be continued after any interruption.

bench.yaml               the benchmark, complete; ``swaa bench`` reads it again
runs.jsonl               one line per session, check and timed request, flushed as it ends
bench.json               everything: the benchmark, machine and versions, checks, raw timings, summaries
table.md, table.csv      the summaries
time.png, speedup.png    the plots, where matplotlib is installed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swaa.config import Benchmark, load_benchmark
from swaa.engine.bench_rows import row_hash
from swaa.engine.resumable import MEND, ResumableFolder, changed
from swaa.errors import UserError
from swaa.report.bench import Check, Log, Run, line_of, read_log

BENCHMARK, RUNS, RESULT = "bench.yaml", "runs.jsonl", "bench.json"
TABLE, CSV, TIME_PLOT, SPEEDUP_PLOT = "table.md", "table.csv", "time.png", "speedup.png"


class BenchFolder(ResumableFolder):
    """The folder ``benchmark.output``; a context that locks it. ``fresh`` deletes what a former run wrote there.

    Raises:
        UserError: the folder cannot be made, another process runs in it, or it holds timings of a benchmark that
            differs in a way that makes them incomparable; the differences are named.
    """

    def __init__(self, benchmark: Benchmark, *, fresh: bool = False) -> None:
        super().__init__(benchmark.output)
        self._benchmark = benchmark
        self._fresh = fresh

    def log(self) -> Log:
        """Everything on record."""
        return read_log(self.path / RUNS)

    def append(self, entry: Check | Run | Mapping[str, Any]) -> None:
        """Add one line, flushed to the operating system."""
        with (self.path / RUNS).open("a", encoding="utf-8") as file:
            file.write(line_of(entry) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a report beside the measurements."""
        (self.path / name).write_text(text, encoding="utf-8")

    def _begin(self) -> None:
        if self._fresh:
            self._delete(BENCHMARK, RUNS, RESULT, TABLE, CSV, TIME_PLOT, SPEEDUP_PLOT)
        self._drop_torn_line(RUNS)
        self._check_same()
        self.write(BENCHMARK, self._benchmark.to_yaml())

    def _check_same(self) -> None:
        log = self.log()
        if not (log.checks or log.runs):
            return
        if not (self.path / BENCHMARK).exists():
            raise UserError(f"{self.path} has timings, and no {BENCHMARK} to say of what. {MEND}")
        self._refuse(
            differences(load_benchmark(self.path / BENCHMARK), self._benchmark), what="timings of a different benchmark"
        )


def differences(before: Benchmark, now: Benchmark) -> list[str]:
    """What changed between two benchmarks that makes their timings incomparable, a line each.

    Adding or dropping rows, lengths and repeats is no such change.
    """
    pairs: list[tuple[str, object, object]] = [
        (f"model.{name}", getattr(before.model, name), getattr(now.model, name)) for name in vars(now.model)
    ]
    names = ("new_tokens", "prefill_chunk_size", "check_length", "seed")
    pairs += [(name, getattr(before, name), getattr(now, name)) for name in names]
    known = {entry.name: entry for entry in before.entries}
    for entry in now.entries:
        old = known.get(entry.name, entry)
        if row_hash(old) != row_hash(entry):
            pairs.append((f"row {entry.name!r}", old, entry))
    return changed(pairs)

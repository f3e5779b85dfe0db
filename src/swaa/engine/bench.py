"""A benchmark from beginning to end: load, check, warm up, time round robin, write tables and plots."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rich.console import Console

from swaa.compiler.timing import default_machine
from swaa.config import Baseline, Benchmark
from swaa.engine import bench_folder as files
from swaa.engine.bench_check import DEFAULT_LENGTH, Checker
from swaa.engine.bench_expect import benchmark_shape, device_type, expectations, fitted_machine
from swaa.engine.bench_folder import BenchFolder
from swaa.engine.bench_kvpress import NO_PYTHON, KvPress
from swaa.engine.bench_measure import LeftOut
from swaa.engine.bench_rows import ModelRow, Row, checked_kernel, make_row, planned_kernel, row_hash
from swaa.engine.interrupt import Interrupted, StopRequested, stoppable
from swaa.engine.machine import session
from swaa.errors import UserError
from swaa.hf import model_shape, saved_policy
from swaa.hf.loading import load
from swaa.policies import bind
from swaa.reading import within
from swaa.recipe import Recipe
from swaa.report.bench import Log, Run, summarise
from swaa.report.bench_plot import write_plots
from swaa.report.bench_table import Result, to_csv, to_json, to_markdown

SHORT_WARM_UP = 256
"""Tokens of a warm-up prompt for rows that compile nothing."""


def run_benchmark(benchmark: Benchmark, *, fresh: bool = False, console: Console | None = None) -> Result:
    """Time what the benchmark's folder does not hold yet, and write its tables and plots.

    Args:
        benchmark: what to time.
        fresh: delete the folder's former timings first.
        console: where progress is told (default: standard error).

    Raises:
        UserError: see :class:`BenchFolder`, :func:`swaa.hf.loading.load`; a policy does not fit the model.
        Interrupted: Ctrl-C; the requests that ended are kept.
    """
    say = console or Console(stderr=True)
    with BenchFolder(benchmark, fresh=fresh) as folder:
        try:
            with stoppable():
                left_out = _without_kvpress(benchmark)
                if not _finished(benchmark, folder.log(), left_out):  # otherwise the model need not be loaded
                    left_out = _Session(benchmark, folder, say).run()
        except StopRequested:
            raise Interrupted(
                f"Interrupted; {len(folder.log().runs)} timed requests are kept in {folder.path}. "
                "Run the same command again to go on from there."
            ) from None
        return _report(benchmark, folder, left_out, say)


_FAILURES = (RuntimeError, ValueError)
"""What a row raises that cannot run here: out of memory, a kernel that does not compile, attention that it lacks."""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Session:
    """One sitting: the model, its rows, and the measuring of what is missing."""

    def __init__(self, benchmark: Benchmark, folder: BenchFolder, console: Console) -> None:
        self._benchmark = benchmark
        self._folder = folder
        self._console = console
        self._left_out: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Check and time what is missing; why rows were left out, by name."""
        model = load_model(self._benchmark)
        _check_recipes(self._benchmark, model)
        with self._rows(model) as rows:
            self._check(rows, model)
            others = {}
            for _, row in rows:
                if isinstance(row, KvPress):
                    others = {f"kvpress: {name}": version for name, version in row.versions.items()}
            self._folder.append(self._same_machine(session(model.device, others)))
            for length in self._benchmark.lengths:
                self._time(rows, make_prompt(self._benchmark, model, length))
        return self._left_out

    def _same_machine(self, now: dict[str, Any]) -> dict[str, Any]:
        """Refuse to put timings of another machine beside those on record."""
        for before in self._folder.log().sessions:
            changed = [name for name in ("cpu", "gpu", "threads") if before.get(name) != now[name]]
            if changed:
                was = ", ".join(f"{name} {before.get(name)!r} there, {now[name]!r} now" for name in changed)
                raise UserError(
                    f"{self._folder.path}: its timings are of another machine ({was}). Begin anew with --fresh, or "
                    f"choose another folder with -o."
                )
        return now

    @contextlib.contextmanager
    def _rows(self, model: Any) -> Iterator[list[tuple[Recipe | Baseline, Row]]]:
        rows: list[tuple[Recipe | Baseline, Row]] = []
        try:
            for entry in self._benchmark.entries:
                try:
                    rows.append((entry, make_row(entry, self._benchmark, model)))
                except LeftOut as reason:
                    self._leave_out(entry.name, str(reason))
            yield rows
        finally:
            for _, row in rows:
                row.close()

    def _leave_out(self, name: str, reason: str) -> None:
        self._left_out[name] = reason
        self._say(f"{name}: left out: {reason}")

    def _check(self, rows: list[tuple[Recipe | Baseline, Row]], model: Any) -> None:
        """Compare rows with the dense mask; those that are not equal to it are taken out."""
        benchmark, log = self._benchmark, self._folder.log()
        length = benchmark.check_length
        if length is None:
            length = min(DEFAULT_LENGTH, min(benchmark.lengths))
        if length == 0:
            return
        checker: Checker | None = None
        for entry, row in list(rows):
            if not isinstance(row, ModelRow) or row.policy is None:
                continue
            check = log.check_of(row.hash)
            another = (
                check is not None
                and isinstance(entry, Recipe)
                and check.kernel != checked_kernel(entry, benchmark, model)
            )
            if check is None or another or not check.equal:  # what was wrong may have been mended
                checker = checker or Checker(benchmark, model, make_prompt(benchmark, model, length))
                try:
                    check = checker.check(entry, row)
                except _FAILURES as error:
                    self._drop(rows, (entry, row), f"it does not run here: {_first_line(error)}")
                    continue
                assert check is not None
                self._folder.append(check)
                self._say(f"{row.name}: {check}")
            if not check.equal:
                self._drop(rows, (entry, row), "it is not equal to the dense mask")

    def _drop(
        self, rows: list[tuple[Recipe | Baseline, Row]], dropped: tuple[Recipe | Baseline, Row], why: str
    ) -> None:
        rows.remove(dropped)
        dropped[1].close()
        self._leave_out(dropped[1].name, why)

    def _time(self, rows: list[tuple[Recipe | Baseline, Row]], prompt: torch.Tensor) -> None:
        """Time each row at one length, round robin, after a warm-up of each."""
        benchmark, length = self._benchmark, prompt.shape[1]
        log = self._folder.log()
        done = {(run.row_hash, run.length, run.repeat) for run in log.runs}
        warm: set[str] = set()
        for repeat in range(benchmark.repeats):
            for entry, row in list(rows):
                if (row.hash, length, repeat) in done:
                    continue
                try:
                    if row.hash not in warm:
                        short = SHORT_WARM_UP if not self._compiles(entry, row) else length
                        row.request(prompt[:, :short], min(3, benchmark.new_tokens))
                        warm.add(row.hash)
                    timing = row.request(prompt, benchmark.new_tokens)
                except _FAILURES as error:
                    self._drop(rows, (entry, row), f"it does not run here at {length:,} tokens: {_first_line(error)}")
                    continue
                run = Run(row.name, row.hash, length, repeat, len(log.sessions) - 1, **vars(timing))
                self._folder.append(run)
                step = "" if run.step_median is None else f" + {len(run.step_seconds)} x {1e3 * run.step_median:.1f} ms"
                head = f"{length:,} tokens, run {repeat + 1} of {benchmark.repeats}: {row.name}"
                self._say(f"{head}: {run.prefill_seconds:.2f} s{step}")

    def _compiles(self, entry: Recipe | Baseline, row: Row) -> bool:
        """Does the row run on a kernel that is compiled for each length?"""
        if entry.name == "hf_flex":
            return True
        if not isinstance(entry, Recipe) or not isinstance(row, ModelRow):
            return False
        kernel = planned_kernel(entry, self._benchmark, row.model)
        return kernel == "flex" or (kernel == "auto" and row.model.device.type != "cpu")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _report(benchmark: Benchmark, folder: BenchFolder, left_out: Mapping[str, str], say: Console) -> Result:
    """Summarise what is on record, and write it."""
    entries = benchmark.entries
    names = {row_hash(entry): entry.name for entry in entries}
    log = folder.log().renamed(names)
    wanted = [run for run in log.runs if run.length in benchmark.lengths]
    shape = benchmark_shape(benchmark)
    machine = default_machine(device_type(benchmark), shape.bytes_per_value)
    fitted = fitted_machine(benchmark, shape, wanted, f"fitted to {benchmark.output / files.RESULT}")
    tokens = "prefill only" if benchmark.new_tokens == 1 else f"{benchmark.new_tokens} new tokens"
    size = benchmark.prefill_chunk_size
    chunks = "" if size is None else ", chunks as planned" if size == "auto" else f", chunks of {size:,}"
    rows = tuple(entry.name for entry in entries)
    result = Result(
        title=f"{benchmark.model.label}, {benchmark.model.dtype}, {tokens}{chunks}",
        rows=rows,
        summaries=tuple(summarise(wanted, rows, expectations(benchmark, shape, machine))),
        log=Log(log.sessions, log.checks, wanted),
        left_out=left_out,
        benchmark=benchmark.to_dict(),
        machine=fitted.to_dict() if fitted else None,
        predicted_with=machine.name,
    )
    folder.write(files.RESULT, to_json(result))
    folder.write(files.TABLE, to_markdown(result))
    folder.write(files.CSV, to_csv(result))
    if not write_plots(result, folder.path / files.TIME_PLOT, folder.path / files.SPEEDUP_PLOT):
        say.print("no plots: they need matplotlib. Install it with: pip install 'swaa[plot]'", markup=False)
    return result


def _without_kvpress(benchmark: Benchmark) -> dict[str, str]:
    """Why kvpress is left out, if that is known beforehand."""
    wanted = any(baseline.name == "kvpress" for baseline in benchmark.baselines)
    return {"kvpress": NO_PYTHON} if wanted and benchmark.kvpress_python is None else {}


def _finished(benchmark: Benchmark, log: Log, left_out: Mapping[str, str]) -> bool:
    """Is every run of every row on record?"""
    done = {(run.row_hash, run.length, run.repeat) for run in log.runs}
    return all(
        (row_hash(entry), length, repeat) in done
        for entry in benchmark.entries
        if entry.name not in left_out
        for length in benchmark.lengths
        for repeat in range(benchmark.repeats)
    )


def load_model(benchmark: Benchmark) -> Any:
    """The benchmark's model, without a policy."""
    settings = benchmark.model
    if settings.config is None:
        model, _ = load(settings.name or "", dtype=settings.dtype, device=settings.device)
        if saved_policy(model.config) is not None:
            mend = "Benchmark the model that it was made from."
            raise UserError(
                f"model.name: {settings.name} was saved with an attention policy, which is in force. {mend}"
            )
        return model
    from swaa.hf.baselines import random_model

    return random_model(settings.config, dtype=settings.dtype, device=settings.device, seed=benchmark.seed)


def make_prompt(benchmark: Benchmark, model: Any, length: int) -> torch.Tensor:
    """Random tokens [1, length]; the same for every row."""
    stream = torch.Generator().manual_seed(benchmark.seed)
    tokens = torch.randint(model.get_input_embeddings().num_embeddings, (1, length), generator=stream)
    return tokens.to(model.device)


def _check_recipes(benchmark: Benchmark, model: Any) -> None:
    """Refuse a policy that does not fit the model now, not when its turn comes."""
    shape = model_shape(model)
    for recipe in benchmark.recipes:
        with within(f"recipe {recipe.name!r}"):
            bind(recipe.policy, num_layers=shape.num_layers, num_heads=shape.num_heads)

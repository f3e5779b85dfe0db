"""``swaa run``, ``swaa bench`` and ``swaa validate``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from swaa.cli.common import add_file, add_job, make_console, say

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers
    from swaa.config import Benchmark, Distillation, FineTuning, Search


def add_run(subparsers: Subparsers) -> None:
    """``swaa run FILE [KEY=VALUE …]``"""
    add_job(subparsers, "run", run, "run an experiment, or go on with one that was interrupted")


def run(args: argparse.Namespace) -> int:
    """Run an experiment and print its tables; the exit code is 1 if answers could not be graded."""
    from swaa.config import load_experiment

    experiment = load_experiment(args.file, args.overrides, output=args.output)
    from swaa.engine import run_experiment  # a mistake in the file is told before seconds of imports
    from swaa.report import note, to_rich

    rows = run_experiment(experiment, fresh=args.fresh)
    console = make_console()
    for table in to_rich(rows):
        console.print(table)
    console.print(note(rows), style="dim", markup=False)
    say(console, f"Records and tables: {experiment.output}")
    failed = sum(row.errors for row in rows)
    if failed:
        say(console, f"{failed} answers could not be graded. Grade them again with: swaa grade {experiment.output}")
    return 1 if failed else 0


def add_validate(subparsers: Subparsers) -> None:
    """``swaa validate FILE [KEY=VALUE …]``"""
    parser = subparsers.add_parser("validate", help="check a file of any kind without running it")
    add_file(parser)
    parser.set_defaults(handler=validate, output=None)


def validate(args: argparse.Namespace) -> int:
    """Check a file of any kind and print what it would run."""
    from swaa.config import Benchmark, Distillation, FineTuning, Search, load_file

    experiment = load_file(args.file, args.overrides)
    if isinstance(experiment, Benchmark):
        return _validate_benchmark(args.file, experiment)
    if isinstance(experiment, FineTuning):
        return _validate_finetuning(args.file, experiment)
    if isinstance(experiment, Distillation):
        return _validate_distillation(args.file, experiment)
    if isinstance(experiment, Search):
        return _validate_search(args.file, experiment)
    for task in experiment.tasks:
        task.check()
    counts = {
        "recipes": len(experiment.recipes),
        "tasks": len(experiment.tasks),
        "lengths": len(experiment.lengths),
        "examples": experiment.num_examples,
    }
    if experiment.num_generations > 1:
        counts["generations"] = experiment.num_generations
    grid = " x ".join(f"{count} {name if count > 1 else name[:-1]}" for name, count in counts.items())
    if not all(task.sized for task in experiment.tasks):
        grid = f"at most {grid}"  # a file may have fewer examples, or longer ones
    total = experiment.num_samples
    console = make_console()
    where = f"on {experiment.model.name} -> {experiment.output}"
    say(console, f"{args.file} is valid: {grid} = {total} sample{'s' * (total > 1)} {where}")
    for recipe in experiment.recipes:
        say(console, f"  {recipe.name}: {recipe.rule}")
    return 0


def _validate_distillation(file: str, distillation: Distillation) -> int:
    answers = distillation.num_samples * distillation.samples_per_prompt
    console = make_console()
    line = f"{file} is valid: {distillation.num_samples} prompts, {answers} answers of {distillation.model.name}"
    say(console, f"{line} -> {distillation.output}")
    policy = distillation.recipe.policy
    say(console, f"  policy: {policy!r}; keep: {distillation.keep}")
    return 0


def _validate_finetuning(file: str, tuning: FineTuning) -> int:
    sources = ", ".join([*(task.label for task in tuning.train.tasks), *tuning.train.files])
    console = make_console()
    line = f"{file} is valid: {tuning.objective.name} on {sources}, {tuning.model.name} -> {tuning.output}"
    say(console, line)
    say(console, f"  policy: {tuning.policy!r}")
    return 0


def _validate_search(file: str, search: Search) -> int:
    from swaa.search.choosing import check_precision, parse_scorers
    from swaa.search.space import bases

    scorers, counts, policies = parse_scorers(search), search.space.counts, bases(search.space)
    check_precision(search, search.test.num_samples)
    sizes = f"{len(policies)} base policies x {len(scorers)} scorers x {len(counts)} counts"
    total = len(policies) * len(scorers) * len(counts)
    console = make_console()
    line = f"{file} is valid: {sizes} = at most {total} candidates on {search.model.name} -> {search.output}"
    say(console, line)
    for base in policies:
        say(console, f"  {base.policy!r}")
    return 0


def _validate_benchmark(file: str, benchmark: Benchmark) -> int:
    total = len(benchmark.entries) * len(benchmark.lengths) * benchmark.repeats
    sizes = f"{len(benchmark.entries)} rows x {len(benchmark.lengths)} lengths x {benchmark.repeats} repeats"
    line = f"{file} is valid: {sizes} = {total} requests on {benchmark.model.label} -> {benchmark.output}"
    console = make_console()
    say(console, line)
    for baseline in benchmark.baselines:
        say(console, f"  {baseline.name}")
    for recipe in benchmark.recipes:
        say(console, f"  {recipe.name}: {recipe.rule}")
    return 0


def add_bench(subparsers: Subparsers) -> None:
    """``swaa bench FILE [KEY=VALUE …]``"""
    add_job(
        subparsers,
        "bench",
        bench,
        "time recipes and baselines on a model, or go on with it",
        file="the benchmark, in YAML",
        override="a field to set, such as lengths=[512] or model.dtype=float32",
        former="timings",
    )


def bench(args: argparse.Namespace) -> int:
    """Run a benchmark and print its tables; the exit code is 1 if a row is not equal to the dense mask."""
    from swaa.config import load_benchmark

    benchmark = load_benchmark(args.file, args.overrides, output=args.output)
    from swaa.engine.bench import run_benchmark  # a mistake in the file is told before seconds of imports
    from swaa.report.bench_table import NOTE, facts, to_rich

    result = run_benchmark(benchmark, fresh=args.fresh)
    console = make_console()
    for line in facts(result):
        say(console, line)
    for table in to_rich(result):
        console.print(table)
    console.print(NOTE, style="dim", markup=False)
    say(console, f"Timings, tables and plots: {benchmark.output}")
    return 0 if result.sound else 1

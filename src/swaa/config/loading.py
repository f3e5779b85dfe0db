"""Files -> experiments and benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from swaa.config.benchmark import Benchmark
from swaa.config.experiment import Experiment
from swaa.config.files import load_fields
from swaa.errors import UserError
from swaa.reading import within


def load_experiment(path: Path | str, overrides: Sequence[str] = (), *, output: Path | str | None = None) -> Experiment:
    """Read an experiment file.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` each, value in YAML; later ones win.
        output: the folder of the results, over what the file says (default there: ``runs/<name of the file>``).

    Raises:
        UserError: the file is missing, is no YAML (the line is named), or describes no experiment.
    """
    mapping = load_fields(path, overrides, output)
    if is_benchmark(mapping):
        raise UserError(f"{path}: this is a benchmark, not an experiment. Run it with: swaa bench {path}")
    with within(str(path)):
        return Experiment.from_dict(mapping, output=Path("runs") / Path(path).stem)


def load_benchmark(path: Path | str, overrides: Sequence[str] = (), *, output: Path | str | None = None) -> Benchmark:
    """Read a benchmark file; arguments and errors as of :func:`load_experiment`."""
    mapping = load_fields(path, overrides, output)
    if "tasks" in mapping:
        raise UserError(f"{path}: this is an experiment, not a benchmark. Run it with: swaa run {path}")
    with within(str(path)):
        return Benchmark.from_dict(mapping, output=Path("runs") / Path(path).stem)


def load_file(path: Path | str, overrides: Sequence[str] = ()) -> Experiment | Benchmark:
    """Read a file of either kind; errors as of :func:`load_experiment`."""
    load = load_benchmark if is_benchmark(load_fields(path, overrides)) else load_experiment
    return load(path, overrides)


def is_benchmark(mapping: Mapping[str, object]) -> bool:
    """Do these fields describe a benchmark? It has fields that no experiment has, and no tasks."""
    own = {item.name for item in dataclasses.fields(Benchmark)} - {item.name for item in dataclasses.fields(Experiment)}
    return "tasks" not in mapping and not own.isdisjoint(mapping)

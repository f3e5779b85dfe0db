"""Files -> experiments, benchmarks, distillations, fine-tunings, searches: of what kind a file is, and its value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from swaa.config.benchmark import Benchmark
from swaa.config.distill import Distillation
from swaa.config.experiment import Experiment
from swaa.config.files import load_fields
from swaa.config.finetune import FineTuning
from swaa.config.search import Search
from swaa.config.tuned import read_experiment
from swaa.errors import UserError
from swaa.reading import within

T_co = TypeVar("T_co", covariant=True)


class FromDict(Protocol[T_co]):
    """Plain values and the folder where they name none -> the frozen value of a file."""

    def __call__(self, values: object, *, output: Path | str) -> T_co: ...


@dataclass(frozen=True)
class Kind(Generic[T_co]):
    """A kind of file.

    Attributes:
        name: with its article, for messages: ``an experiment``.
        command: what runs it: ``swaa run``.
        read: plain values -> the value.
        marks: fields that tell this kind: it has them, and an experiment has not.
        lacks: fields that an experiment has and this kind cannot have.
    """

    name: str
    command: str
    read: FromDict[T_co]
    marks: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()

    def told_by(self, mapping: Mapping[str, object]) -> bool:
        """Do these fields show the kind?"""
        return not self.marks.isdisjoint(mapping) and self.lacks.isdisjoint(mapping)


def _fields(cls: type) -> frozenset[str]:
    return frozenset(item.name for item in dataclasses.fields(cls))


EXPERIMENT = Kind("an experiment", "swaa run", read_experiment)
BENCHMARK = Kind(
    "a benchmark",
    "swaa bench",
    Benchmark.from_dict,
    marks=_fields(Benchmark) - _fields(Experiment),
    lacks=frozenset({"tasks"}),
)
DISTILLATION = Kind(
    "a distillation",
    "swaa distill",
    Distillation.from_dict,
    marks=_fields(Distillation) - _fields(Experiment) - {"recipe"} | {"policy", "prompting"},
    lacks=frozenset({"recipes"}),
)
FINETUNING = Kind(
    "a fine-tuning",
    "swaa finetune",
    FineTuning.from_dict,
    marks=_fields(FineTuning) - _fields(Experiment) - _fields(Distillation),
    lacks=frozenset({"tasks", "recipes"}),
)
SEARCH = Kind(
    "a search",
    "swaa search",
    Search.from_dict,
    marks=_fields(Search) - _fields(Experiment) - {"decoding", "request", "test"},
    lacks=frozenset({"tasks", "recipes", "train"}),
)
AnyFile = Experiment | Benchmark | Distillation | FineTuning | Search
MARKED: tuple[Kind[Benchmark | Distillation | FineTuning | Search], ...] = (BENCHMARK, FINETUNING, SEARCH, DISTILLATION)
"""The kinds that are told by their marks, in the order in which they are tried; any other file is an experiment."""


def kind_of(mapping: Mapping[str, object]) -> Kind[AnyFile]:
    """The kind of file that these fields are of."""
    return next((kind for kind in MARKED if kind.told_by(mapping)), EXPERIMENT)


def load_experiment(path: Path | str, overrides: Sequence[str] = (), *, output: Path | str | None = None) -> Experiment:
    """Read an experiment file.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` each, value in YAML; later ones win.
        output: the folder of the results, over what the file says (default there: ``runs/<name of the file>``).

    Raises:
        UserError: the file is missing, is no YAML (the line is named), or describes no experiment.
    """
    return _load(EXPERIMENT, path, overrides, output)


def load_benchmark(path: Path | str, overrides: Sequence[str] = (), *, output: Path | str | None = None) -> Benchmark:
    """Read a benchmark file; arguments and errors as of :func:`load_experiment`."""
    return _load(BENCHMARK, path, overrides, output)


def load_distillation(
    path: Path | str, overrides: Sequence[str] = (), *, output: Path | str | None = None
) -> Distillation:
    """Read a distillation file; arguments and errors as of :func:`load_experiment`."""
    return _load(DISTILLATION, path, overrides, output)


def load_finetuning(path: Path | str, overrides: Sequence[str] = (), *, output: Path | str | None = None) -> FineTuning:
    """Read a fine-tuning file; arguments and errors as of :func:`load_experiment`."""
    return _load(FINETUNING, path, overrides, output)


def load_search(path: Path | str, overrides: Sequence[str] = (), *, output: Path | str | None = None) -> Search:
    """Read a search file; arguments and errors as of :func:`load_experiment`."""
    return _load(SEARCH, path, overrides, output)


def load_file(path: Path | str, overrides: Sequence[str] = ()) -> AnyFile:
    """Read a file of any kind; errors as of :func:`load_experiment`."""
    return _load(kind_of(load_fields(path, overrides)), path, overrides, None)


def _load(kind: Kind[T_co], path: Path | str, overrides: Sequence[str], output: Path | str | None) -> T_co:
    mapping = load_fields(path, overrides, output)
    found = kind_of(mapping)
    # without marks a file may be of any kind, unless it has what this kind lacks
    if found is not kind and (found is not EXPERIMENT or not kind.lacks.isdisjoint(mapping)):
        raise UserError(f"{path}: this is {found.name}, not {kind.name}. Run it with: {found.command} {path}")
    with within(str(path)):
        return kind.read(mapping, output=Path("runs") / Path(path).stem)

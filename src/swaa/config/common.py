"""What the kinds of files share: how a model is run, how lists are read, and how a grid of prompts is checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from swaa.errors import UserError, invalid
from swaa.policies import load_plugin
from swaa.reading import check_choice, check_items, check_keys, check_mapping, check_text, check_whole, within
from swaa.recipe import Recipe
from swaa.tasks import Task, task_from_dict

DEFAULT_MODEL = "smollm2-135m-instruct"
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
KERNELS = ("auto", "flex", "blockwise", "dense")

ChunkSize = int | Literal["auto"] | None
"""Tokens of a prompt that are read at a time, as a user writes it."""


def check_chunk_size(field: str, value: object) -> None:
    """Refuse what is no :data:`ChunkSize`."""
    if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return
    raise invalid(field, accepted="an int >= 1, 'auto' or null", got=value, mend="Leave it out to read all at once.")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is loaded and run.

    Attributes:
        name: a name of the catalogue (``swaa ls models``), a hub id or a folder.
        dtype: one of ``DTYPES``.
        device: one of ``DEVICES``; ``auto`` is a GPU where there is one.
        kernel: how attention is computed, one of ``KERNELS``; ``auto`` decides per layer.
        prefill_chunk_size: tokens of a prompt that are read at a time, which bounds the memory; ``auto`` goes by the
            policy and the prompt (:func:`swaa.compiler.prefill_chunk`); None reads all at once.
    """

    name: str = DEFAULT_MODEL
    dtype: str = "float32"
    device: str = "auto"
    kernel: str = "auto"
    prefill_chunk_size: ChunkSize = None

    def __post_init__(self) -> None:
        check_chunk_size("ModelConfig.prefill_chunk_size", self.prefill_chunk_size)
        check_text("ModelConfig.name", self.name)
        check_choice("ModelConfig.dtype", self.dtype, DTYPES)
        check_choice("ModelConfig.device", self.device, DEVICES)
        check_choice("ModelConfig.kernel", self.kernel, KERNELS)


def read_fields(kind: str, values: object, known: Collection[str], *, output: Path | str) -> dict[str, object]:
    """The fields of a file, all of them among the ``known`` ones, with its plugins loaded and its output folder named.

    Args:
        kind: what the file describes: ``experiment``.
        output: the folder where the file names none.

    Raises:
        UserError: the values are no mapping, hold an unknown field, or name a plugin that cannot be loaded.
    """
    fields = dict(check_mapping(kind, values))
    check_keys(fields, known, "")
    fields.setdefault("output", str(output))
    fields["plugins"] = load_plugins(fields.get("plugins", ()))
    return fields


@dataclass(frozen=True)
class RunnerConfig:
    """The processes that share a run's batches, through Lightning's strategies.

    Attributes:
        devices: processes on each machine, each with a GPU of its own or, on CPUs, its share of the cores.
        num_nodes: machines.
        strategy: ``auto`` (one device, or DDP) or ``ddp``. Every process holds the whole model.
    """

    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        check_whole("RunnerConfig.devices", self.devices, minimum=1)
        check_whole("RunnerConfig.num_nodes", self.num_nodes, minimum=1)
        check_choice("RunnerConfig.strategy", self.strategy, ("auto", "ddp"))


def load_plugins(value: object) -> tuple[str, ...]:
    """Import the policies that the recipes may name."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        mend = "Write plugins: [my_policy.py]."
        raise invalid("plugins", accepted="a list of files or modules", got=value, mend=mend)
    for plugin in value:
        load_plugin(plugin)
    return tuple(value)


def parse_each(mapping: dict[str, object], name: str, parse: Callable[[object, str], object]) -> None:
    """Replace the items of the list under ``name`` by what ``parse(item, path)`` makes of them.

    What is missing or no list is left as it is: that is the experiment's own check to refuse.
    """
    items = mapping.get(name)
    if isinstance(items, list | tuple):
        mapping[name] = [parse(item, f"{name}[{index}]") for index, item in enumerate(items)]


def check_distinct_recipes(recipes: Sequence[Recipe], *, owner: str) -> None:
    """Refuse two recipes with one name, or with one content."""
    seen: dict[str, Recipe] = {}
    for recipe in recipes:
        if any(recipe.name == other.name for other in seen.values()):
            raise invalid(f"{owner}.recipes", accepted="each name once", got=recipe.name, mend="Rename one of them.")
        twin = seen.setdefault(recipe.hash, recipe)
        if twin is not recipe:
            raise UserError(f"{owner}.recipes: {twin.name!r} and {recipe.name!r} are the same recipe. Remove one.")


def parse_task(value: object, path: str) -> Task:
    """The task that stands at ``path`` of a file."""
    with within(path):
        return task_from_dict(check_mapping("task", value))


class Prompts(Protocol):
    """What every kind of file says that asks prompts: which ones, how many at a time, and where the results go."""

    @property
    def tasks(self) -> tuple[Task, ...]: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def num_examples(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def output(self) -> Path: ...


def check_prompts(config: Prompts, *, owner: str) -> None:
    """Refuse wrong values among the fields of :class:`Prompts`, named by their ``owner``."""
    check_items(f"{owner}.tasks", config.tasks, of="task", mend="See 'swaa ls tasks'.")
    check_items(f"{owner}.lengths", config.lengths, of="prompt length", mend="Write lengths: [900].")
    for index, length in enumerate(config.lengths):
        check_whole(f"{owner}.lengths[{index}]", length, minimum=1)
    check_whole(f"{owner}.num_examples", config.num_examples, minimum=1)
    check_whole(f"{owner}.seed", config.seed, minimum=0)
    check_whole(f"{owner}.batch_size", config.batch_size, minimum=1)
    check_text(f"{owner}.output", str(config.output) if isinstance(config.output, Path) else config.output)

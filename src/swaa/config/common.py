"""What experiments and benchmarks share: how a model is run, and how lists of a file are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swaa.errors import UserError, invalid
from swaa.policies import load_plugin
from swaa.reading import check_choice, check_text, check_whole
from swaa.recipe import Recipe

DEFAULT_MODEL = "smollm2-135m-instruct"
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
KERNELS = ("auto", "flex", "blockwise", "dense")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is loaded and run.

    Attributes:
        name: a name of the catalogue (``swaa ls models``), a hub id or a folder.
        dtype: one of ``DTYPES``.
        device: one of ``DEVICES``; ``auto`` is a GPU where there is one.
        kernel: how attention is computed, one of ``KERNELS``; ``auto`` decides per layer.
        prefill_chunk_size: tokens of a prompt that are read at a time, which bounds the memory; None reads all at once.
    """

    name: str = DEFAULT_MODEL
    dtype: str = "float32"
    device: str = "auto"
    kernel: str = "auto"
    prefill_chunk_size: int | None = None

    def __post_init__(self) -> None:
        if self.prefill_chunk_size is not None:
            check_whole("ModelConfig.prefill_chunk_size", self.prefill_chunk_size, minimum=1)
        check_text("ModelConfig.name", self.name)
        check_choice("ModelConfig.dtype", self.dtype, DTYPES)
        check_choice("ModelConfig.device", self.device, DEVICES)
        check_choice("ModelConfig.kernel", self.kernel, KERNELS)


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

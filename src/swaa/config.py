"""Experiments: a YAML file becomes one frozen :class:`Experiment`. The only importer of omegaconf.

A file may hold free ``vars`` and interpolate them (``${vars.window}``); every field can be overridden from the command
line (``recipes[0].decoding.max_new_tokens=8``). Unknown keys are refused, with a suggestion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]  # comes with omegaconf
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from swaa.errors import UserError, invalid
from swaa.policies import load_plugin
from swaa.reading import (
    build,
    check_choice,
    check_items,
    check_keys,
    check_mapping,
    check_text,
    check_whole,
    within,
)
from swaa.recipe import Decoding, Recipe
from swaa.tasks import Task, task_from_dict, task_to_dict

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
KERNELS = ("auto", "flex", "dense")
SCORINGS = ("generate", "teacher_forced")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is loaded and run.

    Attributes:
        name: a name of the catalogue (``swaa ls models``), a hub id or a folder.
        dtype: one of ``DTYPES``.
        device: one of ``DEVICES``; ``auto`` is a GPU where there is one.
        kernel: how attention is computed, one of ``KERNELS``; ``auto`` decides per layer.
    """

    name: str = "smollm2-135m-instruct"
    dtype: str = "float32"
    device: str = "auto"
    kernel: str = "auto"

    def __post_init__(self) -> None:
        check_text("ModelConfig.name", self.name)
        check_choice("ModelConfig.dtype", self.dtype, DTYPES)
        check_choice("ModelConfig.device", self.device, DEVICES)
        check_choice("ModelConfig.kernel", self.kernel, KERNELS)


@dataclass(frozen=True)
class Experiment:
    """A grid of recipes x tasks x lengths on one model, and where its results go.

    Attributes:
        recipes: the rows of the table; names and contents are distinct.
        tasks: where the questions come from; labels are distinct.
        lengths: prompt lengths in tokens, the chat template included.
        output: the folder of the results.
        plugins: files or modules with policies of one's own, imported first.
        model: what is adapted.
        num_examples: samples for each recipe, task and length.
        seed: of the examples; every recipe sees the same ones.
        batch_size: samples that run together, left-padded.
        scoring: some of ``SCORINGS``; both share one prefill.
    """

    recipes: tuple[Recipe, ...]
    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    output: Path
    plugins: tuple[str, ...] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    num_examples: int = 32
    seed: int = 0
    batch_size: int = 8
    scoring: tuple[str, ...] = SCORINGS

    def __post_init__(self) -> None:
        check_items(
            "Experiment.recipes",
            self.recipes,
            of="recipe",
            mend="Add '- {name: FA, policy: FullAttention()}'.",
        )
        check_items("Experiment.tasks", self.tasks, of="task", mend="See 'swaa ls tasks'.")
        check_items("Experiment.lengths", self.lengths, of="prompt length", mend="Write lengths: [900].")
        check_items("Experiment.scoring", self.scoring, of="scoring", mend=f"Write scoring: {list(SCORINGS)}.")
        for index, length in enumerate(self.lengths):
            check_whole(f"Experiment.lengths[{index}]", length, minimum=1)
        for index, scoring in enumerate(self.scoring):
            check_choice(f"Experiment.scoring[{index}]", scoring, SCORINGS)
        check_whole("Experiment.num_examples", self.num_examples, minimum=1)
        check_whole("Experiment.seed", self.seed, minimum=0)
        check_whole("Experiment.batch_size", self.batch_size, minimum=1)
        check_text("Experiment.output", str(self.output) if isinstance(self.output, Path) else self.output)
        _check_distinct_recipes(self.recipes)
        for name in ("recipes", "tasks", "lengths", "plugins", "scoring"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "output", Path(self.output))

    @property
    def num_samples(self) -> int:
        """Samples of the whole grid."""
        return len(self.recipes) * len(self.tasks) * len(self.lengths) * self.num_examples

    def to_dict(self) -> dict[str, object]:
        """Plain values: a complete experiment file, without ``vars``; policies as Python expressions."""
        return {
            "plugins": list(self.plugins),
            "model": dataclasses.asdict(self.model),
            "recipes": [{**recipe.to_dict(), "policy": repr(recipe.policy)} for recipe in self.recipes],
            "tasks": [task_to_dict(task) for task in self.tasks],
            "lengths": list(self.lengths),
            "num_examples": self.num_examples,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "scoring": list(self.scoring),
            "output": str(self.output),
        }

    def to_yaml(self) -> str:
        """The text of a complete experiment file that gives this experiment again."""
        return OmegaConf.to_yaml(OmegaConf.create(self.to_dict()))

    @classmethod
    def from_dict(cls, values: object, *, output: Path | str) -> Experiment:
        """The experiment that plain values describe; ``output`` is the folder where they name none.

        Beside the fields of :class:`Experiment` there may be ``decoding``: the settings of every recipe that does not
        say otherwise.

        Raises:
            UserError: an unknown, missing or wrong field, named by its dotted path.
        """
        mapping = dict(check_mapping("experiment", values))
        fields = [item.name for item in dataclasses.fields(cls)]
        check_keys(mapping, [*fields, "decoding"], "")
        mapping.setdefault("output", str(output))
        mapping["plugins"] = _load_plugins(mapping.get("plugins", ()))
        decoding = build(Decoding, mapping.pop("decoding", {}), "decoding")
        mapping["model"] = build(ModelConfig, mapping.get("model", {}), "model")
        _parse_each(mapping, "recipes", lambda item, at: Recipe.from_dict(item, path=at, decoding=decoding))
        _parse_each(mapping, "tasks", _parse_task)
        return build(cls, mapping, "")


def load_experiment(path: Path | str, overrides: Sequence[str] = (), *, output: Path | str | None = None) -> Experiment:
    """Read an experiment file.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` each, value in YAML; later ones win.
        output: the folder of the results, over what the file says (default there: ``runs/<name of the file>``).

    Raises:
        UserError: the file is missing, is no YAML (the line is named), or describes no experiment.
    """
    path = Path(path)
    config = _read(path)
    for override in overrides:
        _override(config, override)
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(
            f"{path}: {error.full_key}: {_first_line(error)}. Define it, for example under vars."
        ) from error
    with within(str(path)):
        mapping = {str(key): value for key, value in check_mapping("file", values).items() if key != "vars"}
        if output is not None:
            mapping["output"] = str(output)
        return Experiment.from_dict(mapping, output=Path("runs") / path.stem)


def _read(path: Path) -> Any:
    """The file as an OmegaConf node; an empty file is an empty mapping."""
    if not path.is_file():
        here = ", ".join(sorted(str(file) for file in Path("experiments").glob("*.yaml")))
        raise UserError(f"no experiment file {str(path)!r}. {f'There are: {here}.' if here else 'Check the path.'}")
    try:
        return OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{place}: YAML syntax error: {error.problem or error.context}. Mend this line.") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {_first_line(error)}. Save it as UTF-8 text.") from error


def _override(config: Any, override: str) -> None:
    """Set one ``dotted.key=value`` in ``config``; a mapping or list is replaced, not merged."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        mend = "For example num_examples=8."
        raise invalid("override", accepted="dotted.key=value", got=override, mend=mend)
    try:
        value = cast(dict[str, object], OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        mend = "Write the value as in YAML: lengths=[400, 900]."
        raise UserError(f"override {override!r}: {_first_line(error)}. {mend}") from error
    try:
        OmegaConf.update(config, key.strip(), value["value"], merge=False)
    except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        mend = "Lists are addressed by number: recipes[0].name=FA."
        raise UserError(f"override {override!r}: {_first_line(error)}. {mend}") from error


def _load_plugins(value: object) -> tuple[str, ...]:
    """Import the policies that the recipes may name."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        mend = "Write plugins: [my_policy.py]."
        raise invalid("plugins", accepted="a list of files or modules", got=value, mend=mend)
    for plugin in value:
        load_plugin(plugin)
    return tuple(value)


def _parse_each(mapping: dict[str, object], name: str, parse: Callable[[object, str], object]) -> None:
    """Replace the items of the list under ``name`` by what ``parse(item, path)`` makes of them.

    What is missing or no list is left as it is: that is the experiment's own check to refuse.
    """
    items = mapping.get(name)
    if isinstance(items, list | tuple):
        mapping[name] = [parse(item, f"{name}[{index}]") for index, item in enumerate(items)]


def _parse_task(value: object, path: str) -> Task:
    with within(path):
        return task_from_dict(check_mapping("task", value))


def _check_distinct_recipes(recipes: Sequence[Recipe]) -> None:
    """Refuse two recipes with one name, or with one content."""
    seen: dict[str, Recipe] = {}
    for recipe in recipes:
        if any(recipe.name == other.name for other in seen.values()):
            raise invalid("Experiment.recipes", accepted="each name once", got=recipe.name, mend="Rename one of them.")
        twin = seen.setdefault(recipe.hash, recipe)
        if twin is not recipe:
            raise UserError(f"Experiment.recipes: {twin.name!r} and {recipe.name!r} are the same recipe. Remove one.")


def _first_line(error: Exception) -> str:
    text = getattr(error, "problem", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")

"""Benchmarks: recipes and baselines x context lengths on one model, timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swaa.config.common import (
    DEFAULT_MODEL,
    DEVICES,
    DTYPES,
    KERNELS,
    ChunkSize,
    check_chunk_size,
    check_distinct_recipes,
    parse_each,
    read_fields,
)
from swaa.config.files import to_yaml
from swaa.errors import invalid
from swaa.reading import build, check_choice, check_items, check_keys, check_mapping, check_text, check_whole
from swaa.recipe import Recipe

BASELINES: Mapping[str, tuple[str, ...]] = {
    "full": (),
    "floor": (),
    "native_window": ("window",),
    "hf_flex": (),
    "kvpress": ("kept_keys", "num_sinks"),
}
"""What a benchmark can compare with, and what each needs to be told."""


@dataclass(frozen=True)
class BenchmarkModel:
    """Which model a benchmark times.

    Attributes:
        name: a name of the catalogue, a hub id or a folder; None where ``config`` is given.
        config: fields of a transformers config, ``model_type`` among them, for a model with random weights.
        dtype, device, kernel: as of :class:`ModelConfig`.
    """

    name: str | None = None
    config: Mapping[str, Any] | None = None
    dtype: str = "bfloat16"
    device: str = "auto"
    kernel: str = "auto"

    def __post_init__(self) -> None:
        if self.config is None:
            object.__setattr__(self, "name", self.name or DEFAULT_MODEL)
        elif self.name is not None:
            mend = "Remove it, or the config."
            raise invalid("BenchmarkModel.name", accepted="nothing beside a config", got=self.name, mend=mend)
        elif "model_type" not in check_mapping("BenchmarkModel.config", self.config):
            mend = "Add model_type: llama, or another of transformers'."
            raise invalid("BenchmarkModel.config", accepted="a model_type", got=dict(self.config), mend=mend)
        for name, options in (("dtype", DTYPES), ("device", DEVICES), ("kernel", KERNELS)):
            check_choice(f"BenchmarkModel.{name}", getattr(self, name), options)

    @property
    def label(self) -> str:
        """The model in a word or two."""
        return self.name or f"random {(self.config or {})['model_type']}"


@dataclass(frozen=True)
class Baseline:
    """What recipes are compared with.

    Attributes:
        name: one of ``BASELINES``.
        window: tokens that a query sees, itself included (``native_window``).
        kept_keys: keys of a layer that are kept after the prompt (``kvpress``).
        num_sinks: of these, the first ones of the prompt (``kvpress``).
    """

    name: str
    window: int | None = None
    kept_keys: int | None = None
    num_sinks: int | None = None

    def __post_init__(self) -> None:
        check_choice("Baseline.name", self.name, BASELINES)
        needs = BASELINES[self.name]
        for field_name in ("window", "kept_keys", "num_sinks"):
            value, path = getattr(self, field_name), f"Baseline.{field_name}"
            if field_name in needs:
                check_whole(path, value, minimum=0 if field_name == "num_sinks" else 1)
            elif value is not None:
                raise invalid(path, accepted=f"nothing for {self.name!r}", got=value, mend="Remove it.")
        if self.kept_keys is not None and self.kept_keys <= (self.num_sinks or 0):
            accepted = f"more than num_sinks ({self.num_sinks})"
            raise invalid("Baseline.kept_keys", accepted=accepted, got=self.kept_keys, mend="Keep more.")


@dataclass(frozen=True)
class Benchmark:
    """Recipes and baselines x context lengths on one model, timed. One sample at a time, greedy decoding.

    Attributes:
        recipes: names and policies; their prompting and decoding do not enter.
        lengths: prompt lengths in tokens.
        output: the folder of the results.
        baselines: what is timed beside the recipes; ``full`` is what ratios refer to.
        model: what runs.
        new_tokens: tokens generated after the prompt: the first comes with the prefill, the others by decode steps.
        repeats: timed runs of each row and length, round robin; there is a warm-up before.
        prefill_chunk_size: tokens of the prompt read at a time by recipes, ``full`` and ``floor``; ``auto`` takes what
            is fastest for each (:func:`swaa.compiler.prefill_chunk`); None reads it in one pass.
        check_length: prompt tokens of the comparison with the dense mask that precedes timing; None takes at most 640,
            0 leaves it out.
        seed: of the random prompts and, where there are, of the random weights.
        kvpress_python: the interpreter of an environment that has kvpress; None leaves that baseline out.
        plugins: files or modules with policies of one's own, imported first.
    """

    recipes: tuple[Recipe, ...]
    lengths: tuple[int, ...]
    output: Path
    baselines: tuple[Baseline, ...] = (Baseline("full"), Baseline("floor"))
    model: BenchmarkModel = field(default_factory=BenchmarkModel)
    new_tokens: int = 64
    repeats: int = 3
    prefill_chunk_size: ChunkSize = None
    check_length: int | None = None
    seed: int = 0
    kvpress_python: str | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        mend = "Add '- {name: sliding, policy: SlidingWindow(256)}'."
        check_items("Benchmark.recipes", self.recipes, of="recipe", mend=mend)
        check_items("Benchmark.lengths", self.lengths, of="prompt length", mend="Write lengths: [2048].")
        for index, length in enumerate(self.lengths):
            check_whole(f"Benchmark.lengths[{index}]", length, minimum=1)
        for name, least in (("new_tokens", 1), ("repeats", 1), ("seed", 0)):
            check_whole(f"Benchmark.{name}", getattr(self, name), minimum=least)
        check_chunk_size("Benchmark.prefill_chunk_size", self.prefill_chunk_size)
        if self.check_length is not None:
            check_whole("Benchmark.check_length", self.check_length, minimum=0)
        for name in ("kvpress_python", "output"):
            if getattr(self, name) is not None or name == "output":
                value = getattr(self, name)
                check_text(f"Benchmark.{name}", str(value) if isinstance(value, Path) else value)
        check_distinct_recipes(self.recipes, owner="Benchmark")
        labels = [*(recipe.name for recipe in self.recipes), *(baseline.name for baseline in self.baselines)]
        for index, label in enumerate(labels):
            if label in labels[:index]:
                raise invalid("Benchmark.baselines", accepted="each name once", got=label, mend="Rename the recipe.")
        for name in ("recipes", "lengths", "baselines", "plugins"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "output", Path(self.output))

    @property
    def entries(self) -> tuple[Recipe | Baseline, ...]:
        """All rows, in the order of the tables."""
        return (*self.baselines, *self.recipes)

    def to_dict(self) -> dict[str, object]:
        """Plain values: a complete benchmark file, without ``vars``."""
        model = {**dataclasses.asdict(self.model), "config": self.model.config and dict(self.model.config)}
        return {
            **{item.name: getattr(self, item.name) for item in dataclasses.fields(self)},
            "recipes": [{"name": recipe.name, "policy": repr(recipe.policy)} for recipe in self.recipes],
            "baselines": [_without_none(dataclasses.asdict(baseline)) for baseline in self.baselines],
            "model": _without_none(model),
            "lengths": list(self.lengths),
            "plugins": list(self.plugins),
            "output": str(self.output),
        }

    def to_yaml(self) -> str:
        """The text of a complete benchmark file that gives this benchmark again."""
        return to_yaml(self.to_dict())

    @classmethod
    def from_dict(cls, values: object, *, output: Path | str) -> Benchmark:
        """The benchmark that plain values describe; ``output`` is the folder where they name none.

        A baseline that needs no telling may be its name alone.

        Raises:
            UserError: an unknown, missing or wrong field, named by its dotted path.
        """
        mapping = read_fields("benchmark", values, [item.name for item in dataclasses.fields(cls)], output=output)
        mapping["model"] = build(BenchmarkModel, mapping.get("model", {}), "model")
        parse_each(mapping, "recipes", _parse_row)
        parse_each(mapping, "baselines", _parse_baseline)
        return build(cls, mapping, "")


def _parse_row(value: object, path: str) -> Recipe:
    check_keys(check_mapping(path, value), ["name", "policy"], path)
    return Recipe.from_dict(value, path=path)


def _parse_baseline(value: object, path: str) -> Baseline:
    return build(Baseline, {"name": value} if isinstance(value, str) else value, path)


def _without_none(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}

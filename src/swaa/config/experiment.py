"""Experiments: recipes x tasks x lengths on one model, scored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from swaa.config.common import (
    ModelConfig,
    check_distinct_recipes,
    check_prompts,
    load_plugins,
    parse_each,
    parse_task,
)
from swaa.config.files import to_yaml
from swaa.reading import build, check_choice, check_items, check_keys, check_mapping
from swaa.recipe import Decoding, Recipe
from swaa.tasks import Task, task_to_dict

SCORINGS = ("generate", "teacher_forced")


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
        check_prompts(self, owner="Experiment")
        check_items("Experiment.scoring", self.scoring, of="scoring", mend=f"Write scoring: {list(SCORINGS)}.")
        for index, scoring in enumerate(self.scoring):
            check_choice(f"Experiment.scoring[{index}]", scoring, SCORINGS)
        check_distinct_recipes(self.recipes, owner="Experiment")
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
        return to_yaml(self.to_dict())

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
        mapping["plugins"] = load_plugins(mapping.get("plugins", ()))
        decoding = build(Decoding, mapping.pop("decoding", {}), "decoding")
        mapping["model"] = build(ModelConfig, mapping.get("model", {}), "model")
        parse_each(mapping, "recipes", lambda item, at: Recipe.from_dict(item, path=at, decoding=decoding))
        parse_each(mapping, "tasks", parse_task)
        return build(cls, mapping, "")

"""Experiments: recipes x tasks x lengths on one model, scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swaa.config.common import (
    ModelConfig,
    RunnerConfig,
    check_distinct_recipes,
    check_prompts,
    parse_each,
    parse_task,
    read_fields,
)
from swaa.config.files import to_yaml
from swaa.config.perplexity import Perplexity
from swaa.errors import UserError, invalid
from swaa.prompting import Prompting
from swaa.reading import build, check_choice, check_items, check_whole
from swaa.recipe import Decoding, Recipe
from swaa.tasks import Task, task_to_dict

SCORINGS = ("generate", "teacher_forced")


@dataclass(frozen=True)
class Experiment:
    """A grid of recipes x tasks x lengths on one model, and where its results go.

    Attributes:
        recipes: the rows of the table; names and contents are distinct.
        tasks: where the questions come from; labels are distinct.
        lengths: prompt lengths in tokens, the chat template included, when asked directly.
        output: the folder of the results.
        plugins: files or modules with policies of one's own, imported first.
        model: what is adapted.
        num_examples: samples for each recipe, task and length.
        seed: of the examples; every recipe sees the same ones.
        batch_size: samples that run together, left-padded.
        scoring: some of ``SCORINGS``; both share one prefill.
        num_generations: answers to each prompt; generation i is drawn with the seed ``decoding.seed + i``.
        perplexity: a text that every recipe is measured on besides; None for none.
        trainer: the processes that share the batches.
        fine_tunings: by name, the complete fields of the trainings that recipes ask for; see ``swaa.config.tuned``.
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
    num_generations: int = 1
    perplexity: Perplexity | None = None
    trainer: RunnerConfig = field(default_factory=RunnerConfig)
    fine_tunings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

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
        check_whole("Experiment.num_generations", self.num_generations, minimum=1)
        self._check_scorable()
        for name in ("recipes", "tasks", "lengths", "plugins", "scoring"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "output", Path(self.output))

    def _check_scorable(self) -> None:
        """Refuse recipes that nothing could be scored of, or whose answers would only repeat each other."""
        for recipe in self.recipes:
            if recipe.prompting.reasons and "generate" not in self.scoring:
                raise UserError(
                    f"Experiment.scoring: recipe {recipe.name!r} reasons before it answers, and only a generated reply "
                    "can be graded. Add generate."
                )
            if self.num_generations > 1 and recipe.decoding.greedy:
                raise UserError(
                    f"Experiment.num_generations: {self.num_generations}, and recipe {recipe.name!r} decodes greedily, "
                    "always the same. Set decoding.temperature, or ask for 1."
                )
        if self.num_generations > 1 and "generate" not in self.scoring:
            raise UserError("Experiment.num_generations: nothing is generated. Add generate to scoring, or ask for 1.")

    @property
    def num_samples(self) -> int:
        """Answers of the whole grid, where every task has as many examples as are asked for."""
        cells = len(self.recipes) * len(self.tasks) * len(self.lengths)
        return cells * self.num_examples * self.num_generations

    def to_dict(self) -> dict[str, object]:
        """Plain values: a complete experiment file, without ``vars``; policies as Python expressions."""
        return {
            "plugins": list(self.plugins),
            "model": dataclasses.asdict(self.model),
            "recipes": [_recipe_fields(recipe) for recipe in self.recipes],
            "tasks": [task_to_dict(task) for task in self.tasks],
            "lengths": list(self.lengths),
            "num_examples": self.num_examples,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "scoring": list(self.scoring),
            "num_generations": self.num_generations,
            "perplexity": None if self.perplexity is None else self.perplexity.to_dict(),
            "trainer": dataclasses.asdict(self.trainer),
            "fine_tunings": {name: dict(fields) for name, fields in self.fine_tunings.items()},
            "output": str(self.output),
        }

    def to_yaml(self) -> str:
        """The text of a complete experiment file that gives this experiment again."""
        return to_yaml(self.to_dict())

    @classmethod
    def from_dict(
        cls,
        values: object,
        *,
        output: Path | str,
        fine_tunings: Mapping[str, Mapping[str, object]] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> Experiment:
        """The experiment that plain values describe; ``output`` is the folder where they name none.

        Beside the fields of :class:`Experiment` there may be ``decoding``: the settings of every recipe that does not
        say otherwise; and ``promptings``: every recipe that names no prompting of its own is taken once in each, under
        its name and that of the prompting.

        Args:
            values: of the file, without its ``fine_tunings``.
            output: see above.
            fine_tunings: complete, by name.
            digests: of these.

        Raises:
            UserError: an unknown, missing or wrong field, named by its dotted path.
        """
        fields = [item.name for item in dataclasses.fields(cls)]
        mapping = read_fields("experiment", values, [*fields, "decoding", "promptings"], output=output)
        mapping["fine_tunings"] = fine_tunings or {}
        decoding = build(Decoding, mapping.pop("decoding", {}), "decoding")
        mapping["model"] = build(ModelConfig, mapping.get("model", {}), "model")
        mapping["trainer"] = build(RunnerConfig, mapping.get("trainer", {}), "trainer")
        if mapping.get("perplexity") is not None:
            mapping["perplexity"] = Perplexity.from_dict(mapping["perplexity"])

        def recipe(item: object, at: str) -> Recipe:
            return Recipe.from_dict(item, path=at, decoding=decoding, fine_tunings=digests)

        _cross(mapping, mapping.pop("promptings", None))
        parse_each(mapping, "recipes", recipe)
        parse_each(mapping, "tasks", parse_task)
        return build(cls, mapping, "")


def _cross(mapping: dict[str, object], promptings: object) -> None:
    """Replace the recipes by recipes x promptings; direct ones keep their names."""
    if promptings is None:
        return
    asked = check_items("promptings", promptings, of="prompting", mend="Write promptings: [direct, chain_of_thought].")
    ways = [Prompting.parse(item, f"promptings[{index}]") for index, item in enumerate(asked)]
    labels = [way.label for way in ways]
    for label in labels:
        if labels.count(label) > 1:  # the recipes would have the same names
            mend = "Name the other way in recipes of its own: {name: ..., policy: ..., prompting: ...}."
            raise invalid("promptings", accepted="each name once", got=label, mend=mend)
    recipes = mapping.get("recipes")
    if not isinstance(recipes, list | tuple):
        return  # the experiment's own check refuses it
    crossed: list[object] = []
    for way in ways:
        for fields in recipes:
            if not isinstance(fields, Mapping) or "prompting" in fields:
                crossed += [fields] if way is ways[0] else []
                continue
            name = f"{fields.get('name')}, {way.label}" if way.reasons else fields.get("name")
            crossed.append({**fields, "name": name, "prompting": way})
    mapping["recipes"] = crossed


def _recipe_fields(recipe: Recipe) -> dict[str, object]:
    """A recipe as a file has it."""
    fields = {**recipe.to_dict(), "policy": repr(recipe.policy)}
    if recipe.scores is not None:
        fields["scores"] = repr(recipe.scores)
    return fields if recipe.fine_tuning is None else {**fields, "fine_tuning": recipe.fine_tuning.name}

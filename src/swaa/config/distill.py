"""Distillations: the prompts of tasks x lengths, answered several times by one model under one policy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from swaa.config.common import ModelConfig, check_prompts, parse_each, parse_task, read_fields
from swaa.config.files import to_yaml
from swaa.errors import invalid
from swaa.policies import FullAttention
from swaa.reading import build, check_choice, check_items, check_mapping, check_whole
from swaa.recipe import Decoding, Recipe
from swaa.tasks import Task, task_to_dict

KEEPS = ("correct", "all")
"""Which answers become data: those that the task's grader calls right, or wrong ones too."""
FORMATS = ("jsonl", "parquet")
TEACHER = "teacher"
"""The name of the recipe that answers."""
DECODING = Decoding(temperature=1.0)
"""How a teacher decodes where the file does not say (the paper's temperature)."""
_IN_RECIPE = ("policy", "prompting", "decoding")


def _full_attention() -> Recipe:
    return Recipe(TEACHER, FullAttention(), decoding=DECODING)


@dataclass(frozen=True)
class Distillation:
    """Training data that a model writes itself: its own answers to the prompts of tasks, graded and sifted.

    In a file the fields of ``recipe`` stand at the top: ``policy``, ``prompting`` and ``decoding``.

    An answer that ``max_new_tokens`` cut is never kept, whatever ``keep`` says: a training conversation ends the reply
    with an end-of-turn token, and the model has not said this one.

    Attributes:
        tasks: where the prompts come from; labels are distinct.
        lengths: prompt lengths in tokens, the chat template included.
        output: the folder of the results.
        plugins: files or modules with policies of one's own, imported first.
        model: what answers.
        recipe: how it answers; by default under full attention, at temperature 1.
        num_examples: prompts of each task and length.
        seed: of the prompts. Choose one that no evaluation uses.
        batch_size: prompts that run together, left-padded.
        samples_per_prompt: answers to each prompt (the paper: 4). Answer i is drawn with the seed
            ``decoding.seed + i``, so that for other draws this seed moves by at least ``samples_per_prompt``.
        keep: one of ``KEEPS``; ``all`` for training that needs no labels.
        keep_per_prompt: of the answers to keep, the shortest so many by tokens (the paper: 3 of thinking answers); None
            keeps all of them.
        formats: some of ``FORMATS``, ``jsonl`` always among them.
    """

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    output: Path
    plugins: tuple[str, ...] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: Recipe = field(default_factory=_full_attention)
    num_examples: int = 32
    seed: int = 0
    batch_size: int = 8
    samples_per_prompt: int = 4
    keep: str = "correct"
    keep_per_prompt: int | None = None
    formats: tuple[str, ...] = ("jsonl",)

    def __post_init__(self) -> None:
        check_prompts(self, owner="Distillation")
        check_whole("Distillation.samples_per_prompt", self.samples_per_prompt, minimum=1)
        if self.recipe.decoding.greedy and self.samples_per_prompt > 1:
            accepted = "1 where decoding.temperature is 0, for greedy answers are all the same"
            mend = "Set it to 1, or the temperature above 0."
            raise invalid("Distillation.samples_per_prompt", accepted=accepted, got=self.samples_per_prompt, mend=mend)
        check_choice("Distillation.keep", self.keep, KEEPS)
        if self.keep_per_prompt is not None:
            check_whole("Distillation.keep_per_prompt", self.keep_per_prompt, minimum=1)
        mend = "Write formats: [jsonl] or [jsonl, parquet]."
        check_items("Distillation.formats", self.formats, of="format", mend=mend)
        for index, name in enumerate(self.formats):
            check_choice(f"Distillation.formats[{index}]", name, FORMATS)
        if "jsonl" not in self.formats:
            raise invalid("Distillation.formats", accepted="jsonl among them", got=list(self.formats), mend=mend)
        for name in ("tasks", "lengths", "plugins", "formats"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "output", Path(self.output))

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The recipe, as the one row of a grid."""
        return (self.recipe,)

    @property
    def num_samples(self) -> int:
        """Prompts of all tasks and lengths."""
        return len(self.tasks) * len(self.lengths) * self.num_examples

    def to_dict(self) -> dict[str, object]:
        """Plain values: a complete distillation file, without ``vars``; the policy as a Python expression."""
        return {
            "plugins": list(self.plugins),
            "model": dataclasses.asdict(self.model),
            "policy": repr(self.recipe.policy),
            "prompting": self.recipe.prompting.to_value(),
            "decoding": self.recipe.decoding.to_dict(),
            "tasks": [task_to_dict(task) for task in self.tasks],
            "lengths": list(self.lengths),
            "num_examples": self.num_examples,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "samples_per_prompt": self.samples_per_prompt,
            "keep": self.keep,
            "keep_per_prompt": self.keep_per_prompt,
            "formats": list(self.formats),
            "output": str(self.output),
        }

    def to_yaml(self) -> str:
        """The text of a complete distillation file that gives this distillation again."""
        return to_yaml(self.to_dict())

    @classmethod
    def from_dict(cls, values: object, *, output: Path | str) -> Distillation:
        """The distillation that plain values describe; ``output`` is the folder where they name none.

        Raises:
            UserError: an unknown, missing or wrong field, named by its dotted path.
        """
        fields = [item.name for item in dataclasses.fields(cls) if item.name != "recipe"]
        mapping = read_fields("distillation", values, [*fields, *_IN_RECIPE], output=output)
        mapping["model"] = build(ModelConfig, mapping.get("model", {}), "model")
        mapping["recipe"] = _parse_recipe({name: mapping.pop(name) for name in _IN_RECIPE if name in mapping})
        parse_each(mapping, "tasks", parse_task)
        return build(cls, mapping, "")


def _parse_recipe(values: dict[str, object]) -> Recipe:
    own = check_mapping("decoding", values.get("decoding", {}))
    decoding = build(Decoding, {**DECODING.to_dict(), **own}, "decoding")
    return build(Recipe, {"policy": FullAttention(), **values, "name": TEACHER, "decoding": decoding}, "")

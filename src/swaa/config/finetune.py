"""Fine-tuning: one model, one policy, what it learns from and how."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from swaa.config.common import ModelConfig, read_fields
from swaa.config.experiment import Experiment
from swaa.config.files import to_yaml
from swaa.config.finetune_parts import (
    Annealing,
    Evaluation,
    LoraConfig,
    Objective,
    Optimization,
    TrainerConfig,
    Training,
    Validation,
    build_source,
)
from swaa.errors import UserError
from swaa.policies import AttentionPolicy, FullAttention, parse_policy
from swaa.reading import build, check_text, check_whole, within
from swaa.recipe import Recipe
from swaa.tasks import Task

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning under a policy.

    Attributes:
        policy: what each query may attend to, while training and afterwards: prompt tokens under its prefill phase,
            answer tokens under its decode phase.
        train: the samples and the steps.
        output: the folder of everything.
        objective: what is minimised.
        lora: the adapter; None trains all weights.
        annealing: windows that shrink to the policy's own; None trains under the policy from the first step.
        optimizer: AdamW and its schedule.
        validation: looks during training; None for none.
        evaluation: figures before and after; None for none.
        trainer: devices, precision, checkpoints.
        model: what is trained; ``dtype`` is that of its weights.
        seed: of the order of the samples, of the adapter's first weights and of dropout.
        plugins: files or modules with policies of one's own, imported first.
    """

    policy: AttentionPolicy
    train: Training
    output: Path
    objective: Objective = field(default_factory=Objective)
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    annealing: Annealing | None = None
    optimizer: Optimization = field(default_factory=Optimization)
    validation: Validation | None = None
    evaluation: Evaluation | None = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    seed: int = 0
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        with within("FineTuning.policy"):
            object.__setattr__(self, "policy", parse_policy(self.policy))
        with within("FineTuning.objective.teacher_policy"):
            parse_policy(self.objective.teacher_policy)
        check_whole("FineTuning.seed", self.seed, minimum=0)
        check_text("FineTuning.output", str(self.output) if isinstance(self.output, Path) else self.output)
        if self.objective.distils and self.lora is None:
            raise UserError(
                "FineTuning.lora: self_distillation takes the model with its adapter off as the teacher, and there is "
                "no adapter. Add 'lora: {}', or train on labels."
            )
        _check_dtype(self)
        if self.trainer.publish == "best" and self.validation is None:
            raise UserError(
                "FineTuning.trainer.publish: 'best' is told by the validation loss, and there is no validation. Add "
                "one, or publish: last."
            )
        looks = self.validation
        if self.trainer.strategy == "fsdp2" and looks is not None and "generate" in looks.scoring:
            raise UserError(
                "FineTuning.validation.scoring: 'generate' ends at another step on every device, and fsdp2 needs all "
                "devices at every step. Use teacher_forced."
            )
        sections = {"train": self.train, "validation": self.validation, "evaluation": self.evaluation}
        check_apart(sections, owner="FineTuning")
        object.__setattr__(self, "output", Path(self.output))
        with within("FineTuning.evaluation", owner="Experiment"):  # now, not when the training is over
            self.experiment(self.model.name, self.output)
        object.__setattr__(self, "plugins", tuple(self.plugins))

    @property
    def teacher_policy(self) -> AttentionPolicy:
        """The composition that teaches in self-distillation."""
        return parse_policy(self.objective.teacher_policy)

    def experiment(self, model: str, output: Path) -> Experiment | None:
        """What is evaluated of a model, before or after: full attention, and the policy; None if nothing is."""
        wanted = self.evaluation
        if wanted is None:
            return None
        recipes = [Recipe("policy", self.policy, decoding=wanted.decoding)]
        if self.policy != FullAttention():
            recipes.insert(0, Recipe("FA", FullAttention(), decoding=wanted.decoding))
        return Experiment(
            recipes=tuple(recipes),
            tasks=wanted.tasks,
            lengths=wanted.lengths,
            output=output,
            plugins=self.plugins,
            model=dataclasses.replace(self.model, name=model),
            num_examples=wanted.num_examples,
            seed=wanted.seed,
            batch_size=wanted.batch_size,
            scoring=wanted.scoring,
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values: a complete file, without ``vars``."""

        def section(value: DataclassInstance | None) -> object:
            return None if value is None else _lists(dataclasses.asdict(value))

        return {
            "policy": repr(self.policy),
            "train": self.train.to_dict(),
            "objective": section(self.objective),
            "lora": section(self.lora),
            "annealing": section(self.annealing),
            "optimizer": section(self.optimizer),
            "validation": None if self.validation is None else self.validation.to_dict(),
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
            "trainer": section(self.trainer),
            "model": section(self.model),
            "seed": self.seed,
            "plugins": list(self.plugins),
            "output": str(self.output),
        }

    def to_yaml(self) -> str:
        """The text of a complete file that gives this fine-tuning again."""
        return to_yaml(self.to_dict())

    @classmethod
    def from_dict(cls, values: object, *, output: Path | str) -> FineTuning:
        """The fine-tuning that plain values describe; ``output`` is the folder where they name none.

        Raises:
            UserError: an unknown, missing or wrong field, named by its dotted path.
        """
        mapping = read_fields("fine-tuning", values, [item.name for item in dataclasses.fields(cls)], output=output)
        for name, kind in {"train": Training, "validation": Validation, "evaluation": Evaluation}.items():
            if mapping.get(name) is not None:
                mapping[name] = build_source(kind, mapping[name], name)
        optional: dict[str, type] = {"lora": LoraConfig, "annealing": Annealing}
        always: dict[str, type] = {
            "objective": Objective,
            "optimizer": Optimization,
            "trainer": TrainerConfig,
            "model": ModelConfig,
        }
        for name, kind in (optional | always).items():
            if mapping.get(name) is not None or (name in mapping and name in always):
                mapping[name] = build(kind, {} if mapping[name] is None else mapping[name], name)
        if mapping.get("train") is None:
            mapping.pop("train", None)
        return build(cls, mapping, "")


def _check_dtype(asked: FineTuning) -> None:
    """Refuse weights in which steps are lost."""
    mend = "dtype: float32 with trainer.mixed_precision: bfloat16"
    if asked.model.dtype == "float16":
        raise UserError(
            "FineTuning.model.dtype: AdamW divides by nothing in float16, and its first step makes weights that are "
            f"not finite. Write dtype: bfloat16 with an adapter (lora), or {mend}."
        )
    if asked.model.dtype == "bfloat16" and asked.lora is None:
        raise UserError(
            "FineTuning.model.dtype: without an adapter (lora: null) the weights themselves are trained, and bfloat16 "
            f"rounds most steps to nothing. Write {mend}."
        )


class Examples(Protocol):
    """What is asked of tasks: in training, in validation, in an evaluation."""

    @property
    def tasks(self) -> tuple[Task, ...]: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def seed(self) -> int: ...


def check_apart(sections: Mapping[str, Examples | None], *, owner: str) -> None:
    """Refuse examples that two sections share: what was trained on tells nothing when it is validated or evaluated.

    The seed keeps examples apart that a task makes; a file's are the same for every seed.

    Args:
        sections: by the name of the field, which ``owner`` has.
    """
    there = [(name, section) for name, section in sections.items() if section is not None]
    for (name, section), (other, later) in itertools.combinations(there, 2):
        asked = [_ungraded(task) for task in later.tasks]
        shared = [task for task in section.tasks if _ungraded(task) in asked]
        for task in shared:
            if not task.sized:
                raise UserError(
                    f"{owner}.{other}.tasks: {task.label} is asked in {name}, too, and offers the same examples "
                    f"whatever the seed. Split its file in two."
                )
        lengths = [length for length in section.lengths if length in later.lengths]
        if shared and lengths and section.seed == later.seed:
            raise UserError(
                f"{owner}.{other}.seed: {later.seed} is {name}.seed, too, and both ask for {shared[0].label} at "
                f"{lengths[0]} tokens: these are the same examples. Set {other}.seed to another number."
            )


def _ungraded(task: Task) -> dict[str, object]:
    """What decides a task's examples: whoever grades them, they are the same."""
    return {key: value for key, value in task.to_dict().items() if key != "grader"}


def _lists(values: dict[str, object]) -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

"""The sections of a fine-tuning file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from swaa.config.common import parse_task
from swaa.config.experiment import SCORINGS
from swaa.errors import UserError, invalid
from swaa.prompting import Prompting
from swaa.reading import build, check_choice, check_items, check_mapping, check_number, check_text, check_whole
from swaa.recipe import Decoding
from swaa.tasks import Task, task_to_dict

OBJECTIVES = ("labels", "self_distillation")
SCHEDULES = ("linear", "cosine", "constant")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp2")
LOGGERS = ("csv", "tensorboard", "wandb")
MIXED_PRECISIONS = ("none", "bfloat16")
ADAPTER_DTYPES = ("float32", "base")


@dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter (LoRA), through PEFT; the defaults are those of the paper (arXiv 2512.10411).

    Attributes:
        r: rank.
        alpha: scale of the update: ``alpha / sqrt(r)`` with ``rslora``, else ``alpha / r``.
        rslora: rank-stabilised scaling (arXiv 2312.03732).
        dropout: on the adapter's input, while training.
        targets: names of the linear layers that get an adapter.
        dtype: ``float32``, or ``base``: the dtype of the model's own weights.
    """

    r: int = 16
    alpha: float = 32
    rslora: bool = True
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_whole("LoraConfig.r", self.r, minimum=1)
        check_number("LoraConfig.alpha", self.alpha, low=0, high=1e6, open_low=True)
        _check_bool("LoraConfig.rslora", self.rslora)
        check_number("LoraConfig.dropout", self.dropout, low=0, high=0.99)
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        check_items("LoraConfig.targets", self.targets, of="module name", mend="Write targets: [q_proj, v_proj].")
        for index, target in enumerate(self.targets):
            check_text(f"LoraConfig.targets[{index}]", target)
        check_choice("LoraConfig.dtype", self.dtype, ADAPTER_DTYPES)
        object.__setattr__(self, "targets", tuple(self.targets))


@dataclass(frozen=True)
class Source:
    """Where samples come from: tasks, whose reference answers are the labels, and files of conversations.

    Attributes:
        tasks: see ``swaa ls tasks``.
        lengths: prompt lengths of the tasks, in tokens.
        num_examples: of each task and length.
        seed: of the tasks' examples. Choose seeds apart from those of evaluations.
        files: ``.jsonl`` or ``.parquet`` files; see :func:`swaa.tasks.conversations.read_conversations`.
        promptings: ways of asking the tasks' examples, as recipes have them; every example comes once in each.
    """

    tasks: tuple[Task, ...] = ()
    lengths: tuple[int, ...] = ()
    num_examples: int = 32
    seed: int = 0
    files: tuple[str, ...] = ()
    promptings: tuple[Prompting, ...] = (Prompting(),)

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_items(f"{name}.promptings", self.promptings, of="prompting", mend="Write promptings: [direct].")
        parsed = (Prompting.parse(one, f"{name}.promptings[{i}]") for i, one in enumerate(self.promptings))
        object.__setattr__(self, "promptings", tuple(parsed))
        if not self.tasks and not self.files:
            raise UserError(f"{name}.tasks: there are neither tasks nor files. Name one of them; see 'swaa ls tasks'.")
        if self.tasks:
            check_items(f"{name}.tasks", self.tasks, of="task", mend="See 'swaa ls tasks'.")
            check_items(f"{name}.lengths", self.lengths, of="prompt length", mend="Write lengths: [900].")
        if self.files:
            check_items(f"{name}.files", self.files, of="file", mend="Write files: [data.jsonl].")
        for index, length in enumerate(self.lengths):
            check_whole(f"{name}.lengths[{index}]", length, minimum=1)
        for index, file in enumerate(self.files):
            check_text(f"{name}.files[{index}]", str(file))
        check_whole(f"{name}.num_examples", self.num_examples, minimum=1)
        check_whole(f"{name}.seed", self.seed, minimum=0)
        for item in ("tasks", "lengths", "files"):
            object.__setattr__(self, item, tuple(getattr(self, item)))

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return {
            **{item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)},
            "tasks": [task_to_dict(task) for task in self.tasks],
            "promptings": [prompting.to_value() for prompting in self.promptings],
        }


@dataclass(frozen=True)
class Training(Source):
    """What is trained on, and how it is cut into steps.

    Attributes:
        batch_size: samples of an optimizer step, over all devices and accumulations.
        micro_batch_size: of these, as many go through the model at a time on a device, padded on the right.
        pack_length: pack samples into rows of so many tokens instead, each isolated from the others; None pads.
        max_length: tokens of the longest sample; None is the model's context.
        too_long: what becomes of longer ones: ``error``, or ``drop``, which counts and names them.
        epochs: passes over the samples.
        max_steps: stop after so many optimizer steps; None goes through all epochs.
    """

    batch_size: int = 8
    micro_batch_size: int = 1
    pack_length: int | None = None
    max_length: int | None = None
    too_long: str = "error"
    epochs: int = 1
    max_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "micro_batch_size", "epochs"):
            check_whole(f"Training.{name}", getattr(self, name), minimum=1)
        for name in ("pack_length", "max_length", "max_steps"):
            if getattr(self, name) is not None:
                check_whole(f"Training.{name}", getattr(self, name), minimum=1)
        check_choice("Training.too_long", self.too_long, ("error", "drop"))
        if self.pack_length is not None and self.micro_batch_size != 1:
            mend = "Leave micro_batch_size out: a packed row is a micro-batch."
            raise invalid(
                "Training.micro_batch_size", accepted="1 with pack_length", got=self.micro_batch_size, mend=mend
            )


@dataclass(frozen=True)
class Objective:
    """What is minimised, a mean over answer tokens.

    Attributes:
        name: ``labels``: cross entropy with the answers' tokens. ``self_distillation``: KL divergence from the same
            weights with the adapter off, under ``teacher_policy``.
        teacher_policy: the composition that teaches (a Python expression).
        temperature: of both distributions in the divergence, which is multiplied by its square (arXiv 1503.02531).
        label_weight: weight in [0, 1] of the cross entropy beside ``1 - label_weight`` of the divergence.
    """

    name: str = "labels"
    teacher_policy: str = "FullAttention()"
    temperature: float = 1.0
    label_weight: float = 0.0

    def __post_init__(self) -> None:
        check_choice("Objective.name", self.name, OBJECTIVES)
        check_text("Objective.teacher_policy", self.teacher_policy)
        check_number("Objective.temperature", self.temperature, low=0, high=100, open_low=True)
        check_number("Objective.label_weight", self.label_weight, low=0, high=1)

    @property
    def distils(self) -> bool:
        """Is there a teacher?"""
        return self.name == "self_distillation"


@dataclass(frozen=True)
class Annealing:
    """Windows that shrink to the policy's own: while training, a window of falling length is added to the policy.

    Attributes:
        start_window: tokens that every query sees at the first step.
        share: of all steps, in (0, 1]; after it the policy is the target itself.
        end_window: the last window added; 1 adds nothing.
    """

    start_window: int
    share: float = 0.5
    end_window: int = 1

    def __post_init__(self) -> None:
        check_whole("Annealing.end_window", self.end_window, minimum=1)
        check_whole("Annealing.start_window", self.start_window, minimum=self.end_window)
        check_number("Annealing.share", self.share, low=0, high=1, open_low=True)


@dataclass(frozen=True)
class Optimization:
    """AdamW and its schedule.

    Attributes:
        learning_rate: at its peak.
        weight_decay: on matrices; biases and norms have none.
        betas: decay of the two moments.
        schedule: after the warm-up: ``linear`` to 0, ``cosine`` to 0, or ``constant``.
        warmup: share of all steps in which the learning rate rises from 0.
        clip_norm: gradients are scaled down to this norm; None leaves them.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "linear"
    warmup: float = 0.05
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check_number("Optimization.learning_rate", self.learning_rate, low=0, high=10, open_low=True)
        check_number("Optimization.weight_decay", self.weight_decay, low=0, high=10)
        if not isinstance(self.betas, list | tuple) or len(self.betas) != 2:
            raise invalid("Optimization.betas", accepted="two numbers", got=self.betas, mend="Write [0.9, 0.999].")
        for index, beta in enumerate(self.betas):
            check_number(f"Optimization.betas[{index}]", beta, low=0, high=0.999999)
        check_choice("Optimization.schedule", self.schedule, SCHEDULES)
        check_number("Optimization.warmup", self.warmup, low=0, high=1)
        if self.clip_norm is not None:
            check_number("Optimization.clip_norm", self.clip_norm, low=0, high=1e9, open_low=True)
        object.__setattr__(self, "betas", tuple(self.betas))


@dataclass(frozen=True)
class Validation(Source):
    """What is looked at during training: the loss on samples, and the tasks' accuracy under the inference policy.

    Attributes:
        seed: of the tasks' examples; one that training and evaluation do not have.
        every: optimizer steps between two looks; there is one before the first step and one after the last.
        batch_size: samples that run together, padded on the right for the loss and on the left for the tasks' accuracy.
        scoring: some of ``generate`` and ``teacher_forced``: how the tasks' accuracy is measured.
        decoding: of generated answers.
        patience: stop after so many looks without a better loss; None never stops early.
        min_delta: what counts as better, in nats.
    """

    seed: int = 5_000
    every: int = 50
    batch_size: int = 8
    scoring: tuple[str, ...] = ("teacher_forced",)
    decoding: Decoding = field(default_factory=Decoding)
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("Validation.every", self.every, minimum=1)
        check_whole("Validation.batch_size", self.batch_size, minimum=1)
        check_items("Validation.scoring", self.scoring, of="scoring", mend="Write scoring: [teacher_forced].")
        for index, scoring in enumerate(self.scoring):
            check_choice(f"Validation.scoring[{index}]", scoring, SCORINGS)
        if "generate" in self.scoring and not self.tasks:
            raise UserError(
                "Validation.scoring: 'generate' answers the prompts of tasks, and there are no tasks. Name some, or "
                "leave scoring out."
            )
        if self.patience is not None:
            check_whole("Validation.patience", self.patience, minimum=1)
        check_number("Validation.min_delta", self.min_delta, low=0, high=1e9)
        object.__setattr__(self, "scoring", tuple(self.scoring))

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return {**super().to_dict(), "decoding": self.decoding.to_dict()}


@dataclass(frozen=True)
class Evaluation:
    """What is measured of the model before and after, on fresh samples.

    Attributes:
        tasks: see ``swaa ls tasks``.
        lengths: prompt lengths in tokens.
        num_examples: of each task and length.
        seed: of the examples; choose one that training and validation do not have.
        batch_size: samples that run together.
        scoring: as of an experiment.
        decoding: of generated answers.
        text_tokens: tokens of text far from the task whose negative log-likelihood under full attention is compared
            before and after; 0 leaves it out.
        text_window: tokens that the model reads of it at a time, and no more than its context.
        text_file: the text; None is the documentation that comes with Python (``pydoc_data.topics``).
    """

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    num_examples: int = 32
    seed: int = 10_000
    batch_size: int = 8
    scoring: tuple[str, ...] = SCORINGS
    decoding: Decoding = field(default_factory=Decoding)
    text_tokens: int = 16_384
    text_window: int = 1_024
    text_file: str | None = None

    def __post_init__(self) -> None:
        check_items("Evaluation.tasks", self.tasks, of="task", mend="See 'swaa ls tasks'.")
        check_items("Evaluation.lengths", self.lengths, of="prompt length", mend="Write lengths: [900].")
        check_items("Evaluation.scoring", self.scoring, of="scoring", mend=f"Write scoring: {list(SCORINGS)}.")
        check_whole("Evaluation.text_tokens", self.text_tokens, minimum=0)
        check_whole("Evaluation.text_window", self.text_window, minimum=2)
        if self.text_file is not None:
            check_text("Evaluation.text_file", self.text_file)
        for name in ("tasks", "lengths", "scoring"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return {
            **{item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)},
            "tasks": [task_to_dict(task) for task in self.tasks],
            "decoding": self.decoding.to_dict(),
        }


@dataclass(frozen=True)
class TrainerConfig:
    """How training runs.

    Attributes:
        devices: processes on each machine.
        num_nodes: machines.
        strategy: ``auto`` (one device, or DDP), ``ddp``, ``ddp_find_unused_parameters_true`` (for experts that get no
            token) or ``fsdp2`` (weights, gradients and optimizer sharded).
        mixed_precision: ``none`` computes in the weights' dtype, ``bfloat16`` autocasts to it.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        checkpoint_every: optimizer steps between two checkpoints; the last two are kept.
        loggers: ``csv`` is always written; ``tensorboard`` and ``wandb`` need these packages.
        publish: which checkpoint becomes the merged model: the ``last`` or the ``best`` by validation loss.
    """

    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    mixed_precision: str = "none"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 20
    loggers: tuple[str, ...] = ("csv",)
    publish: str = "last"

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "checkpoint_every"):
            check_whole(f"TrainerConfig.{name}", getattr(self, name), minimum=1)
        check_choice("TrainerConfig.strategy", self.strategy, STRATEGIES)
        check_choice("TrainerConfig.mixed_precision", self.mixed_precision, MIXED_PRECISIONS)
        _check_bool("TrainerConfig.gradient_checkpointing", self.gradient_checkpointing)
        check_items("TrainerConfig.loggers", self.loggers, of="logger", mend=f"Some of {list(LOGGERS)}.")
        for index, logger in enumerate(self.loggers):
            check_choice(f"TrainerConfig.loggers[{index}]", logger, LOGGERS)
        check_choice("TrainerConfig.publish", self.publish, ("last", "best"))
        object.__setattr__(self, "loggers", tuple(self.loggers))


def build_source(cls: type, values: object, path: str) -> object:
    """A section with tasks and, where it has one, ``decoding``."""
    mapping = dict(check_mapping(path, values))
    tasks = mapping.get("tasks")
    if isinstance(tasks, list | tuple):
        mapping["tasks"] = [parse_task(item, f"{path}.tasks[{index}]") for index, item in enumerate(tasks)]
    if "decoding" in mapping:
        mapping["decoding"] = build(Decoding, mapping["decoding"], f"{path}.decoding")
    return build(cls, mapping, path)


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise invalid(name, accepted="true or false", got=value, mend="Write it without quotes.")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value

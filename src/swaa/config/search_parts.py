"""The parts of a search: its space, its budget, and the samples that choose and that judge."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from swaa.config.experiment import SCORINGS
from swaa.errors import invalid
from swaa.reading import check_choice, check_items, check_number, check_text, check_whole
from swaa.tasks import Task, task_to_dict

PHASES = ("both", "prefill")
"""Where a base policy holds: everywhere, or while the prompt is read (the paper's full-attention decode)."""
UNITS = ("layers", "heads")
METRICS = ("nll", "accuracy")


@dataclass(frozen=True)
class Calibration:
    """The samples that units are scored on.

    Attributes:
        tasks: where they come from; the user's own JSONL is a task ``file``.
        length: of their prompts, in tokens.
        num_examples: of each task.
        seed: of the examples; the test has another one.
    """

    tasks: tuple[Task, ...]
    length: int
    num_examples: int = 10
    seed: int = 1000

    def __post_init__(self) -> None:
        check_items("Calibration.tasks", self.tasks, of="task", mend="See 'swaa ls tasks'.")
        check_whole("Calibration.length", self.length, minimum=1)
        check_whole("Calibration.num_examples", self.num_examples, minimum=1)
        check_whole("Calibration.seed", self.seed, minimum=0)
        object.__setattr__(self, "tasks", tuple(self.tasks))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The one length, as sections with several have it."""
        return (self.length,)


@dataclass(frozen=True)
class HeldOut:
    """The samples that judge what was chosen. None of them chooses.

    Attributes:
        tasks: where they come from.
        lengths: of their prompts, in tokens.
        num_examples: of each task and length.
        seed: of the examples.
        scoring: as of an experiment.
    """

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    num_examples: int = 100
    seed: int = 0
    scoring: tuple[str, ...] = SCORINGS

    def __post_init__(self) -> None:
        check_items("HeldOut.tasks", self.tasks, of="task", mend="See 'swaa ls tasks'.")
        check_items("HeldOut.lengths", self.lengths, of="prompt length", mend="Write lengths: [900].")
        for index, length in enumerate(self.lengths):
            check_whole(f"HeldOut.lengths[{index}]", length, minimum=1)
        check_whole("HeldOut.num_examples", self.num_examples, minimum=1)
        check_whole("HeldOut.seed", self.seed, minimum=0)
        check_items("HeldOut.scoring", self.scoring, of="scoring", mend=f"Write scoring: {list(SCORINGS)}.")
        for index, scoring in enumerate(self.scoring):
            check_choice(f"HeldOut.scoring[{index}]", scoring, SCORINGS)
        _as_tuples(self, "tasks", "lengths", "scoring")

    @property
    def num_samples(self) -> int:
        """Samples of all tasks and lengths, where every task has as many as are asked for."""
        return len(self.tasks) * len(self.lengths) * self.num_examples


@dataclass(frozen=True)
class Space:
    """What may be chosen: base policies x how many units keep full attention.

    Attributes:
        windows: tokens of the sliding window, the query's own among them.
        sinks: first tokens that all queries see; 0 for none.
        phases: some of ``PHASES``.
        counts: units that keep full attention.
        unit: one of ``UNITS``: decoder layers, or query heads of the whole model.
    """

    windows: tuple[int, ...]
    counts: tuple[int, ...]
    sinks: tuple[int, ...] = (10,)
    phases: tuple[str, ...] = ("prefill",)
    unit: str = "layers"

    def __post_init__(self) -> None:
        for name, least, example in (("windows", 1, "[128]"), ("sinks", 0, "[10]"), ("counts", 0, "[0, 4, 8]")):
            values = check_items(f"Space.{name}", getattr(self, name), of="number", mend=f"Write {name}: {example}.")
            for index, value in enumerate(values):
                check_whole(f"Space.{name}[{index}]", value, minimum=least)
        check_items("Space.phases", self.phases, of="phase", mend="Write phases: [both, prefill].")
        for index, phase in enumerate(self.phases):
            check_choice(f"Space.phases[{index}]", phase, PHASES)
        check_choice("Space.unit", self.unit, UNITS)
        _as_tuples(self, "windows", "sinks", "phases", "counts")


@dataclass(frozen=True)
class Budget:
    """What a choice may cost; None sets no limit. All that are set hold together.

    Attributes:
        max_full_layers: layers that keep full attention; none is set where the unit is heads, which ``counts`` limits.
        max_time_ratio: predicted time of the request over full attention's.
        max_kv_share: keys and values that are kept after the prompt, over full attention's.
    """

    max_full_layers: int | None = None
    max_time_ratio: float | None = None
    max_kv_share: float | None = None

    def __post_init__(self) -> None:
        if self.max_full_layers is not None:
            check_whole("Budget.max_full_layers", self.max_full_layers, minimum=0)
        for name in ("max_time_ratio", "max_kv_share"):
            if getattr(self, name) is not None:
                number = check_number(f"Budget.{name}", getattr(self, name), low=0, high=100, open_low=True)
                object.__setattr__(self, name, number)


@dataclass(frozen=True)
class Request:
    """What costs are predicted of: one prompt and its answer.

    Attributes:
        length: tokens of the prompt; None is the longest of the test.
        new_tokens: tokens of the answer; None is what decoding allows.
        machine: the ``bench.json`` of the machine; None is a profile of its kind.
    """

    length: int | None = None
    new_tokens: int | None = None
    machine: str | None = None

    def __post_init__(self) -> None:
        for name in ("length", "new_tokens"):
            if getattr(self, name) is not None:
                check_whole(f"Request.{name}", getattr(self, name), minimum=1)
        if self.machine is not None:
            check_text("Request.machine", self.machine)


@dataclass(frozen=True)
class Halving:
    """How candidates are thinned out before the test.

    Attributes:
        keep: the share that goes on, after each of the two stages; what nothing else dominates always does.
        num_examples: samples of each calibration task in the second stage, teacher-forced.
        seed: of these; the test has another one.
        metric: one of ``METRICS``, what the second stage goes by: NLL of the answer, or teacher-forced accuracy.
    """

    keep: float = 0.5
    num_examples: int = 24
    seed: int = 2000
    metric: str = "nll"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", check_number("Halving.keep", self.keep, low=0, high=1, open_low=True))
        check_whole("Halving.num_examples", self.num_examples, minimum=1)
        check_whole("Halving.seed", self.seed, minimum=0)
        check_choice("Halving.metric", self.metric, METRICS)


@dataclass(frozen=True)
class Controls:
    """What the chosen ones are tested against.

    Attributes:
        same_counts: fixed patterns, evenly spaced, of the counts that are tested.
        patterns: further layers that keep full attention, as selectors such as ``1::2``, within the budget or not.
        random: random sets of each count that is tested.
        seed: of these.
    """

    same_counts: bool = True
    patterns: tuple[str, ...] = ()
    random: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.same_counts, bool):
            mend = "Write it without quotes."
            raise invalid("Controls.same_counts", accepted="true or false", got=self.same_counts, mend=mend)
        if self.patterns:
            check_items("Controls.patterns", self.patterns, of="pattern", mend="Write patterns: ['1::2'].")
            for index, pattern in enumerate(self.patterns):
                check_text(f"Controls.patterns[{index}]", pattern)
        check_whole("Controls.random", self.random, minimum=0)
        check_whole("Controls.seed", self.seed, minimum=0)
        object.__setattr__(self, "patterns", tuple(self.patterns))


@dataclass(frozen=True)
class Scenarios:
    """What the winners are asked for.

    Attributes:
        accuracy_share: the least accuracy of 'fastest' and 'smallest KV', as a share of full attention's.
        speedup: the least predicted speed-up of 'most accurate at least so many times faster', over the model without a
            policy.
    """

    accuracy_share: float = 0.9
    speedup: float = 1.5

    def __post_init__(self) -> None:
        share = check_number("Scenarios.accuracy_share", self.accuracy_share, low=0, high=1)
        object.__setattr__(self, "accuracy_share", share)
        speedup = check_number("Scenarios.speedup", self.speedup, low=1, high=1000)
        object.__setattr__(self, "speedup", speedup)


@dataclass(frozen=True)
class Measure:
    """How the winners are timed beside full attention, at the request that costs are predicted of.

    Attributes:
        rounds: timed requests of each, one after another in turn; there is a warm-up before.
        check_length: prompt tokens on which each is compared with the dense mask first; None takes some more than the
            widest window sees, at most 640, and 0 leaves the comparison out.
    """

    rounds: int = 3
    check_length: int | None = None

    def __post_init__(self) -> None:
        check_whole("Measure.rounds", self.rounds, minimum=1)
        if self.check_length is not None:
            check_whole("Measure.check_length", self.check_length, minimum=0)


def plain(part: object) -> dict[str, object]:
    """The fields of a part as YAML has them."""
    values = {item.name: getattr(part, item.name) for item in dataclasses.fields(part)}  # type: ignore[arg-type]
    if "tasks" in values:
        values["tasks"] = [task_to_dict(task) for task in values["tasks"]]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _as_tuples(part: object, *names: str) -> None:
    for name in names:
        object.__setattr__(part, name, tuple(getattr(part, name)))

"""``run.json``: what a run is, for reports that know no configuration and no model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swaa.config import Experiment
from swaa.engine.grid import context_of, grid_keys
from swaa.engine.machine import session
from swaa.engine.own_code import own_code
from swaa.engine.samples import Asked, Dropped
from swaa.hf import model_shape
from swaa.policies import AttentionPolicy, SlidingWindow
from swaa.policies.describe import predicates
from swaa.recipe import Recipe

FORMAT = 1


def describe(experiment: Experiment, model: Any, asked: Asked) -> dict[str, Any]:
    """The facts of a run that has loaded its model and made its samples."""
    shape = model_shape(model)
    machine = session(model.device)
    return {
        "format": FORMAT,
        "status": "running",
        "model": {
            **{name: getattr(experiment.model, name) for name in ("name", "dtype")},
            "device": str(model.device),
            "num_layers": shape.num_layers,
            "num_heads": shape.num_heads,
            "context": context_of(model),
        },
        **_asked_for(experiment),
        "asked": num_answers(experiment, asked),
        "examples": _examples(_example(sample) for sample in asked.samples),
        "dropped": [dropped.to_dict() for dropped in asked.dropped],
        "provenance": {
            "git": machine["git"],
            "versions": machine["versions"],
            "hardware": {
                "processor": machine["cpu"],
                "cores": machine["cores"],
                "threads": machine["threads"],
                "gpu": machine["gpu"],
                "memory_bytes": machine["memory_bytes"],
                "load": machine["load"],
            },
            "command": shlex.join(["swaa", *sys.argv[1:]]),
            "started": machine["started"],
        },
    }


def redescribe(experiment: Experiment, before: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a run whose records are all there from former ones, which may have asked for more, by other names.

    Only tasks that make their prompts to measure come here, so nothing was dropped.
    """
    names = ((key.task, key.length, key.example) for key in grid_keys(experiment) or ())
    told = _asked_for(experiment)
    return {**before, **told, "asked": experiment.num_samples, "examples": _examples(names), "dropped": []}


def _examples(names: Iterable[tuple[str, int, str]]) -> list[dict[str, Any]]:
    """The ids of ``(task, length, id)`` triples, each once, by task and length."""
    cells: dict[tuple[str, int], dict[str, None]] = {}
    for task, length, name in names:
        cells.setdefault((task, length), {}).setdefault(name)
    return [{"task": task, "length": length, "ids": list(ids)} for (task, length), ids in cells.items()]


def _asked_for(experiment: Experiment) -> dict[str, Any]:
    tasks = [{"label": task.label, "name": task.name, "grader": task.grader.to_dict()} for task in experiment.tasks]
    return {
        "recipes": [_recipe(recipe) for recipe in experiment.recipes],
        "tasks": tasks,
        "lengths": list(experiment.lengths),
        "num_examples": experiment.num_examples,
        "num_generations": experiment.num_generations,
        "seed": experiment.seed,
        "scoring": list(experiment.scoring),
        "code": own_code(experiment.recipes),
    }


def num_answers(experiment: Experiment, asked: Asked) -> int:
    """Records of the whole grid."""
    examples = {_example(sample) for sample in asked.samples}
    return experiment.num_generations * len(experiment.recipes) * len(examples)


def told(dropped: Sequence[Dropped]) -> list[str]:
    """A line for every task that examples were left out of."""
    return [one.told() for one in dropped if one.offered > one.kept or one.left_out]


def _example(sample: Any) -> tuple[str, int, str]:
    return sample.task.label, sample.length, sample.example.id


def _recipe(recipe: Recipe) -> dict[str, Any]:
    tuned = recipe.fine_tuning
    return {
        "name": recipe.name,
        "hash": recipe.hash,
        "policy": recipe.rule,
        "window": _window(recipe.policy),
        "prompting": recipe.prompting.name,
        "instruction": recipe.prompting.instruction,
        "fine_tuning": None if tuned is None else tuned.name,
        "decoding": recipe.decoding.to_dict(),
    }


def _window(policy: AttentionPolicy) -> int | None:
    """The largest sliding window in the policy, in tokens."""
    return max((one.window_size for one in predicates(policy) if isinstance(one, SlidingWindow)), default=None)

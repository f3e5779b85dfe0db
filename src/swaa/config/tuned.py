"""Experiments whose recipes fine-tune the model first: ``fine_tunings`` by name, each run under a recipe's policy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from swaa.config.experiment import Experiment
from swaa.config.finetune import FineTuning, check_apart
from swaa.errors import UserError
from swaa.policies import FullAttention
from swaa.reading import check_keys, check_mapping, within
from swaa.recipe import Recipe

OF_THE_EXPERIMENT = ("policy", "model", "evaluation", "output", "plugins")
"""Fields of a fine-tuning that an experiment's entry cannot have: the recipe and the experiment say them."""


def read_experiment(values: object, *, output: Path | str) -> Experiment:
    """The experiment that plain values describe, its ``fine_tunings`` checked as :class:`FineTuning` checks them.

    Raises:
        UserError: an unknown, missing or wrong field, named by its dotted path.
    """
    mapping = dict(check_mapping("experiment", values))
    asked = check_mapping("fine_tunings", mapping.pop("fine_tunings", None) or {})
    read = {name: _complete(name, fields) for name, fields in asked.items()}
    digests = {name: _digest(name, fields) for name, fields in read.items()}
    experiment = Experiment.from_dict(mapping, output=output, fine_tunings=read, digests=digests)
    for recipe in experiment.recipes:
        if recipe.fine_tuning is not None:
            fine_tuning_of(experiment, recipe)  # now, not when its turn comes
    return experiment


def fine_tuning_of(experiment: Experiment, recipe: Recipe) -> FineTuning:
    """The training that makes a recipe's weights: under its policy, on the experiment's model.

    Recipes with one policy and one training share the folder, whatever else they differ in.

    Raises:
        UserError: the training asks the very examples that the experiment evaluates, or does not fit the model.
    """
    assert recipe.fine_tuning is not None
    name = recipe.fine_tuning.name
    fields = dict(experiment.fine_tunings[name])
    told = json.dumps([repr(recipe.policy), recipe.fine_tuning.digest, experiment.model.name, experiment.model.dtype])
    folder = experiment.output / "fine_tunings" / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    fields |= {
        "policy": recipe.policy,
        "model": dataclasses.asdict(experiment.model),
        "plugins": list(experiment.plugins),
        "output": str(folder),
    }
    path = f"fine_tunings.{name}"
    with within(path):
        tuning = FineTuning.from_dict(fields, output=folder)
    sections = {"train": tuning.train, "validation": tuning.validation, "experiment": experiment}
    check_apart(sections, owner=path)
    return tuning


def _complete(name: str, fields: object) -> Mapping[str, object]:
    """All fields of a training, those left out with their defaults."""
    path = f"fine_tunings.{name}"
    mapping = check_mapping(path, fields)
    known = [item.name for item in dataclasses.fields(FineTuning) if item.name not in OF_THE_EXPERIMENT]
    for key in OF_THE_EXPERIMENT:
        if key in mapping:
            raise UserError(f"{path}.{key}: the recipe and the experiment say this. Remove it here.")
    check_keys(mapping, known, path)
    with within(path):
        read = FineTuning.from_dict({**mapping, "policy": FullAttention()}, output="unused")
    return {key: value for key, value in read.to_dict().items() if key in known}


def _digest(name: str, fields: Mapping[str, object]) -> str:
    """What tells one training from another: its fields, and what its files hold.

    Raises:
        UserError: a file cannot be read.
    """
    hashes = []
    for section in ("train", "validation"):
        asked = fields.get(section)
        for file in asked.get("files", ()) if isinstance(asked, Mapping) else ():
            try:
                hashes.append(hashlib.sha256(Path(str(file)).read_bytes()).hexdigest())
            except OSError as error:
                path = f"fine_tunings.{name}.{section}.files"
                raise UserError(f"{path}: {file}: {error.strerror}. Check the path.") from error
    told = [fields, hashes] if hashes else fields
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

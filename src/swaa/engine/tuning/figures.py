"""The figures of a model before and after: tasks, and text far from them. What is on record is not measured again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from swaa.config import Evaluation, Experiment, FineTuning, load_experiment
from swaa.engine.evaluation import run_evaluation
from swaa.engine.folder import EXPERIMENT, differences
from swaa.engine.grid import context_of
from swaa.engine.samples import make_samples
from swaa.engine.text_nll import TextNll, read_text, text_nll
from swaa.errors import UserError
from swaa.hf.loading import load
from swaa.policies import FullAttention
from swaa.reading import within
from swaa.report import Row
from swaa.report.records import RECORDS

TEXT = "text.json"


@dataclass(frozen=True)
class Figures:
    """What was measured of a model.

    Attributes:
        rows: the evaluation's table.
        text: negative log-likelihood of text under full attention; None if it was not asked for.
    """

    rows: tuple[Row, ...]
    text: TextNll | None


def measure(config: FineTuning, model: str, folder: Path, console: Console) -> Figures | None:
    """The figures of a model; None if none are asked for.

    Args:
        config: the fine-tuning.
        model: name or folder.
        folder: where records go, and where those of the same weights are found, wherever these lay at that time. Those
            of another evaluation are deleted.
        console: where progress is drawn.

    Raises:
        UserError: see :func:`run_evaluation`, :func:`text_nll`.
    """
    experiment = config.experiment(model, folder)
    if experiment is None or config.evaluation is None:
        return None
    text = _text_nll(config, config.evaluation, model, folder / TEXT) if config.evaluation.text_tokens else None
    return Figures(tuple(run_evaluation(experiment, fresh=_other(experiment), console=console)), text)


def check_evaluation(config: FineTuning, tokenizer: Any, *, context: int | None) -> None:
    """Refuse an evaluation that cannot be, before anything is trained.

    Args:
        config: the fine-tuning.
        tokenizer: the model's.
        context: the model's, in tokens; None if it names none.

    Raises:
        UserError: a prompt does not fit into the context, or the text cannot be read or is too short.
    """
    experiment, wanted = config.experiment(config.model.name, config.output), config.evaluation
    if experiment is None or wanted is None:
        return
    with within("evaluation"):
        make_samples(experiment, tokenizer, context=context)
    if wanted.text_tokens:
        ids = tokenizer(read_text(wanted.text_file), verbose=False)["input_ids"]
        window = _window(wanted, context)
        if len(ids) < window:
            mend = "Use a longer text, or lower evaluation.text_window."
            raise UserError(
                f"evaluation.text_file: the text has {len(ids)} tokens, and a stretch of {window} is wanted. {mend}"
            )


def _window(wanted: Evaluation, context: int | None) -> int:
    return wanted.text_window if context is None else min(wanted.text_window, context)


def _other(experiment: Experiment) -> bool:
    """Are the records in the experiment's folder of another one? A model of another name is the same in this folder:
    the checkpoint that is published lies beside it, and whoever publishes another one deletes the records.
    """
    stored = experiment.output / EXPERIMENT
    if not stored.exists():
        return (experiment.output / RECORDS).exists()
    try:
        before = load_experiment(stored)
    except UserError:  # say, of a plugin that is gone
        return True
    renamed = dataclasses.replace(before, model=dataclasses.replace(before.model, name=experiment.model.name))
    if differences(renamed, experiment):
        return True
    if renamed != before:
        stored.write_text(renamed.to_yaml(), encoding="utf-8")
    return False


def _text_nll(config: FineTuning, wanted: Evaluation, model: str, kept: Path) -> TextNll:
    """The figure, measured once and then read from the file ``kept``, unless something else is asked for."""
    text = read_text(wanted.text_file)
    asked = {
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "num_tokens": wanted.text_tokens,
        "window": wanted.text_window,
        "dtype": config.model.dtype,
        "device": config.model.device,
    }
    if kept.exists():
        before = json.loads(kept.read_bytes())
        if before["asked"] == asked:
            return TextNll(**before["figure"])
    loaded, tokenizer = load(model, FullAttention(), dtype=config.model.dtype, device=config.model.device)
    window = _window(wanted, context_of(loaded))
    figure = text_nll(loaded, tokenizer, text, num_tokens=wanted.text_tokens, window=window)
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = kept.with_name(f".{kept.name}.new")
    draft.write_text(json.dumps({"asked": asked, "figure": dataclasses.asdict(figure)}), encoding="utf-8")
    draft.replace(kept)
    return figure

"""A fine-tuning from beginning to end: train, merge, publish, measure before and after. Any part can be resumed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich.console import Console

from swaa.config import FineTuning
from swaa.engine.interrupt import Interrupted, StopRequested, stoppable
from swaa.engine.run import run_experiment
from swaa.engine.text_nll import TextNll, read_text, text_nll
from swaa.engine.tuning.checkpoint import best, latest, load_weights, step_of
from swaa.engine.tuning.folder import MERGED, TEXT, TuningFolder
from swaa.engine.tuning.logs import read_metrics
from swaa.engine.tuning.outcome import Outcome, facts_of, results_of, to_markdown
from swaa.engine.tuning.processes import from_outside, helping, helps
from swaa.engine.tuning.setup import prepare_model
from swaa.engine.tuning.train import train
from swaa.errors import UserError
from swaa.hf.loading import load
from swaa.hf.lora import load_trainable_state
from swaa.hf.publish import CARD, model_card, publish
from swaa.hf.weights import CATALOGUE
from swaa.policies import FullAttention


def run_finetuning(config: FineTuning, *, fresh: bool = False, console: Console | None = None) -> Outcome | None:
    """Do what the folder does not hold yet: train, merge and publish, evaluate before and after, and report.

    Args:
        config: what is asked for.
        fresh: delete what the folder holds first.
        console: where progress is drawn (default: standard error).

    Returns:
        What came of it; None in the processes of a training on several devices that only help.

    Raises:
        UserError: see :class:`TuningFolder` and the functions named above.
        Interrupted: Ctrl-C; the last checkpoint is kept.
    """
    console = console or Console(stderr=True)
    if fresh and from_outside(config):
        raise UserError(
            f"--fresh: with processes that something else starts, none can delete before the others look. Delete "
            f"{config.output} yourself, and leave --fresh out."
        )
    if helps():
        with helping():
            if not (config.output / MERGED).exists():
                train(config, config.output, Console(stderr=True, quiet=True))
        return None
    with TuningFolder(config, fresh=fresh) as folder:
        try:
            with stoppable():
                if not folder.merged.exists():
                    train(config, folder.path, console, remember=folder.remember)
                    publish_checkpoint(config, chosen_checkpoint(config), folder.merged)
                outcome = _measured(config, folder, console)
        except StopRequested:
            kept = latest(folder.checkpoints)
            at = "none yet" if kept is None else f"after step {step_of(kept)}"
            raise Interrupted(
                f"Interrupted; the last checkpoint in {folder.checkpoints}: {at}. "
                "Run the same command again to go on from there."
            ) from None
        folder.write_report(outcome.to_dict(), to_markdown(outcome))
        card = _card(config, outcome.facts, results_of(outcome))
        (folder.merged / CARD).write_text(card, encoding="utf-8")
    return outcome


def chosen_checkpoint(config: FineTuning) -> Path:
    """The checkpoint that is published.

    Raises:
        UserError: there is none.
    """
    checkpoints = config.output / "checkpoints"
    find = best if config.trainer.publish == "best" else latest
    chosen = find(checkpoints)
    if chosen is None:
        raise UserError(f"{checkpoints}: there is no checkpoint. Train first: swaa finetune.")
    return chosen


def publish_checkpoint(config: FineTuning, checkpoint: Path, folder: Path, *, overwrite: bool = False) -> None:
    """Merge a checkpoint's weights into the base model and write it with its policy and a card.

    Raises:
        UserError: the checkpoint is damaged or does not fit the model; ``folder`` is not empty.
    """
    prepared = prepare_model(config, device="cpu")
    weights = {name.removeprefix("model."): value for name, value in load_weights(checkpoint).items()}
    load_trainable_state(prepared.model, weights)
    card = _card(config, facts_of(config), ())
    publish(
        prepared.wrapped,
        prepared.tokenizer,
        folder,
        policy=config.policy,
        card=card,
        kernel=config.model.kernel,
        overwrite=overwrite,
    )


def _measured(config: FineTuning, folder: TuningFolder, console: Console) -> Outcome:
    names = {"before": config.model.name, "after": str(folder.merged)}
    rows, texts = {}, {}
    for when, name in names.items():
        experiment = config.experiment(name, folder.path / when)
        if experiment is not None:
            console.print(f"Evaluating the model {when} the training", highlight=False)
            rows[when] = tuple(run_experiment(experiment, console=console))
            if experiment and config.evaluation is not None and config.evaluation.text_tokens:
                texts[when] = _text_nll(config, name, experiment.output / TEXT)
    metrics, samples = read_metrics(folder.path / "logs"), folder.samples()
    facts = facts_of(config, metrics, samples)
    return Outcome(facts, metrics, rows, texts, folder.merged, tuple(samples.get("too_long", ())))


def _text_nll(config: FineTuning, name: str, kept: Path) -> TextNll:
    """The figure, measured once and then read from the file ``kept``, unless something else is asked for."""
    wanted = config.evaluation
    assert wanted is not None
    asked = {"file": wanted.text_file, "num_tokens": wanted.text_tokens, "window": wanted.text_window}
    if kept.exists():
        before = json.loads(kept.read_bytes())
        if before["asked"] == asked:
            return TextNll(**before["figure"])
    model, tokenizer = load(name, FullAttention(), dtype=config.model.dtype, device=config.model.device)
    text = read_text(wanted.text_file)
    figure = text_nll(model, tokenizer, text, num_tokens=wanted.text_tokens, window=wanted.text_window)
    draft = kept.with_name(f".{kept.name}.new")
    draft.write_text(json.dumps({"asked": asked, "figure": dataclasses.asdict(figure)}), encoding="utf-8")
    draft.replace(kept)
    return figure


def _card(config: FineTuning, facts: dict[str, object], results: object) -> str:
    known = CATALOGUE.get(config.model.name)
    return model_card(
        base=config.model.name,
        policy=config.policy,
        recipe_facts=facts,
        results=results,  # type: ignore[arg-type]
        license="other" if known is None else known.licence,
    )

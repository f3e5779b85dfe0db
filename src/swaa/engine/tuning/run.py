"""A fine-tuning from beginning to end: measure, train, merge, publish, measure again. Any part can be resumed."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from swaa.config import FineTuning
from swaa.engine.interrupt import Interrupted, StopRequested, stoppable
from swaa.engine.processes import check_world_size, from_outside, helping, helps
from swaa.engine.tuning.checkpoint import best, latest, load_weights, step_of
from swaa.engine.tuning.figures import Figures, measure
from swaa.engine.tuning.folder import AFTER, BEFORE, MERGED, TuningFolder
from swaa.engine.tuning.logs import read_metrics
from swaa.engine.tuning.outcome import Outcome, facts_of, results_of, to_markdown
from swaa.engine.tuning.setup import prepare_model
from swaa.engine.tuning.train import check, train
from swaa.errors import UserError
from swaa.hf.lora import load_trainable_state
from swaa.hf.publish import CARD, model_card, publish
from swaa.hf.weights import CATALOGUE


def run_finetuning(config: FineTuning, *, fresh: bool = False, console: Console | None = None) -> Outcome | None:
    """Do what the folder does not hold yet: evaluate, train, merge and publish, evaluate again, and report.

    The model is evaluated before it is trained, so that what is wrong with the evaluation costs minutes and no
    training. Only where a launcher's other processes wait meanwhile is it done afterwards.

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
    check_world_size(config)
    if fresh and from_outside(config):
        raise UserError(
            f"--fresh: with processes that something else starts, none can delete before the others look. Delete "
            f"{config.output} yourself, and leave --fresh out."
        )
    if helps(config):
        with helping():
            if not (config.output / MERGED).exists():
                train(config, config.output, Console(stderr=True, quiet=True))
        return None
    with TuningFolder(config, fresh=fresh) as folder:
        try:
            with stoppable():
                figures = _work(config, folder, console)
        except StopRequested:
            kept = latest(folder.checkpoints)
            at = "none yet" if kept is None else f"after step {step_of(kept)}"
            raise Interrupted(
                f"Interrupted; the last checkpoint in {folder.checkpoints}: {at}. "
                "Run the same command again to go on from there."
            ) from None
        outcome = _outcome(config, folder, figures)
        folder.write_report(outcome.to_dict(), to_markdown(outcome))
        card = _card(config, outcome.facts, results_of(outcome))
        (folder.merged / CARD).write_text(card, encoding="utf-8")
    return outcome


def _work(config: FineTuning, folder: TuningFolder, console: Console) -> dict[str, Figures]:
    """Everything that needs a model; the figures before and after."""
    figures: dict[str, Figures] = {}
    models = {BEFORE: config.model.name, AFTER: str(folder.merged)}

    def evaluate(when: str) -> None:
        if config.evaluation is not None and when not in figures:
            console.print(f"Evaluating the model {when} the training", highlight=False)
            found = measure(config, models[when], folder.path / when, console)
            if found is not None:
                figures[when] = found

    if config.evaluation is not None and not from_outside(config):
        if not folder.merged.exists() and not (folder.path / BEFORE).exists():
            folder.remember(check(config))
            _let_go()
        evaluate(BEFORE)
    if not folder.merged.exists():
        _let_go()  # of what was evaluated
        train(config, folder.path, console, remember=folder.remember)
        _let_go()
    if not folder.is_published:
        folder.before_publishing()
        publish_checkpoint(config, chosen_checkpoint(config), folder.merged, overwrite=True)
        folder.after_publishing()
        _let_go()
    for when in models:
        evaluate(when)
    return figures


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


def _outcome(config: FineTuning, folder: TuningFolder, figures: Mapping[str, Figures]) -> Outcome:
    metrics, samples = read_metrics(folder.path / "logs"), folder.samples()
    rows = {when: one.rows for when, one in figures.items()}
    texts = {when: one.text for when, one in figures.items() if one.text is not None}
    facts = facts_of(config, metrics, samples)
    return Outcome(facts, metrics, rows, texts, folder.merged, tuple(samples.get("too_long", ())))


def _let_go() -> None:
    """Free the memory of a model that nobody holds any more, before the next one is loaded. Lightning's parts hold
    each other, so that only the collector finds them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _card(config: FineTuning, facts: dict[str, object], results: Sequence[Mapping[str, object]]) -> str:
    known = CATALOGUE.get(config.model.name)
    return model_card(
        base=config.model.name,
        policy=config.policy,
        recipe_facts=facts,
        results=results,
        license="other" if known is None else known.licence,
    )

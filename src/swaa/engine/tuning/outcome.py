"""What came of a fine-tuning: figures before and after, and how it went, as data and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa import markdown
from swaa.config import FineTuning, LoraConfig
from swaa.engine.provenance import git_hash, versions
from swaa.engine.text_nll import TextNll
from swaa.report import Row
from swaa.report import to_markdown as rows_to_markdown


@dataclass(frozen=True)
class Outcome:
    """What came of a fine-tuning.

    Attributes:
        facts: settings and times, for the model card and the report.
        metrics: by step, see :func:`swaa.engine.tuning.logs.read_metrics`.
        rows: the evaluations ``before`` and ``after``; empty if there were none.
        texts: negative log-likelihood of text under full attention, ``before`` and ``after``.
        merged: the folder of the published model.
        too_long: samples that were left out.
    """

    facts: dict[str, object]
    metrics: Sequence[Mapping[str, float]]
    rows: Mapping[str, tuple[Row, ...]]
    texts: Mapping[str, TextNll]
    merged: Path
    too_long: tuple[str, ...] = ()

    @property
    def delta_nll(self) -> float | None:
        """Nats per token that the training costs on text under full attention; None where it was not measured."""
        if set(self.texts) != {"before", "after"}:
            return None
        return self.texts["after"].nats_per_token - self.texts["before"].nats_per_token

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "facts": self.facts,
            "before": [dataclasses.asdict(row) for row in self.rows.get("before", ())],
            "after": [dataclasses.asdict(row) for row in self.rows.get("after", ())],
            "text": {when: dataclasses.asdict(text) for when, text in self.texts.items()},
            "delta_nll": self.delta_nll,
            "too_long": list(self.too_long),
            "metrics": list(self.metrics),
            "merged": str(self.merged),
            "git": git_hash(),
            "versions": versions(),
        }


def facts_of(
    config: FineTuning, metrics: Sequence[Mapping[str, float]] = (), samples: Mapping[str, Any] | None = None
) -> dict[str, object]:
    """What a reader of the model card wants to know of the training.

    Args:
        config: what was asked for.
        metrics: by step.
        samples: what :meth:`swaa.engine.tuning.folder.TuningFolder.samples` gives.
    """
    train, lora = config.train, config.lora
    facts: dict[str, object] = {
        "base model": config.model.name,
        "weights trained": "all" if lora is None else _adapter(lora),
        "objective": config.objective.name,
        "data": ", ".join([*(task.label for task in train.tasks), *train.files]),
        "samples a step": train.batch_size,
        "learning rate": config.optimizer.learning_rate,
        "seed": config.seed,
    }
    if samples:
        facts["samples"] = samples["samples"]
    if samples and samples["too_long"]:
        facts["samples left out as too long"] = named(samples["too_long"])
    steps = [row for row in metrics if "train/loss" in row]
    if steps:
        facts["steps"] = len(steps)
        facts["loss, first and last step"] = f"{steps[0]['train/loss']:.4f}, {steps[-1]['train/loss']:.4f}"
        facts["seconds of training steps"] = round(sum(row["train/seconds"] for row in steps), 1)
    return facts


def named(names: Sequence[str]) -> str:
    """How many there are, and the first of them: ``7: a, b, c, d, e, …``"""
    return f"{len(names)}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def _adapter(lora: LoraConfig) -> str:
    return f"LoRA r {lora.r}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"


def results_of(outcome: Outcome) -> list[dict[str, object]]:
    """The evaluations as rows of one table."""
    results: list[dict[str, object]] = []
    for when, rows in outcome.rows.items():
        for row in rows:
            accuracy = row.accuracy or row.forced
            shown = "" if accuracy is None else f"{accuracy.value:.2f} [{accuracy.low:.2f}, {accuracy.high:.2f}]"
            name = "full attention" if row.recipe == "FA" else "the policy"
            where = f"{row.task}, {row.length} tokens"
            results.append({"Task": where, "Attention": name, "Weights": when, "n": row.n, "Accuracy": shown})
    return results


def to_markdown(outcome: Outcome) -> str:
    """The report."""
    parts = ["# Fine-tuning"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in outcome.facts.items()))
    looks = [row for row in outcome.metrics if "validation/loss" in row]
    if looks:
        names = [name for name in looks[0] if name.startswith("validation/")]
        head = ["step", *(name.removeprefix("validation/") for name in names)]
        told = [[f"{row['step']:.0f}", *(f"{row[name]:.4f}" for name in names if name in row)] for row in looks]
        parts += ["## During training, under the policy", markdown.table(head, told)]
    for when, rows in outcome.rows.items():
        parts += [f"## {when.capitalize()}", rows_to_markdown(list(rows))]
    if outcome.delta_nll is not None:
        before, after = outcome.texts["before"], outcome.texts["after"]
        parts += [
            "## Text far from the task, full attention",
            f"{before.nats_per_token:.4f} nats a token before, {after.nats_per_token:.4f} after, over "
            f"{before.num_tokens} tokens: {outcome.delta_nll:+.4f}.",
        ]
    return "\n\n".join(parts) + "\n"

"""The folder of a fine-tuning: what it trained, checkpoints, logs, the merged model and the figures.

finetune.yaml    the fine-tuning, complete; ``swaa finetune`` reads it again
samples.json     how many samples, which were too long, and a hash that tells them from others
checkpoints/     the last ones, ``step-000040`` and so on, and the ``best``
logs/            metrics by step
merged/          a plain transformers checkpoint with the policy in its config, and a model card
before/, after/  evaluations: records and tables, and the negative log-likelihood of text
report.json, .md what came of it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swaa.config import FineTuning, load_finetuning
from swaa.engine.resumable import ResumableFolder
from swaa.engine.tuning.checkpoint import latest
from swaa.engine.tuning.data import TrainingSet
from swaa.errors import UserError

CONFIG = "finetune.yaml"
SAMPLES = "samples.json"
TEXT = "text.json"
REPORT, REPORT_TEXT = "report.json", "report.md"
MERGED = "merged"
MEND = "Choose another folder with --output, or delete this training with --fresh."
_FOLDERS = ("checkpoints", "logs", MERGED, "before", "after")
_FREE = (
    "output",
    "trainer.checkpoint_every",
    "trainer.loggers",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "evaluation",
    "plugins",
)
"""What may differ when a training goes on: it changes no step.

On the same number of devices, with the same strategy, a resumed training is that of an uninterrupted one bit for bit.
On another number each step has the same samples and the same loss, and its sums are rounded in another order; dropout
draws other numbers, since each device has its own.
"""


class TuningFolder(ResumableFolder):
    """The folder ``config.output``; a context that locks it. ``fresh`` deletes what a former training wrote there.

    Raises:
        UserError: the folder cannot be made, another process runs in it, or it holds another training; the differences
            are named.
    """

    def __init__(self, config: FineTuning, *, fresh: bool = False) -> None:
        super().__init__(config.output)
        self._config = config
        self._fresh = fresh

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def merged(self) -> Path:
        return self.path / MERGED

    def write_report(self, values: Mapping[str, object], text: str) -> None:
        """Write the figures."""
        (self.path / REPORT).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (self.path / REPORT_TEXT).write_text(text, encoding="utf-8")

    def remember(self, data: TrainingSet) -> None:
        """Write down what is trained on.

        Raises:
            UserError: there are checkpoints of a training on other samples.
        """
        told = {"samples": len(data.samples), "too_long": list(data.dropped), "hash": data.hash}
        before = self.samples()
        if latest(self.checkpoints) is not None and before and before["hash"] != told["hash"]:
            was = f"{before['samples']} samples there, {told['samples']} now"
            raise UserError(f"{self.path} holds a training on other samples ({was}): the data has changed. {MEND}")
        self._replace(SAMPLES, json.dumps(told).encode())

    def samples(self) -> dict[str, Any]:
        """What :meth:`remember` wrote; nothing before that."""
        path = self.path / SAMPLES
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return found

    def _begin(self) -> None:
        if self._fresh:
            for name in _FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
            self._delete(CONFIG, SAMPLES, REPORT, REPORT_TEXT)
        stored = self.path / CONFIG
        if stored.exists() and any((self.path / name).exists() for name in _FOLDERS):
            changes = differences(load_finetuning(stored), self._config)
            if changes:
                listed = "".join(f"\n  {change}" for change in changes)
                raise UserError(f"{self.path} holds another training:{listed}\n{MEND}")
        self._replace(CONFIG, self._config.to_yaml().encode())


def differences(before: FineTuning, now: FineTuning) -> list[str]:
    """What changed between two fine-tunings so that one cannot go on as the other, a line each."""
    was, new = _flat(before.to_dict()), _flat(now.to_dict())
    changed = [key for key in sorted({*was, *new}) if was.get(key) != new.get(key)]
    return [
        f"{key}: {was.get(key)!r} there, {new.get(key)!r} now"
        for key in changed
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    ]


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

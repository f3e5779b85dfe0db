"""The folder of a fine-tuning: what it trained, checkpoints, logs, the merged model and the figures.

finetune.yaml    the fine-tuning, complete; ``swaa finetune`` reads it again
samples.json     how many samples, which were too long, and hashes that tell them and their files from others
checkpoints/     the last ones, ``step-000040`` and so on, and the ``best``
logs/            metrics by step
merged/          a plain transformers checkpoint with the policy in its config, and a model card
published.json   which checkpoint that is: the last or the best
before/, after/  evaluations: records and tables, and the negative log-likelihood of text
report.json, .md what came of it
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from swaa.config import FineTuning, load_finetuning
from swaa.config.files import load_fields
from swaa.engine.resumable import MEND, ResumableFolder, changed
from swaa.engine.tuning.checkpoint import latest
from swaa.engine.tuning.data import TrainingSet
from swaa.errors import UserError

CONFIG = "finetune.yaml"
SAMPLES = "samples.json"
PUBLISHED = "published.json"
REPORT, REPORT_TEXT = "report.json", "report.md"
MERGED, BEFORE, AFTER = "merged", "before", "after"
_FOLDERS = ("checkpoints", "logs", MERGED, BEFORE, AFTER)
_FILES = (SAMPLES, PUBLISHED, REPORT, REPORT_TEXT)
_COMPLETE = {"policy", "train", "output", "lora", "annealing", "validation", "evaluation", "plugins"}
"""Sections that the file of a training has, all of them, and a file that somebody wrote has not."""
_FREE = (
    "output",
    "train.files",  # by what is in them: see TuningFolder
    "validation.patience",
    "validation.min_delta",
    "trainer.checkpoint_every",
    "trainer.loggers",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.publish",
    "model.device",
    "model.kernel",
    "evaluation",
    "plugins",
)
"""What may differ when a training goes on: it changes no step.

On the same number of devices of the same kind, with the same strategy and kernel, a resumed training is that of an
uninterrupted one bit for bit. On others each step has the same samples and the same loss, and its sums are rounded in
another order; dropout draws other numbers, since each device has its own.
"""


class TuningFolder(ResumableFolder):
    """The folder ``config.output``; a context that locks it. ``fresh`` deletes what a former training wrote there.

    Raises:
        UserError: the folder cannot be made, another process runs in it, it holds what no training wrote, or another
            training; the differences are named.
    """

    def __init__(self, config: FineTuning, *, fresh: bool = False) -> None:
        super().__init__(config.output)
        self._config = config
        self._fresh = fresh

    def __enter__(self) -> Self:
        self._refuse_foreign()  # before a lock is left in somebody else's folder
        return super().__enter__()

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
        told = {
            "samples": len(data.samples),
            "too_long": list(data.dropped),
            "hash": data.hash,
            "files": _contents(self._config.train.files),
        }
        before = self.samples()
        if latest(self.checkpoints) is not None and before and before["hash"] != told["hash"]:
            was = f"{before['samples']} samples there, {told['samples']} now"
            raise UserError(f"{self.path} holds a training on other samples ({was}): the data has changed. {MEND}")
        self._replace(SAMPLES, json.dumps(told).encode())

    def samples(self) -> dict[str, Any]:
        """What :meth:`remember` wrote; nothing before that."""
        found: dict[str, Any] = self._read(SAMPLES)
        return found

    @property
    def is_published(self) -> bool:
        """Is the merged model there, and of the checkpoint that is asked for?"""
        return self.merged.exists() and self._read(PUBLISHED).get("publish") == self._config.trainer.publish

    def before_publishing(self) -> None:
        """The figures of other weights go, before these are there."""
        self._delete(PUBLISHED)
        shutil.rmtree(self.path / AFTER, ignore_errors=True)

    def after_publishing(self) -> None:
        """Write down what is published."""
        self._replace(PUBLISHED, json.dumps({"publish": self._config.trainer.publish}).encode())

    def _begin(self) -> None:
        if self._fresh and (self.path / CONFIG).exists():
            for name in _FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
            self._delete(*_FILES, CONFIG)  # the file that says whose folder this is goes last
        stored = self.path / CONFIG
        if stored.exists() and any((self.path / name).exists() for name in _FOLDERS):
            before = load_finetuning(stored)
            self._refuse([*differences(before, self._config), *self._other_files(before)], what="another training")
        self._replace(CONFIG, self._config.to_yaml().encode())

    def _refuse_foreign(self) -> None:
        """Refuse a folder in which names that a training takes belong to something else."""
        ours = _is_of_a_training(self.path / CONFIG)
        taken = [] if ours else [name for name in (CONFIG, *_FOLDERS, *_FILES) if _exists(self.path / name)]
        if taken:
            raise UserError(
                f"output folder {self.path}: {', '.join(taken)}: already there, and no fine-tuning wrote them. Choose "
                "another with --output; nothing was touched."
            )

    def _other_files(self, before: FineTuning) -> list[str]:
        """A line if files of another name have another content, too."""
        was, new = list(before.train.files), list(self._config.train.files)
        known = self.samples().get("files")
        same = was == new or known is None or known == _contents(new)  # without it, the samples tell: see remember
        return [] if same else changed([("train.files", was, new)])

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return found


def differences(before: FineTuning, now: FineTuning) -> list[str]:
    """What changed between two fine-tunings so that one cannot go on as the other, a line each."""
    pairs = _pairs(before.to_dict(), now.to_dict())
    return changed(
        pair for pair in pairs if not any(pair[0] == free or pair[0].startswith(f"{free}.") for free in _FREE)
    )


def _pairs(was: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """``(field, before, now)``; a section that only one of them has is one field."""
    for key in sorted({*was, *new}):
        one, other = was.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _pairs(one, other, f"{prefix}{key}.")
        else:
            yield prefix + key, one, other


def _contents(files: Iterable[str]) -> list[str]:
    """A hash of each file's content; empty for one that is not there."""
    paths = [Path(file) for file in files]
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "" for path in paths]


def _is_of_a_training(path: Path) -> bool:
    """Is this a file that a training wrote, and not one that somebody wrote under the same name?"""
    try:
        return set(load_fields(path, [])) >= _COMPLETE
    except UserError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # told when the folder is entered
        return False

"""The Lightning module that runs batches of the grid."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from lightning.pytorch import LightningModule

from swaa.config import Experiment
from swaa.engine.batch import Batch
from swaa.engine.decode import Forced, Generation, Prefill, generate, prefill, teacher_forced
from swaa.engine.recording import Recorder
from swaa.hf import apply_policy
from swaa.recipe import Decoding, Recipe
from swaa.report import Record

WARM_UP = Decoding(max_new_tokens=3)
"""What the warm-up generates: enough for a decode step after the first one."""


class Evaluator(LightningModule):
    """Runs batches under their recipes and makes a record of every sample.

    The policy is switched when the recipe of the batches changes. The first batch of a recipe is preceded by a warm-up
    on its first sample, so that compilation and lazy set-up are in no timing.

    Args:
        model: a causal language model without a policy.
        tokenizer: its own.
        experiment: what is asked for.
    """

    def __init__(self, model: Any, tokenizer: Any, experiment: Experiment) -> None:
        super().__init__()
        self.model = model.eval()
        self._tokenizer = tokenizer
        self._experiment = experiment
        self._recorder = Recorder(model, experiment)
        self._recipe: Recipe | None = None
        self._handle: Any = None

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Record]:
        """The records of a batch; see :meth:`Recorder.records`."""
        if not batch.counts:
            return []
        if batch.recipe != self._recipe:
            self._switch_to(batch.recipe)
            self._run(batch.head(), WARM_UP)
        return self._recorder.records(batch, *self._run(batch, batch.recipe.decoding))

    def restore(self) -> None:
        """Take the policy off the model."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._recipe = None

    def on_predict_end(self) -> None:
        self.restore()

    def _switch_to(self, recipe: Recipe) -> None:
        self.restore()
        self._handle = apply_policy(self.model, recipe.policy, recipe.scores, kernel=self._experiment.model.kernel)
        self._recipe = recipe

    def _run(self, batch: Batch, decoding: Decoding) -> tuple[Prefill, Forced | None, list[Generation]]:
        """One prefill and what was asked to follow it.

        Generation i is drawn with the seed ``decoding.seed + i``. A reply with reasoning has no reference to score.
        """
        read = prefill(self.model, batch, self._experiment.model.prefill_chunk_size)
        forced, made = None, []
        if "teacher_forced" in self._experiment.scoring and not batch.recipe.prompting.reasons:
            forced = teacher_forced(self.model, batch, read)
        if "generate" in self._experiment.scoring:
            for place, number in enumerate(batch.generations):
                last = place + 1 == len(batch.generations)
                copied = read if last else dataclasses.replace(read, cache=copy.deepcopy(read.cache))
                own = dataclasses.replace(decoding, seed=decoding.seed + number)
                made.append(generate(self.model, self._tokenizer, batch, copied, own))
        return read, forced, made

"""The Lightning module that runs batches of the grid."""

from __future__ import annotations

import functools
from typing import Any

from lightning.pytorch import LightningModule

from swaa.compiler import estimate_cost
from swaa.config import Experiment
from swaa.engine.batch import Batch, Sample
from swaa.engine.decode import Forced, Generation, Prefill, generate, prefill, teacher_forced
from swaa.engine.provenance import git_hash, versions
from swaa.graders import grade
from swaa.hf import apply_policy, model_shape
from swaa.policies import AttentionPolicy
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
        self._shape = model_shape(model)
        self._recipe: Recipe | None = None
        self._handle: Any = None

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Record]:
        """The records of a batch, in the order of its rows."""
        if batch.recipe != self._recipe:
            self._switch_to(batch.recipe)
            self._run(batch.head(), WARM_UP)
        return self._records(batch, *self._run(batch, batch.recipe.decoding))

    def restore(self) -> None:
        """Take the policy off the model."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._recipe = None

    def on_predict_end(self) -> None:
        self.restore()

    def _switch_to(self, recipe: Recipe) -> None:
        self.restore()
        self._handle = apply_policy(self.model, recipe.policy, kernel=self._experiment.model.kernel)
        self._recipe = recipe

    def _run(self, batch: Batch, decoding: Decoding) -> tuple[Prefill, Forced | None, Generation | None]:
        """One prefill and what was asked to follow it."""
        read = prefill(self.model, batch, self._experiment.model.prefill_chunk_size)
        forced = generation = None
        if "teacher_forced" in self._experiment.scoring:
            forced = teacher_forced(self.model, batch, read)
        if "generate" in self._experiment.scoring:
            generation = generate(self.model, self._tokenizer, batch, read, decoding)
        return read, forced, generation

    def _records(
        self, batch: Batch, read: Prefill, forced: Forced | None, generation: Generation | None
    ) -> list[Record]:
        records = []
        for row, sample in enumerate(batch.samples):
            scores: dict[str, float] = {}
            timing: dict[str, float] = {
                "prefill_seconds": read.seconds / len(batch.samples),
                "batch_size": len(batch.samples),
            }
            new_tokens = len(sample.prompt.answer_ids)
            if forced is not None:
                scores |= {"forced_exact": float(forced.exact[row]), "forced_nll": forced.nll[row]}
            if generation is not None:
                scores |= _graded(sample, generation.texts[row])
                new_tokens = timing["new_tokens"] = generation.num_tokens[row]
                if generation.step_seconds is not None:
                    timing["decode_ms_per_token"] = 1000 * generation.step_seconds
            records.append(
                Record(
                    recipe=batch.recipe.name,
                    recipe_hash=batch.recipe.hash,
                    task=sample.task.label,
                    length=sample.length,
                    example=sample.example.id,
                    seed=self._experiment.seed,
                    prompt_tokens=len(sample.prompt.ids),
                    answer=sample.example.answer,
                    metadata=sample.example.metadata,
                    generated=None if generation is None else generation.texts[row],
                    scores=scores,
                    timing=timing,
                    cost=self._cost(batch.recipe.policy, len(sample.prompt.ids), new_tokens),
                    git=git_hash(),
                    versions=versions(),
                )
            )
        return records

    @functools.lru_cache(maxsize=4096)  # noqa: B019  # the evaluator lives as long as the run
    def _cost(self, policy: AttentionPolicy, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
        cost = estimate_cost(policy, self._shape, prompt_tokens, new_tokens)
        return {"visible_pair_share": cost.visible_pair_share, "kv_share": cost.kv_share}


def _graded(sample: Sample, text: str) -> dict[str, float]:
    result = grade(sample.task.grader, text, sample.example.references)
    return {"score": result.score, "all_correct": float(result.all_correct)}

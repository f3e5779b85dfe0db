"""Before anything is timed: does a row compute what its policy says?

The reference is the same model in float32, under the same policy, on SDPA with a dense mask, its cache whole. A row is
run on the kernel that the timed length gets, reads the same prompt and is given the reference's tokens to go on with:

- in float32 (on a CPU), where only rounding may differ: a key too many or too few shows at once;
- in the benchmark's own dtype, where a row may be as far from the reference as the dense mask in that dtype is, and
  half as far again.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from swaa.config import Baseline, Benchmark
from swaa.engine.bench_measure import Reading, stream
from swaa.engine.bench_rows import ModelRow, checked_kernel, make_row, planned_kernel, under_policy
from swaa.policies import AttentionPolicy
from swaa.recipe import Recipe
from swaa.report.bench import Check

NEW_TOKENS = 6
"""Tokens generated for a check."""
FLOAT32_TOLERANCE = 1e-3
"""The largest difference of logits in float32, as a share of the largest logit."""
DTYPE_TOLERANCE = 1.5
"""The most that a row's error in its own dtype may be, over the dense mask's."""
DEFAULT_LENGTH = 640
"""The most prompt tokens of a check, unless the benchmark says otherwise."""


class Checker:
    """Compares rows of a benchmark with the dense mask.

    Args:
        benchmark: what is asked for.
        model: without a policy.
        prompt: tokens [1, S] to compare on.
    """

    def __init__(self, benchmark: Benchmark, model: Any, prompt: Tensor) -> None:
        self._benchmark = benchmark
        self._model = model
        self._prompt = prompt
        self._exact = model if model.dtype == torch.float32 else copy.deepcopy(model).float()

    def check(self, entry: Recipe | Baseline, row: ModelRow) -> Check | None:
        """What the comparison found; None where the row is equal to nothing (no attention at all)."""
        if row.policy is None:
            return None
        policy, length = row.policy, self._prompt.shape[1]
        kernel = told = "its own kernel"
        if isinstance(entry, Recipe):
            kernel = planned_kernel(entry, self._benchmark, self._model)
            told = checked_kernel(entry, self._benchmark, self._model)
        reference = self._dense(self._exact, policy)
        tokens = [int(logits_V.argmax()) for logits_V in reference]
        found: dict[str, float] = {}
        equal = True
        if self._model.device.type == "cpu":
            got = self._run(self._twin(entry, row, self._exact, kernel), tokens)
            found["float32_difference"] = _largest(got, reference) / max(float(x.abs().max()) for x in reference)
            equal = found["float32_difference"] <= FLOAT32_TOLERANCE
        if self._model.dtype != torch.float32:
            got = self._run(self._twin(entry, row, self._model, kernel), tokens)
            dense = self._dense(self._model, policy, tokens)
            found["dtype_error"] = _spread(got, reference)
            found["dense_dtype_error"] = _spread(dense, reference)
            equal &= found["dtype_error"] <= DTYPE_TOLERANCE * found["dense_dtype_error"] + 1e-6
        else:
            got = self._run(self._twin(entry, row, self._model, kernel), tokens)
        same = sum(int(logits_V.argmax()) == token for logits_V, token in zip(got, tokens, strict=True))
        return Check(row.name, row.hash, told, length, NEW_TOKENS, same, bool(equal), found)

    def _twin(self, entry: Recipe | Baseline, row: ModelRow, model: Any, kernel: str) -> ModelRow:
        """The row on ``model``, its prompt cut into at least two chunks if the longest one that is timed is cut."""
        chunk = row.reading(max(self._benchmark.lengths)).chunk
        if chunk is not None:
            chunk = min(chunk, -(-self._prompt.shape[1] // 3))
        settings = self._benchmark.model
        if isinstance(entry, Recipe):
            settings = dataclasses.replace(settings, kernel=kernel)
        twin = make_row(entry, dataclasses.replace(self._benchmark, model=settings, prefill_chunk_size=chunk), model)
        assert isinstance(twin, ModelRow)
        return twin

    def _dense(self, model: Any, policy: AttentionPolicy, tokens: Sequence[int] | None = None) -> list[Tensor]:
        dressed = under_policy(model, policy, kernel="dense", evict=False)
        return self._logits(model, dressed, Reading(tells_prompt=True), tokens)

    def _run(self, row: ModelRow, tokens: Sequence[int]) -> list[Tensor]:
        return self._logits(row.model, row.dressed, row.reading(self._prompt.shape[1]), tokens)

    @torch.no_grad()
    def _logits(
        self,
        model: Any,
        dressed: Callable[[], AbstractContextManager[object]],
        reading: Reading,
        tokens: Sequence[int] | None,
    ) -> list[Tensor]:
        with dressed():
            steps = itertools.islice(stream(model, self._prompt, reading, tokens), NEW_TOKENS)
            return [logits_V.float() for logits_V, _ in steps]


def _largest(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of any logit; infinite where one is no number."""
    largest = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return largest if largest == largest else float("inf")


def _spread(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The root of the mean squared difference of the logits; infinite where one is no number."""
    mean = torch.stack([(a - b).square().mean() for a, b in zip(ours, theirs, strict=True)]).mean()
    return float(mean.sqrt()) if bool(mean.isfinite()) else float("inf")

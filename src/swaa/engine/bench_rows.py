"""The rows of a benchmark: how each recipe and each baseline runs a request.

A row that cannot run here raises :class:`~swaa.engine.bench_measure.LeftOut`, with the reason that the table tells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from swaa.compiler.plan import Job, Kernel, choose_kernel
from swaa.config import Baseline, Benchmark
from swaa.engine.bench_kvpress import KvPress
from swaa.engine.bench_measure import LeftOut, Reading, Timing, time_request
from swaa.errors import UserError
from swaa.hf import apply_policy, model_shape
from swaa.policies import AttentionPolicy, FullAttention, SlidingWindow, bind
from swaa.recipe import Recipe


class Row(Protocol):
    """A recipe or a baseline, ready to run on a model."""

    @property
    def name(self) -> str:
        """In tables."""

    @property
    def hash(self) -> str:
        """Of everything that makes the row, but its name."""

    def request(self, prompt: torch.Tensor, new_tokens: int) -> Timing:
        """Run and time a request for the prompt [1, S]."""

    def close(self) -> None:
        """Free what the row holds."""


@dataclass(frozen=True, eq=False)
class ModelRow:
    """A row that runs on a transformers model in this process.

    Attributes:
        name: in tables.
        hash: of everything that makes the row, but its name.
        model: what runs.
        dressed: makes the context in which the model runs as the row says.
        reading: how the prompt is read.
        policy: what the row should equal: that policy under the dense mask; None if it equals nothing.
    """

    name: str
    hash: str
    model: Any
    dressed: Callable[[], AbstractContextManager[object]]
    reading: Reading
    policy: AttentionPolicy | None

    def request(self, prompt: torch.Tensor, new_tokens: int) -> Timing:
        """Run and time a request for the prompt [1, S]."""
        with self.dressed():
            return time_request(self.model, prompt, new_tokens, self.reading)

    def close(self) -> None:
        """Nothing to free."""


def make_row(entry: Recipe | Baseline, benchmark: Benchmark, model: Any) -> Row:
    """The row of a recipe or baseline on a model without a policy.

    Raises:
        LeftOut: the baseline cannot run here.
        UserError: the policy does not fit the model.
    """
    plain = Reading(chunk=benchmark.prefill_chunk_size)
    if isinstance(entry, Recipe):
        dressed = under_policy(model, entry.policy, kernel=benchmark.model.kernel)
        told = dataclasses.replace(plain, tells_prompt=True)
        return ModelRow(entry.name, entry.hash, model, dressed, told, entry.policy)
    if entry.name == "kvpress":
        return KvPress.start(entry, row_hash(entry), benchmark, model)
    from swaa.hf.baselines import NO_ATTENTION, attention, native_window_model

    if entry.name == "native_window":
        assert entry.window is not None
        try:
            windowed = native_window_model(model, entry.window)
        except UserError as error:
            raise LeftOut(str(error)) from error
        policy = SlidingWindow(entry.window)
        return ModelRow(entry.name, row_hash(entry), windowed, contextlib.nullcontext, plain, policy)
    implementations: dict[str, tuple[str, Reading, AttentionPolicy | None]] = {
        "full": ("sdpa", plain, FullAttention()),
        "hf_flex": ("flex_attention", plain, FullAttention()),
        "floor": (NO_ATTENTION, dataclasses.replace(plain, caches=False), None),
    }
    implementation, reading, equals = implementations[entry.name]
    dressed = functools.partial(attention, model, implementation)
    return ModelRow(entry.name, row_hash(entry), model, dressed, reading, equals)


def under_policy(
    model: Any, policy: AttentionPolicy, *, kernel: str, evict: bool = True
) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context in which a model runs under a policy."""
    options: dict[str, Any] = {"kernel": kernel}
    if "evict" in inspect.signature(apply_policy).parameters:
        options["evict"] = evict
    return functools.partial(apply_policy, model, policy, **options)


def row_hash(entry: Recipe | Baseline) -> str:
    """What identifies a row in the measurements: everything but the name of a recipe."""
    if isinstance(entry, Recipe):
        return entry.hash
    return hashlib.sha256(json.dumps(dataclasses.asdict(entry), sort_keys=True).encode()).hexdigest()


def planned_kernel(benchmark: Benchmark, policy: AttentionPolicy, model: Any) -> str:
    """The kernel that sparse layers get at the longest timed length, as a request; "auto" where it is not one."""
    asked, length = benchmark.model.kernel, max(benchmark.lengths)
    if asked != "auto" or benchmark.prefill_chunk_size is not None:
        return asked  # chunks go through several kernels, at any length the same
    shape = model_shape(model)
    job = Job(length, length, model.device.type)
    layers = bind(policy, shape.num_layers, shape.num_heads).layers
    kernels = {choose_kernel(layer, job).kernel for layer in layers} - {Kernel.CAUSAL}
    return kernels.pop().value if len(kernels) == 1 else "auto"

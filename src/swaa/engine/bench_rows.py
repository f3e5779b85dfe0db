"""The rows of a benchmark: how each recipe and each baseline runs a request.

A row that cannot run here raises :class:`~swaa.engine.bench_measure.LeftOut`, with the reason that the table tells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from swaa.compiler import ModelShape, prefill_chunk
from swaa.compiler.chunking import even_chunk
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
        reading: how a prompt of so many tokens is read.
        policy: what the row should equal: that policy under the dense mask; None if it equals nothing.
    """

    name: str
    hash: str
    model: Any
    dressed: Callable[[], AbstractContextManager[object]]
    reading: Callable[[int], Reading]
    policy: AttentionPolicy | None

    def request(self, prompt: torch.Tensor, new_tokens: int) -> Timing:
        """Run and time a request for the prompt [1, S]."""
        with self.dressed():
            return time_request(self.model, prompt, new_tokens, self.reading(prompt.shape[1]))

    def close(self) -> None:
        """Nothing to free."""


def make_row(entry: Recipe | Baseline, benchmark: Benchmark, model: Any) -> Row:
    """The row of a recipe or baseline on a model without a policy.

    Raises:
        LeftOut: the baseline cannot run here.
        UserError: the policy does not fit the model.
    """
    shape = model_shape(model)

    def reading(length: int) -> Reading:
        return Reading(
            chunk=chunk_of(entry, benchmark, shape, length, model.device.type),
            tells_prompt=isinstance(entry, Recipe),
            caches=entry.name != "floor",
        )

    if isinstance(entry, Recipe):
        dressed = under_policy(model, entry.policy, kernel=benchmark.model.kernel)
        return ModelRow(entry.name, entry.hash, model, dressed, reading, entry.policy)
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
        return ModelRow(entry.name, row_hash(entry), windowed, contextlib.nullcontext, reading, policy)
    implementations: dict[str, tuple[str, AttentionPolicy | None]] = {
        "full": ("sdpa", FullAttention()),
        "hf_flex": ("flex_attention", FullAttention()),
        "floor": (NO_ATTENTION, None),
    }
    implementation, equals = implementations[entry.name]
    dressed = functools.partial(attention, model, implementation)
    return ModelRow(entry.name, row_hash(entry), model, dressed, reading, equals)


def under_policy(
    model: Any, policy: AttentionPolicy, *, kernel: str, evict: bool = True
) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context in which a model runs under a policy."""
    return functools.partial(apply_policy, model, policy, kernel=kernel, evict=evict)


def chunk_of(
    entry: Recipe | Baseline, benchmark: Benchmark, shape: ModelShape, length: int, device_type: str
) -> int | None:
    """Tokens of a prompt of ``length`` that a row reads at a time; None for one pass.

    With ``auto``, what is fastest: baselines with attention go over it in one pass, as they do by themselves.
    """
    asked = benchmark.prefill_chunk_size
    if asked != "auto":
        return asked
    if isinstance(entry, Recipe):
        return prefill_chunk(entry.policy, shape, length, device_type)
    return even_chunk(length, device_type) if entry.name == "floor" else None


def checked_kernel(entry: Recipe, benchmark: Benchmark, model: Any) -> str:
    """What a recipe's check is on record for: its kernel, and whether ``auto`` cuts the longest prompt."""
    kernel = planned_kernel(entry, benchmark, model)
    cut = benchmark.prefill_chunk_size == "auto" and _longest_chunk(entry, benchmark, model) is not None
    return f"{kernel}, in chunks" if cut else kernel


def row_hash(entry: Recipe | Baseline) -> str:
    """What identifies a row in the measurements: everything but the name of a recipe."""
    if isinstance(entry, Recipe):
        return entry.hash
    return hashlib.sha256(json.dumps(dataclasses.asdict(entry), sort_keys=True).encode()).hexdigest()


def planned_kernel(entry: Recipe, benchmark: Benchmark, model: Any) -> str:
    """The kernel that sparse layers get at the longest timed length, as a request; "auto" where it is not one."""
    asked, length, shape = benchmark.model.kernel, max(benchmark.lengths), model_shape(model)
    if asked != "auto" or _longest_chunk(entry, benchmark, model) is not None:
        return asked  # chunks go through several kernels, at any length the same
    job = Job(length, length, model.device.type)
    layers = bind(entry.policy, shape.num_layers, shape.num_heads).layers
    kernels = {choose_kernel(layer, job).kernel for layer in layers} - {Kernel.CAUSAL}
    return kernels.pop().value if len(kernels) == 1 else "auto"


def _longest_chunk(entry: Recipe, benchmark: Benchmark, model: Any) -> int | None:
    return chunk_of(entry, benchmark, model_shape(model), max(benchmark.lengths), model.device.type)

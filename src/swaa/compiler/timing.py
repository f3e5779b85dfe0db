"""The time model: how long a policy takes on a machine, next to full attention, from counted work alone.

A request is counted out in a few kinds of work (:class:`Work`: operations of matrix products, operations of each
attention kernel over the pairs that it really computes, bytes read by a decode step, passes through the model), and a
machine is how much of each kind it does in a second (:class:`Machine`). Seconds are the sum over the kinds, so a
machine can be fitted to measured times by linear least squares (:func:`fit`); nothing is fitted per policy.

One sample at a time. A prefill in chunks is one of layers that attend to blocks: see :mod:`swaa.compiler.chunking`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from swaa.compiler.cofactors import in_phase, possible
from swaa.compiler.cost import estimate_cost
from swaa.compiler.interval import UnknownOperation
from swaa.compiler.layout import TokenLayout
from swaa.compiler.plan import BLOCK_SIZES, Job, Kernel, choose_kernel
from swaa.compiler.refine import block_verdicts
from swaa.compiler.runs import hides_nothing
from swaa.compiler.shape import ModelShape
from swaa.errors import UserError, invalid, unknown
from swaa.policies import AttentionPolicy, LayerPolicy, bind


@dataclass(frozen=True)
class Work:
    """What is to be done, by kind.

    Attributes:
        linear_flops: operations of a prefill's matrix products, two for each weight and token, in one pass.
        chunked_linear_flops: those of a prefill in chunks, whose results stay in the processor's cache.
        causal_flops, flex_flops, blockwise_flops, dense_flops: operations of a prefill's attention by kernel, four for
            each pair and entry of a head, over all pairs of the blocks that the kernel computes.
        weight_bytes: weights read by decode steps.
        kv_bytes: keys and values read by decode steps.
        copied_kv_bytes: those in transformers' own cache, which copies all of them to add one token.
        passes: through all layers.
        policy_calls: of a layer's attention under a policy.
    """

    linear_flops: float = 0.0
    chunked_linear_flops: float = 0.0
    causal_flops: float = 0.0
    flex_flops: float = 0.0
    blockwise_flops: float = 0.0
    dense_flops: float = 0.0
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    copied_kv_bytes: float = 0.0
    passes: float = 0.0
    policy_calls: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in KINDS})


KINDS = tuple(field.name for field in fields(Work))
_CAUSAL_TILE = 128  # of SDPA's causal kernel, more or less: it computes half a tile in vain for each query


@dataclass(frozen=True)
class Machine:
    """How much of each kind of work is done in a second; attributes as of :class:`Work`.

    Attributes:
        name: what it is, and where its figures come from.
    """

    name: str
    linear_flops: float
    chunked_linear_flops: float
    causal_flops: float
    flex_flops: float
    blockwise_flops: float
    dense_flops: float
    weight_bytes: float
    kv_bytes: float
    copied_kv_bytes: float
    passes: float
    policy_calls: float

    def __post_init__(self) -> None:
        for kind in KINDS:
            rate = getattr(self, kind)
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
                raise invalid(f"machine.{kind}", accepted="a number > 0 (a second)", got=rate, mend="Measure it again.")

    def seconds(self, work: Work) -> float:
        """How long the work takes."""
        return float(sum(getattr(work, kind) / getattr(self, kind) for kind in KINDS))

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Machine:
        """The machine that plain values describe.

        Raises:
            UserError: a field is missing, unknown or no rate.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("field", f"machine.{key}", [f"machine.{name}" for name in known])
        for name in known:
            if name not in values:
                raise invalid(f"machine.{name}", accepted="a value", got=None, mend="Let swaa bench write it.")
        return cls(**values)

    @classmethod
    def read(cls, path: Path | str) -> Machine:
        """The machine that a benchmark was fitted to: the entry ``machine`` of its ``bench.json``.

        Raises:
            UserError: the file cannot be read, or holds no such machine.
        """
        try:
            machine = json.loads(Path(path).read_text(encoding="utf-8"))["machine"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            mend = "Give the bench.json that 'swaa bench' wrote."
            raise UserError(f"machine: {path} holds no benchmark's result ({error!r}). {mend}") from error
        if machine is None:
            mend = "Add 'full' and 'floor' to its baselines, and run it again."
            raise UserError(f"machine: the benchmark in {path} fits no machine, for want of baselines. {mend}")
        return cls.from_dict(machine)


@dataclass(frozen=True)
class Prediction:
    """Predicted seconds of a policy and of full attention on transformers' own kernel and cache.

    Attributes:
        prefill, full_prefill: reading the prompt, up to the first new token.
        step, full_step: one decode step, in the middle of the generation; 0 where there is none.
        request, full_request: prefill and all decode steps.
    """

    prefill: float
    step: float
    request: float
    full_prefill: float
    full_step: float
    full_request: float

    @property
    def prefill_ratio(self) -> float:
        """Time over full attention's."""
        return self.prefill / self.full_prefill

    @property
    def step_ratio(self) -> float | None:
        """Time over full attention's; None without a decode step."""
        return self.step / self.full_step if self.full_step else None

    @property
    def request_ratio(self) -> float:
        """Time over full attention's."""
        return self.request / self.full_request


def predict(
    policy: AttentionPolicy,
    shape: ModelShape,
    prompt_length: int,
    new_tokens: int,
    machine: Machine,
    *,
    device_type: str = "cpu",
    kernel: str = "auto",
    chunk: int | None = None,
) -> Prediction:
    """Predict a request's seconds under a policy and under full attention.

    The first new token comes with the prefill, each of the others by a decode step.

    Args:
        chunk: tokens of the prompt that are read at a time under the policy, as :func:`prefill_chunk` gives them; None
            reads it in one pass, as full attention does.

    Raises:
        UserError: as :func:`swaa.compiler.estimate_cost`.
    """
    options: dict[str, Any] = {"device_type": device_type, "kernel": kernel}
    prefill = machine.seconds(prefill_work(policy, shape, prompt_length, **options, chunk=chunk))
    full_prefill = machine.seconds(full_prefill_work(shape, prompt_length))
    steps = max(0, new_tokens - 1)
    step = machine.seconds(step_work(policy, shape, prompt_length, steps)) if steps else 0.0
    full_step = machine.seconds(full_step_work(shape, prompt_length, steps)) if steps else 0.0
    return Prediction(prefill, step, prefill + steps * step, full_prefill, full_step, full_prefill + steps * full_step)


def floor_work(shape: ModelShape, prompt_length: int, chunk: int | None = None) -> Work:
    """Everything of a prefill but attention: the weights of the layers for every token, the output head for one."""
    passes = 1 if chunk is None else -(-prompt_length // chunk)
    # in each pass the head computes the logits of its last token, for nothing in all but one
    weights = shape.num_layers * shape.layer_weights * prompt_length + shape.head_weights * passes
    kind = "linear_flops" if chunk is None else "chunked_linear_flops"
    return Work(**{kind: 2.0 * weights}, passes=passes)


def full_prefill_work(shape: ModelShape, prompt_length: int) -> Work:
    """A prefill of transformers' own, full attention on the causal kernel."""
    flops = 4.0 * shape.head_dim * _causal_pairs(shape.num_heads, prompt_length)
    return floor_work(shape, prompt_length) + Work(causal_flops=flops * shape.num_layers)


def prefill_work(
    policy: AttentionPolicy,
    shape: ModelShape,
    prompt_length: int,
    *,
    device_type: str = "cpu",
    kernel: str = "auto",
    chunk: int | None = None,
) -> Work:
    """A prefill under a policy, each layer on the kernel that the plan gives it."""
    work = floor_work(shape, prompt_length, chunk)
    work += Work(policy_calls=work.passes * shape.num_layers)
    layout = TokenLayout.contiguous(prompt_length, prompt_lengths=prompt_length)
    for layer, indices in bind(policy, shape.num_layers, shape.num_heads).distinct.items():
        job = Job(prompt_length, prompt_length, device_type, hides_nothing=hides_nothing(layer, layout))
        reading = in_phase(layer, "prefill") if layer.by_content else layer
        chosen = choose_kernel(reading, job, kernel).kernel
        if chosen is Kernel.CAUSAL:
            pairs = _causal_pairs(shape.num_heads, prompt_length)
        elif chosen is Kernel.DENSE:
            pairs = shape.num_heads * prompt_length**2
        else:
            pairs = _block_pairs(reading, prompt_length, block_size(chosen, device_type))
        work += Work(**{f"{chosen.value}_flops": 4.0 * shape.head_dim * pairs * len(indices)})
    return work


def floor_step_work(shape: ModelShape) -> Work:
    """Everything of a decode step but attention: every weight is read once."""
    weights = shape.num_layers * shape.layer_weights + shape.head_weights
    return Work(weight_bytes=float(weights * shape.bytes_per_value), passes=1)


def full_step_work(shape: ModelShape, prompt_length: int, steps: int) -> Work:
    """The mean decode step of transformers' own, which copies its cache to add a token."""
    keys = shape.num_layers * shape.num_kv_heads * (prompt_length + (steps + 1) / 2)
    return floor_step_work(shape) + Work(copied_kv_bytes=_kv_bytes(shape, keys))


def step_work(policy: AttentionPolicy, shape: ModelShape, prompt_length: int, steps: int) -> Work:
    """The mean decode step under a policy: layers read the keys that are kept, and where all are, the new ones too."""
    cost = estimate_cost(policy, shape, prompt_length)
    grown = shape.num_kv_heads * (steps + 1) / 2
    keys = sum(
        layer.kept_keys + (grown if layer.kept_keys == cost.full.kept_keys else shape.num_kv_heads)
        for layer in cost.layers
    )
    return floor_step_work(shape) + Work(kv_bytes=_kv_bytes(shape, keys), policy_calls=shape.num_layers)


def fit(start: Machine, observations: Sequence[tuple[Work, float]], name: str) -> Machine:
    """The machine whose predictions come nearest to measured seconds, by relative least squares.

    Kinds of work that nothing observed keep the figures of ``start``, as do those that would come out without a time;
    of matrix products in one pass and in chunks, one that nothing observed is as much faster or slower as the other.

    Args:
        start: where to begin.
        observations: work and its measured seconds.
        name: of the result.
    """
    rates = {kind: float(getattr(start, kind)) for kind in KINDS}
    free = [kind for kind in KINDS if any(getattr(work, kind) for work, _ in observations)]
    while free:
        fixed = [kind for kind in KINDS if kind not in free]
        rows = []
        for work, seconds in observations:
            known = sum(getattr(work, kind) / rates[kind] for kind in fixed)
            rows.append([getattr(work, kind) / rates[kind] / seconds for kind in free] + [1 - known / seconds])
        table = torch.tensor(rows, dtype=torch.float64)
        # a little weight on what was believed before keeps what the observations cannot tell apart near it
        believed = 0.003 * torch.eye(len(free), dtype=torch.float64)
        left = torch.cat([table[:, :-1], believed])
        right = torch.cat([table[:, -1], believed.sum(1)])
        slower = torch.linalg.lstsq(left, right[:, None]).solution[:, 0].tolist()
        worst = min(range(len(free)), key=lambda index: slower[index])
        if slower[worst] > 0.02:
            rates.update({kind: rates[kind] / factor for kind, factor in zip(free, slower, strict=True)})
            break
        free.pop(worst)
    for kind, like in (("linear_flops", "chunked_linear_flops"), ("chunked_linear_flops", "linear_flops")):
        if not any(getattr(work, kind) for work, _ in observations):
            rates[kind] *= rates[like] / getattr(start, like)
    return Machine(name, **rates)


def default_machine(device_type: str, bytes_per_value: int) -> Machine:
    """The profile that explanations use where none is given: of a GPU, or of a CPU by the size of its numbers."""
    if device_type != "cpu":
        return GPU
    return CPU_FLOAT32 if bytes_per_value >= 4 else CPU_BFLOAT16


# Provisional: least times on one thread of a busy machine, 6 layers of SmolLM2-135M's shape, 8,192 tokens. Products in
# chunks are as much faster than in one pass as on two threads: 1.2 to 1.5 times in bfloat16, 1.2 to 1.4 in float32.
# `swaa bench experiments/bench-smollm2.yaml` on a quiet machine writes the figures to put here (bench.json, "machine").
CPU_BFLOAT16 = Machine(
    name="x86-64 CPU (AVX-512, AMX), bfloat16, one thread, 6 layers, provisional: see docs/performance.md",
    linear_flops=4.6e11,
    chunked_linear_flops=6.0e11,
    causal_flops=2.6e11,
    flex_flops=1.2e11,
    blockwise_flops=1.4e11,
    dense_flops=2.6e11,
    weight_bytes=1.5e10,
    kv_bytes=6.5e9,
    copied_kv_bytes=3.5e9,
    passes=165.0,
    policy_calls=4_000.0,
)
CPU_FLOAT32 = Machine(
    name="x86-64 CPU (AVX-512), float32, one thread, 6 layers, provisional: see docs/performance.md",
    linear_flops=9.4e10,
    chunked_linear_flops=1.1e11,
    causal_flops=1.1e11,
    flex_flops=1.0e11,
    blockwise_flops=1.5e11,
    dense_flops=1.1e11,
    weight_bytes=1.65e10,
    kv_bytes=5.9e9,
    copied_kv_bytes=3.4e9,
    passes=190.0,
    policy_calls=4_000.0,
)
GPU = Machine(
    name="data-centre GPU (H100 class), bfloat16: from its data sheet at common efficiencies, not measured yet",
    linear_flops=5e14,
    chunked_linear_flops=5e14,
    causal_flops=4e14,
    flex_flops=2.5e14,
    blockwise_flops=5e13,
    dense_flops=1e14,
    weight_bytes=2.4e12,
    kv_bytes=1.2e12,
    copied_kv_bytes=4e11,
    passes=60.0,
    policy_calls=10_000.0,
)


def _kv_bytes(shape: ModelShape, keys: float) -> float:
    return 2.0 * keys * shape.head_dim * shape.bytes_per_value


def block_size(kernel: Kernel, device_type: str) -> tuple[int, int]:
    """Tokens of a block, *(queries, keys)*, of a kernel that computes blocks."""
    on_cpu = kernel is Kernel.FLEX and device_type == "cpu"
    return BLOCK_SIZES["flex on CPU" if on_cpu else kernel.value]


def _causal_pairs(num_heads: int, length: int) -> float:
    """Pairs that the causal kernel computes: half of all, and half a tile more for each query."""
    return num_heads * (length * (length + 1) / 2 + length * _CAUSAL_TILE / 2)


@lru_cache(maxsize=512)
def _block_pairs(layer: LayerPolicy, length: int, size: tuple[int, int]) -> float:
    """Pairs in the blocks that hold a visible one, over all heads."""
    layout = TokenLayout.contiguous(length, prompt_lengths=length)
    blocks = 0
    for heads, head in possible(layer).groups:
        try:
            blocks += len(heads) * int(block_verdicts(head, layout, size).visible_BMN.sum())
        except UnknownOperation:  # every causal block is looked at
            return _causal_pairs(layer.num_heads, length)
    return float(blocks * size[0] * size[1])

"""Which kernel a layer's attention runs on: decided from facts, as a value that can be tested and shown."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from enum import Enum

from swaa.errors import UserError, invalid
from swaa.policies.bound import LayerPolicy

# Measured on 2 cores of a Xeon with AMX, torch 2.13.0+cpu, 9 query and 3 key-value heads of size 64, bf16, ms a layer.
# Windows of an eighth of the length on one thread, dense / blockwise: 256 tokens 0.84 / 0.71, 512 tokens 2.7 / 1.4,
# 1,024 tokens 10.3 / 3.7, 2,048 tokens 45 / 10; blockwise takes 3 to 9 ms more to get ready, once for all layers.
# Window 256 + sink 10 at 8,192 tokens (tests/benchmarks/test_attention_op.py): SDPA causal 145, blockwise 22;
# FlexAttention 47 with blocks of 128 and 36 with blocks of 64, after 4 to 7 s of compiling: on CPU it never pays.
DENSE_ON_CPU_UP_TO = 256 * 256
"""Query-key pairs up to which a dense mask is fastest for a sparse policy on a CPU, or where Flex cannot do the job."""

BLOCK_SIZES = {"flex": (128, 128), "flex on CPU": (64, 64), "blockwise": (128, 32)}
"""Tokens of a block, *(queries, keys)*."""


class Kernel(Enum):
    """The ways to compute attention under a mask; all give the same result."""

    CAUSAL = "causal"
    """SDPA's fused causal kernel, without a mask; once for each run of tokens."""
    FLEX = "flex"
    """FlexAttention with a block mask, compiled."""
    BLOCKWISE = "blockwise"
    """SDPA on the visible blocks of a block mask: nothing to compile, and a backward pass on any device."""
    DENSE = "dense"
    """SDPA with a dense mask; plain tensor operations where a score modification is needed."""


KERNEL_REQUESTS = ("auto", "flex", "blockwise", "dense")
"""What a user may ask for."""


@dataclass(frozen=True)
class Job:
    """The facts of one attention call that the choice depends on.

    Attributes:
        is_square: queries and keys are the same tokens, without padding or documents.
        in_runs: padding, packing or a cache cut full attention into runs of tokens, each of which is plainly causal.
        hides_nothing: the policy comes to full attention at these lengths, as a window longer than the sequence does.
        has_sink_logits: a logit for each head takes part in the softmax (the model's, or of a score modification).
        trains_sink_logits: and wants a gradient.
        has_softcap: the model caps its scores.
        has_scores: score modifications change them.
    """

    query_length: int
    key_length: int
    device_type: str = "cpu"
    is_square: bool = True
    in_runs: bool = False
    hides_nothing: bool = False
    needs_grad: bool = False
    dropout: float = 0.0
    has_sink_logits: bool = False
    trains_sink_logits: bool = False
    has_softcap: bool = False
    has_scores: bool = False
    value_dim_differs: bool = False

    @property
    def is_modified(self) -> bool:
        """Are scores changed, so that no fused kernel of SDPA does it?"""
        return self.has_sink_logits or self.has_softcap or self.has_scores


@dataclass(frozen=True)
class KernelPlan:
    """A kernel and why it was chosen."""

    kernel: Kernel
    reason: str
    is_fallback: bool = False
    """Is it a slower way, taken because FlexAttention cannot do the job?"""

    def __str__(self) -> str:
        return f"{self.kernel.value} ({self.reason})"


def choose_kernel(layer: LayerPolicy, job: Job, requested: str = "auto") -> KernelPlan:
    """The kernel for one layer.

    Raises:
        UserError: ``requested`` is no kernel, or is ``"flex"`` where FlexAttention cannot do the job.
    """
    check_kernel_request(requested)
    if requested == "dense":
        return KernelPlan(Kernel.DENSE, "asked for")
    is_causal = (layer.is_full or job.hides_nothing) and not job.is_modified
    full = "full attention" if layer.is_full else "full attention at this length"
    if is_causal and job.is_square:
        return KernelPlan(Kernel.CAUSAL, f"{full} without padding")
    if job.query_length == 1:
        return KernelPlan(Kernel.DENSE, "one query")
    obstacle = _flex_obstacle(job)
    on_cpu = job.device_type == "cpu"
    if requested == "flex":
        if obstacle:
            raise UserError(f"kernel: 'flex' was asked for, but {obstacle}. Use kernel='auto', 'blockwise' or 'dense'.")
        return KernelPlan(Kernel.FLEX, "asked for")
    if requested == "blockwise":
        return KernelPlan(Kernel.BLOCKWISE, "asked for")
    if is_causal and job.in_runs:
        return KernelPlan(Kernel.CAUSAL, f"{full}, in runs of tokens")
    if layer.by_content and on_cpu:  # hardly two blocks have the same mask, which is what blockwise lives by
        return KernelPlan(Kernel.DENSE, "chosen by content, each query for itself")
    shape = "sparse mask" if not layer.is_full else "padded or offset" if not job.is_square else "changed scores"
    if obstacle is None and job.has_sink_logits and not on_cpu:
        obstacle = "sink logits run on it only where it is asked for: proven on CPU alone"
    if obstacle is None and not on_cpu:
        return KernelPlan(Kernel.FLEX, shape)
    is_fallback = obstacle is not None and not on_cpu
    reason = f"{shape}; {obstacle}" if is_fallback else shape
    if job.query_length * job.key_length <= DENSE_ON_CPU_UP_TO:
        return KernelPlan(Kernel.DENSE, f"{reason}; short", is_fallback)
    return KernelPlan(Kernel.BLOCKWISE, reason if is_fallback else f"{reason}; faster than flex on CPU", is_fallback)


def check_kernel_request(requested: str) -> None:
    """Refuse anything but a known request."""
    if requested not in KERNEL_REQUESTS:
        accepted = " or ".join(repr(name) for name in KERNEL_REQUESTS)
        raise invalid("kernel", accepted=accepted, got=requested, mend="Leave it out for 'auto'.")


def _flex_obstacle(job: Job) -> str | None:
    """Why FlexAttention cannot do this job, or None."""
    if job.dropout:
        return "FlexAttention has no attention dropout"
    if job.trains_sink_logits:
        return "sink logits that are trained need plain tensor operations"
    if job.device_type == "cpu":
        if job.needs_grad:
            return "FlexAttention has no backward pass on CPU"
        if job.value_dim_differs:
            return "keys and values differ in size"
        if not has_cpp_compiler():
            return "there is no C++ compiler"
    return None


@functools.cache
def has_cpp_compiler() -> bool:
    """Can torch.compile build CPU kernels on this machine?"""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return any(name and shutil.which(name) for name in candidates)

"""Which kernel a layer's attention runs on: decided from facts, as a value that can be tested and shown."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from enum import Enum

from swaa.errors import UserError, invalid
from swaa.policies.bound import LayerPolicy

DENSE_ON_CPU_UP_TO = 2048 * 2048
"""Query-key pairs up to which, on a CPU, a dense mask beats the seconds that FlexAttention takes to compile."""


class Kernel(Enum):
    """The ways to compute attention under a mask; all give the same result."""

    CAUSAL = "causal"
    """SDPA's fused causal kernel, without a mask."""
    FLEX = "flex"
    """FlexAttention with a block mask, compiled."""
    DENSE = "dense"
    """SDPA with a dense mask; plain tensor operations where a score modification is needed."""


KERNEL_REQUESTS = ("auto", "flex", "dense")
"""What a user may ask for."""


@dataclass(frozen=True)
class Job:
    """The facts of one attention call that the choice depends on."""

    query_length: int
    key_length: int
    device_type: str = "cpu"
    is_square: bool = True
    needs_grad: bool = False
    dropout: float = 0.0
    has_sink_logits: bool = False
    has_softcap: bool = False
    value_dim_differs: bool = False


@dataclass(frozen=True)
class KernelPlan:
    """A kernel and why it was chosen."""

    kernel: Kernel
    reason: str
    is_fallback: bool = False
    """Would FlexAttention have been the choice, could it do the job?"""

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
    unmodified = not (job.has_sink_logits or job.has_softcap)
    if layer.is_full and job.is_square and unmodified:
        return KernelPlan(Kernel.CAUSAL, "full attention without padding")
    if job.query_length == 1:
        return KernelPlan(Kernel.DENSE, "one query")
    obstacle = _flex_obstacle(job)
    if requested == "flex":
        if obstacle:
            raise UserError(f"kernel: 'flex' was asked for, but {obstacle}. Use kernel='auto' or 'dense'.")
        return KernelPlan(Kernel.FLEX, "asked for")
    if obstacle:
        return KernelPlan(Kernel.DENSE, obstacle, is_fallback=True)
    if job.device_type == "cpu" and job.query_length * job.key_length <= DENSE_ON_CPU_UP_TO:
        return KernelPlan(Kernel.DENSE, "too short to repay compiling")
    return KernelPlan(Kernel.FLEX, "sparse mask" if not layer.is_full else "padded or offset")


def check_kernel_request(requested: str) -> None:
    """Refuse anything but a known request."""
    if requested not in KERNEL_REQUESTS:
        accepted = " or ".join(repr(name) for name in KERNEL_REQUESTS)
        raise invalid("kernel", accepted=accepted, got=requested, mend="Leave it out for 'auto'.")


def _flex_obstacle(job: Job) -> str | None:
    """Why FlexAttention cannot do this job, or None."""
    if job.dropout:
        return "FlexAttention has no attention dropout"
    if job.has_sink_logits:
        return "sink logits (s_aux) need the dense kernel"
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

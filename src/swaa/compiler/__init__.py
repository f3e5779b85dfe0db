"""The compiler: one predicate, read as a kernel, a block mask, a dense mask, a retention rule and a cost."""

from swaa.compiler.blocks import block_mask
from swaa.compiler.chunking import prefill_chunk
from swaa.compiler.cost import Cost, LayerCost, estimate_cost
from swaa.compiler.dense import dense_mask
from swaa.compiler.kernel import mask_mod
from swaa.compiler.layout import TokenLayout
from swaa.compiler.plan import Job, Kernel, KernelPlan, choose_kernel
from swaa.compiler.program import AttentionProgram
from swaa.compiler.reach import receptive_field
from swaa.compiler.refine import BlockVerdicts, block_verdicts, count_visible
from swaa.compiler.retention import live_keys
from swaa.compiler.shape import ModelShape

__all__ = [
    "AttentionProgram",
    "BlockVerdicts",
    "Cost",
    "Job",
    "Kernel",
    "KernelPlan",
    "LayerCost",
    "ModelShape",
    "TokenLayout",
    "block_mask",
    "block_verdicts",
    "choose_kernel",
    "count_visible",
    "dense_mask",
    "estimate_cost",
    "live_keys",
    "mask_mod",
    "prefill_chunk",
    "receptive_field",
]

"""The A-shape of MInference."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=((128, 1024), (2, 8)))
def AShape(num_sinks: int, window_size: int) -> AttentionPolicy:
    """Sinks and a window while prefilling, full attention while decoding: comes to
    ``(SinkTokens(num_sinks) | SlidingWindow(window_size)).in_phase('prefill')``.

    MInference is about the prompt alone, so the whole cache is kept. Scope it with ``on_heads`` for the heads whose
    best shape it is.

    Args:
        num_sinks: first tokens of the prompt, at least 0.
        window_size: recent tokens, the query's own included, at least 1.

    Raises:
        UserError: a value is out of its range.

    Source: Jiang et al., "MInference 1.0" (arXiv 2407.02490).
    """
    return sinks_and_window("AShape", num_sinks, window_size).in_phase("prefill")

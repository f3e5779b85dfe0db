"""The mask of LM-Infinite."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=((10, 4096), (2, 8)))
def LMInfinite(num_sinks: int, window_size: int) -> AttentionPolicy:
    """The Λ-shaped mask, in prefill and decode: comes to ``SinkTokens(num_sinks) | SlidingWindow(window_size)``.

    The mask alone. The method also puts a ceiling on distances, at the length that the model was trained on; that
    changes the positions which the model rotates by, not which keys are seen, and is no part of a policy.

    Args:
        num_sinks: starting tokens, at least 0 (the paper: 10 to 100).
        window_size: recent tokens, the query's own included, at least 1 (the paper: the training length).

    Raises:
        UserError: a value is out of its range.

    Source: Han et al., "LM-Infinite" (arXiv 2308.16137).
    """
    return sinks_and_window("LMInfinite", num_sinks, window_size)

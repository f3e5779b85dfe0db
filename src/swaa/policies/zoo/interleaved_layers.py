"""Windows on most layers, full attention on every n-th."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_int
from swaa.policies.registry import register_pattern
from swaa.policies.selector import every
from swaa.policies.zoo.full_attention import FullAttention
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=((1024,), (8, 2, 2)))
def InterleavedLayers(window_size: int, period: int = 6, num_sinks: int = 0) -> AttentionPolicy:
    """Full attention on every ``period``-th layer, a window on the others: comes to
    ``FullAttention().on_layers(every(period, period - 1),
    otherwise=SinkTokens(num_sinks) | SlidingWindow(window_size))``.

    The layout of many models that are trained with windows: of each period the last layer is full, as in Gemma 2 and
    GPT-OSS (2 layers) and Gemma 3 (6 layers).

    Args:
        window_size: tokens, the query's own included, at least 1.
        period: layers of which one is full, at least 2.
        num_sinks: first tokens that all see, at least 0.

    Raises:
        UserError: a value is out of its range.

    Source: Gemma Team, "Gemma 3 Technical Report" (arXiv 2503.19786); as an adaptation, SWAA (arXiv 2512.10411).
    """
    check_int("InterleavedLayers.period", period, at_least=2, unit="layers")
    window = sinks_and_window("InterleavedLayers", num_sinks, window_size)
    return FullAttention().on_layers(every(period, start=period - 1), otherwise=window)

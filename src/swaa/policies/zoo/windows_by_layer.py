"""A window of its own for each layer."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_ints
from swaa.policies.compositor import rule, stack
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=(((64, 32, 32, 8), 2), ((8,),)))
def WindowsByLayer(window_sizes: tuple[int, ...], num_sinks: int = 0) -> AttentionPolicy:
    """A window of its own size on each layer: comes to
    ``SinkTokens(num_sinks) | SlidingWindow(window_sizes[i]) on each layer i``.

    Args:
        window_sizes: tokens of the window of each layer from the first on, at least 1; further layers have the last.
        num_sinks: first tokens that all see, at least 0.

    Raises:
        UserError: a value is out of its range.

    Source: budgets by layer as in Cai et al., "PyramidKV" (arXiv 2406.02069).
    """
    check_ints("WindowsByLayer.window_sizes", window_sizes, at_least=1, ascending=False)
    windows = [sinks_and_window("WindowsByLayer", num_sinks, size) for size in window_sizes]
    return stack(*(rule(window, layers=layer) for layer, window in enumerate(windows[:-1])), rule(windows[-1]))

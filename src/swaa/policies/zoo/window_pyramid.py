"""Windows that shrink, or grow, from the first layer to the last."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_int
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.windows_by_layer import WindowsByLayer


@register_pattern(examples=((64, 8, 4), (8, 2, 2, 1)))
def WindowPyramid(first_window: int, last_window: int, num_layers: int, num_sinks: int = 0) -> AttentionPolicy:
    """Windows in equal steps (rounded down) from the first layer's to the last one's: comes to
    ``WindowsByLayer((first_window, …, last_window), num_sinks)``.

    The schedule of PyramidKV for windows; which keys it keeps inside its budgets depends on attention scores, and is no
    part of this.

    Args:
        first_window: tokens of the first layer's window, the query's own included, at least 1.
        last_window: of the last layer's, at least 1.
        num_layers: layers of the model, at least 2.
        num_sinks: first tokens that all see, at least 0.

    Raises:
        UserError: a value is out of its range.

    Source: Cai et al., "PyramidKV" (arXiv 2406.02069).
    """
    check_int("WindowPyramid.first_window", first_window, at_least=1)
    check_int("WindowPyramid.last_window", last_window, at_least=1)
    last = check_int("WindowPyramid.num_layers", num_layers, at_least=2, unit="layers") - 1
    check_int("WindowPyramid.num_sinks", num_sinks, at_least=0)
    sizes = [first_window + (last_window - first_window) * layer // last for layer in range(num_layers)]
    return WindowsByLayer(tuple(sizes), num_sinks)

"""Lazy layers, as LightTransfer has them."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.registry import register_pattern
from swaa.policies.selector import select
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=(((0, 2), 4, 1020), ("::2", 2, 8)))
def LazyLayers(lazy_layers: object, num_sinks: int = 4, window_size: int = 1020) -> AttentionPolicy:
    """Sinks and a window on the layers that attend to little else, full attention on the others: comes to
    ``(SinkTokens(num_sinks) | SlidingWindow(window_size)).on_layers(lazy_layers)``.

    ``swaa.policies.importers.light_transfer`` reads the layers from a JSON file. Where the prompt is read with full
    attention and only the cache is cut afterwards, add ``.in_phase("decode")``.

    Args:
        lazy_layers: numbered from 0 and chosen as ``on_layers`` does it: an int, a list, ``"::2"``.
        num_sinks: first tokens, at least 0 (the paper: 4).
        window_size: recent tokens, the query's own included, at least 1 (the paper: 1020).

    Raises:
        UserError: a value is out of its range.

    Source: Zhang et al., "LightTransfer" (arXiv 2410.13846).
    """
    where = select(lazy_layers, field="LazyLayers.lazy_layers")
    return sinks_and_window("LazyLayers", num_sinks, window_size).on_layers(where)

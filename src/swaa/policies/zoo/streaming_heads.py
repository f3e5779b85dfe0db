"""Streaming heads, as DuoAttention has them."""

from __future__ import annotations

from swaa.errors import invalid
from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_ints
from swaa.policies.compositor import rule, stack
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.full_attention import FullAttention
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=((((0, 1), (), (3,)), 16, 64), (((0, 1, 2, 3),), 2, 8)))
def StreamingHeads(streaming_heads: tuple[tuple[int, ...], ...], num_sinks: int, window_size: int) -> AttentionPolicy:
    """Sinks and a window on some heads of each layer, full attention on the others, the retrieval heads: comes to
    ``(SinkTokens(num_sinks) | SlidingWindow(window_size)).on_heads(streaming_heads[i]).on_layers(i) for each layer i``.

    Query heads that share a key-value head should be chosen together, or the cache of that head drops nothing.
    ``swaa.policies.importers.duo_attention`` reads the heads from DuoAttention's files.

    Args:
        streaming_heads: for each layer from the first on, the numbers of its streaming query heads, ascending; layers
            that are not listed have none.
        num_sinks: first tokens, at least 0 (the paper: 64 to 128).
        window_size: recent tokens, the query's own included, at least 1 (the paper: 256).

    Raises:
        UserError: a value is out of its range.

    Source: Xiao et al., "DuoAttention" (arXiv 2410.10819).
    """
    if not isinstance(streaming_heads, tuple):
        mend = "Write the heads of each layer: ((0, 1), (), (3,))."
        accepted = "a tuple with one tuple of heads for each layer"
        raise invalid("StreamingHeads.streaming_heads", accepted=accepted, got=streaming_heads, mend=mend)
    streaming = sinks_and_window("StreamingHeads", num_sinks, window_size)
    rules = []
    for layer, heads in enumerate(streaming_heads):
        check_ints(f"StreamingHeads.streaming_heads[{layer}]", heads, at_least=0, unit="heads", empty=True)
        if heads:
            rules.append(rule(streaming.on_heads(heads), layers=layer))
    return stack(*rules, rule(FullAttention()))

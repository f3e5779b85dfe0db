"""StreamingLLM: attention sinks and a recent window."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=((4, 256), (1, 8), (4, 1020)))
def StreamingLLM(num_sinks: int, window_size: int) -> AttentionPolicy:
    """The first tokens and the most recent ones, in prefill and decode: comes to
    ``SinkTokens(num_sinks) | SlidingWindow(window_size)``.

    The cache holds at most ``num_sinks + window_size`` tokens, however long the text is. The paper also counts rotary
    positions within that cache. That is no choice of keys, so it stands beside the policy, as a score modification:
    :class:`~swaa.CachePositions` with the same two numbers.

    Args:
        num_sinks: first tokens kept, at least 0 (the paper: 4).
        window_size: recent tokens, the query's own included, at least 1.

    Raises:
        UserError: a value is out of its range.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453).
    """
    return sinks_and_window("StreamingLLM", num_sinks, window_size)

"""StreamingLLM: attention sinks and a recent window."""

from __future__ import annotations

from swaa.errors import UserError, unknown
from swaa.policies.base import AttentionPolicy
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=((4, 256), (1, 8), (4, 1020)))
def StreamingLLM(num_sinks: int, window_size: int, positions: str = "text") -> AttentionPolicy:
    """The first tokens and the most recent ones, in prefill and decode: comes to
    ``SinkTokens(num_sinks) | SlidingWindow(window_size)``.

    The cache holds at most ``num_sinks + window_size`` tokens, however long the text is. The paper also counts rotary
    positions within that cache. That is no choice of keys, so it stands beside the policy, as a score modification:
    :class:`~swaa.CachePositions` with the same two numbers.

    Args:
        num_sinks: first tokens kept, at least 0 (the paper: 4).
        window_size: recent tokens, the query's own included, at least 1.
        positions: ``"text"``; ``"cache"`` is an error that says where the paper's positions are asked for.

    Raises:
        UserError: a value is out of its range, or ``positions`` is not ``"text"``.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453).
    """
    if positions == "cache":
        raise UserError(
            f"StreamingLLM.positions: 'cache' is no part of a policy, which chooses keys. Write it beside the policy: "
            f"scores: CachePositions({num_sinks}, {window_size})."
        )
    if positions != "text":
        raise unknown("value of StreamingLLM.positions", positions, ("text", "cache"))
    return sinks_and_window("StreamingLLM", num_sinks, window_size)

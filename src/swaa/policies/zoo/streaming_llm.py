"""StreamingLLM: attention sinks and a recent window."""

from __future__ import annotations

from swaa.errors import UserError, unknown
from swaa.policies.base import AttentionPolicy
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=((4, 256), (1, 8), (4, 1020, "text")))
def StreamingLLM(num_sinks: int, window_size: int, positions: str = "text") -> AttentionPolicy:
    """The first tokens and the most recent ones, in prefill and decode: comes to
    ``SinkTokens(num_sinks) | SlidingWindow(window_size)``.

    The cache holds at most ``num_sinks + window_size`` tokens, however long the text is.

    Args:
        num_sinks: first tokens kept, at least 0 (the paper: 4).
        window_size: recent tokens, the query's own included, at least 1.
        positions: what rotary positions count: ``"text"``, the tokens of the text. The paper's ``"cache"``, the slots
            of the cache, is refused.

    Raises:
        UserError: a value is out of its range, or ``positions`` is not ``"text"``.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453).
    """
    if positions == "cache":
        raise UserError(
            "StreamingLLM.positions: 'cache' is not available: a policy chooses keys, and the model rotates them by "
            "their positions in the text. Leave it out. The keys that are seen are the same."
        )
    if positions != "text":
        raise unknown("value of StreamingLLM.positions", positions, ("text", "cache"))
    return sinks_and_window("StreamingLLM", num_sinks, window_size)

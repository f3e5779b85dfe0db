"""What many patterns are made of: the first tokens and a recent window."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_int
from swaa.policies.zoo.sink_tokens import SinkTokens
from swaa.policies.zoo.sliding_window import SlidingWindow


def sinks_and_window(owner: str, num_sinks: int, window_size: int) -> AttentionPolicy:
    """``SinkTokens(num_sinks) | SlidingWindow(window_size)``; without sinks, the window alone.

    Args:
        owner: the pattern that takes the numbers, for messages.

    Raises:
        UserError: ``num_sinks`` is not an int >= 0, or ``window_size`` not one >= 1.
    """
    check_int(f"{owner}.num_sinks", num_sinks, at_least=0)
    window = SlidingWindow(check_int(f"{owner}.window_size", window_size, at_least=1))
    return SinkTokens(num_sinks) | window if num_sinks else window

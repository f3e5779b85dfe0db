"""A window for the prompt and one for the answer."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_int
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.sinks_and_window import sinks_and_window


@register_pattern(examples=((128, 1024, 4), (4, 12), (12, 4)))
def WindowsByPhase(prefill_window: int, decode_window: int, num_sinks: int = 0) -> AttentionPolicy:
    """One window while prefilling and another while decoding: comes to
    ``(SinkTokens(num_sinks) | SlidingWindow(prefill_window)).in_phase('prefill',
    otherwise=SinkTokens(num_sinks) | SlidingWindow(decode_window))``.

    With full attention while decoding it is the part that SWAA calls FA decode, best together with sinks and full
    layers; that is ``SlidingWindow(prefill_window).in_phase("prefill")``.

    Args:
        prefill_window: tokens that a query of the prompt sees, its own included, at least 1.
        decode_window: tokens that a query of the answer sees, its own included, at least 1.
        num_sinks: first tokens that all see, at least 0.

    Raises:
        UserError: a value is out of its range.

    Source: phases as in SWAA (arXiv 2512.10411).
    """
    check_int("WindowsByPhase.prefill_window", prefill_window, at_least=1)
    check_int("WindowsByPhase.decode_window", decode_window, at_least=1)
    decode = sinks_and_window("WindowsByPhase", num_sinks, decode_window)
    return sinks_and_window("WindowsByPhase", num_sinks, prefill_window).in_phase("prefill", otherwise=decode)

"""The causal part of Longformer."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_int, check_ints
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.dilated_window import DilatedWindow
from swaa.policies.zoo.global_tokens import GlobalTokens
from swaa.policies.zoo.sliding_window import SlidingWindow


@register_pattern(examples=((512, (0,)), (8, (0, 12)), (6, (), 3)))
def Longformer(window_size: int, global_positions: tuple[int, ...] = (0,), dilation: int = 1) -> AttentionPolicy:
    """A window, with gaps if wished, and global tokens: comes to
    ``DilatedWindow(window_size, dilation) | GlobalTokens(global_positions)``.

    Causal, as all policies: the half of the paper's window that looks ahead is not there. The paper dilates some heads
    of the upper layers only; scope it for that.

    Args:
        window_size: tokens of the window, the query's own included, at least 1.
        global_positions: of tokens that see all and are seen by all, ascending, at least 0; may be empty.
        dilation: distance between neighbouring tokens of the window, at least 1.

    Raises:
        UserError: a value is out of its range.

    Source: Beltagy et al., "Longformer" (arXiv 2004.05150).
    """
    check_int("Longformer.window_size", window_size, at_least=1)
    check_int("Longformer.dilation", dilation, at_least=1)
    check_ints("Longformer.global_positions", global_positions, at_least=0, empty=True)
    window = SlidingWindow(window_size) if dilation == 1 else DilatedWindow(window_size, dilation)
    return window | GlobalTokens(global_positions) if global_positions else window

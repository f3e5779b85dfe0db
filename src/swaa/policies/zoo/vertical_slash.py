"""The vertical-slash pattern of MInference, with given lines."""

from __future__ import annotations

from swaa.policies.base import AttentionPolicy
from swaa.policies.checks import check_ints
from swaa.policies.registry import register_pattern
from swaa.policies.zoo.slash_lines import SlashLines
from swaa.policies.zoo.vertical_lines import VerticalLines


@register_pattern(examples=(((0, 1, 9), (0, 1, 2, 16)), ((0,), (0,))))
def VerticalSlash(positions: tuple[int, ...], distances: tuple[int, ...]) -> AttentionPolicy:
    """Chosen tokens and chosen distances while prefilling, full attention while decoding: comes to
    ``(VerticalLines(positions) | SlashLines(distances)).in_phase('prefill')``.

    MInference finds the lines anew for each prompt and head; here they are given.

    Args:
        positions: of the tokens that all see, ascending, at least 0.
        distances: of the tokens that a query sees, ascending; 0 is its own.

    Raises:
        UserError: a value is no tuple of ascending ints >= 0.

    Source: Jiang et al., "MInference 1.0" (arXiv 2407.02490).
    """
    check_ints("VerticalSlash.positions", positions, at_least=0)
    check_ints("VerticalSlash.distances", distances, at_least=0)
    return (VerticalLines(positions) | SlashLines(distances)).in_phase("prefill")

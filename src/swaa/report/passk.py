"""pass@k: the share of examples of which at least one of k answers is right (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

from collections.abc import Sequence

from swaa.report.stats import Estimate, bootstrap, wilson


def pass_at_k(answers: int, right: int, k: int) -> float:
    """The chance that k of an example's answers, drawn without replacement, hold a right one.

    It is 1 - C(answers - right, k) / C(answers, k): what k fresh answers would bring, estimated without bias.

    >>> round(pass_at_k(answers=4, right=1, k=2), 3)
    0.5

    Raises:
        ValueError: not 1 <= k <= answers, or not 0 <= right <= answers.
    """
    if not 1 <= k <= answers or not 0 <= right <= answers:
        raise ValueError(f"pass@k: expected 1 <= k <= answers and 0 <= right <= answers, got {k}, {answers}, {right}")
    missed = 1.0
    for number in range(answers - right + 1, answers + 1):  # C(n - c, k) / C(n, k), without large numbers
        missed *= max(0.0, 1 - k / number)
    return 1 - missed


def mean_pass_at_k(answers: Sequence[Sequence[float]], k: int) -> Estimate | None:
    """pass@k over examples with its 95 % interval; None where no example has k answers.

    Args:
        answers: 1 (right) or 0 of each graded answer, one sequence an example. An example with fewer than k graded
            answers is left out, and the estimate's ``n`` counts the others.
    """
    chances = [pass_at_k(len(some), round(sum(some)), k) for some in answers if len(some) >= k]
    if not chances:
        return None
    if len({*chances}) == 1 and chances[0] in (0.0, 1.0):  # the bootstrap would claim certainty
        return wilson(round(sum(chances)), len(chances))
    return bootstrap(chances)


def usual_ks(generations: int) -> tuple[int, ...]:
    """The k that tables show for so many answers an example: 2, 4, 8, … and all."""
    powers = [2**power for power in range(1, generations.bit_length()) if 2**power < generations]
    return (*powers, generations) if generations > 1 else ()

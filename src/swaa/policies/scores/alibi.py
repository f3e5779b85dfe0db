"""Attention with linear biases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swaa.errors import UserError, invalid
from swaa.policies.scores.base import ScoreMod, is_number
from swaa.policies.scores.registry import register_score


@register_score
@dataclass(frozen=True, repr=False)
class ALiBi(ScoreMod):
    """Scores fall with the distance: ``score - slope[head] * (q - k)``.

    The slopes of ``n`` heads are ``2 ** (-8 / n), 2 ** (-16 / n), …`` for a power of two. Otherwise they are those of
    the next smaller power of two, and then every second one of twice as many heads, as the authors' code has it.

    Paper: Press, Smith and Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
    Extrapolation", arXiv 2108.12409.

    Attributes:
        slopes: one for each query head of the model; None for the paper's.
    """

    slopes: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.slopes is None:
            return
        slopes: Any = self.slopes
        if not isinstance(slopes, tuple | list) or not slopes or not all(map(is_number, slopes)):
            mend = "Leave it out for the paper's slopes."
            raise invalid("ALiBi.slopes", accepted="finite numbers, one for each query head", got=slopes, mend=mend)
        object.__setattr__(self, "slopes", tuple(map(float, slopes)))

    def modify(self, score: Any, q: Any, k: Any, head: Any) -> Any:
        assert self.slopes is not None, "for_heads() comes first"
        return score - self.slopes[head] * (q - k)

    def for_heads(self, num_heads: int) -> ALiBi:
        if self.slopes is None:
            return ALiBi(alibi_slopes(num_heads))
        if len(self.slopes) != num_heads:
            raise UserError(
                f"ALiBi.slopes: expected {num_heads} of them, one for each query head of this model, got "
                f"{len(self.slopes)}. Leave them out for the paper's slopes."
            )
        return self

    @classmethod
    def examples(cls) -> Sequence[ALiBi]:
        return (cls(),)


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """The paper's slopes for any number of heads."""
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-8 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
    return (*slopes, *between[: num_heads - power])

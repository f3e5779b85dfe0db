"""A window with gaps: it looks further back at the same cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.policies.base import Index, Predicate
from swaa.policies.registry import register_policy
from swaa.policies.zoo.sliding_window import SlidingWindow


@register_policy
@dataclass(frozen=True, repr=False)
class DilatedWindow(Predicate):
    """Each query sees ``window_size`` tokens, itself and then every ``dilation``-th before it: visible iff
    ``q - k <= (window_size - 1) * dilation and (q - k) % dilation == 0``.

    Args:
        window_size: visible tokens, the query's own included, at least 1.
        dilation: distance between neighbouring visible tokens, in tokens, at least 1; 1 is a sliding window.

    Raises:
        UserError: a value is not an int >= 1.

    Source: Beltagy et al., "Longformer" (arXiv 2004.05150).
    """

    window_size: int
    dilation: int = 2

    def __post_init__(self) -> None:
        self.require_int("window_size", at_least=1)
        self.require_int("dilation", at_least=1)

    def visible(self, q: Index, k: Index) -> Index:
        # bounded by the last visible distance, not by the one behind it: so no key is kept in vain
        return (q - k <= (self.window_size - 1) * self.dilation) & ((q - k) % self.dilation == 0)

    def implies(self, other: Predicate) -> bool:
        reach = (self.window_size - 1) * self.dilation
        if isinstance(other, DilatedWindow):
            return self.dilation % other.dilation == 0 and reach <= (other.window_size - 1) * other.dilation
        return isinstance(other, SlidingWindow) and reach < other.window_size

    @classmethod
    def examples(cls) -> Sequence[DilatedWindow]:
        return (cls(8, 3), cls(1), cls(6, 1), cls(100))

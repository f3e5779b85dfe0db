"""A policy of one's own: a window that looks back twice as far by leaving out every second token."""

from dataclasses import dataclass

import swaa


@swaa.register_policy
@dataclass(frozen=True, repr=False)
class DilatedWindow(swaa.Predicate):
    """Visible iff ``q - k`` is a multiple of ``dilation`` below ``window_size * dilation`` (arXiv 2004.05150)."""

    window_size: int
    dilation: int = 2

    def __post_init__(self):
        self.require_int("window_size", at_least=1)
        self.require_int("dilation", at_least=1)

    def visible(self, q, k):
        return (q - k < self.window_size * self.dilation) & ((q - k) % self.dilation == 0)

    @classmethod
    def examples(cls):
        return cls(1), cls(8), cls(100, dilation=3)

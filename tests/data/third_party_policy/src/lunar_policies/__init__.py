"""A policy that does not come with swaa."""

from dataclasses import dataclass

import swaa


@swaa.register_policy
@dataclass(frozen=True, repr=False)
class LunarWindow(swaa.Predicate):
    """A window, and the tokens that stand at the same phase of the moon: visible iff
    ``q - k < window_size or (q - k) % month == 0``.
    """

    window_size: int
    month: int = 28

    def __post_init__(self):
        self.require_int("window_size", at_least=1)
        self.require_int("month", at_least=1, unit="days")

    def visible(self, q, k):
        return (q - k < self.window_size) | ((q - k) % self.month == 0)

    @classmethod
    def examples(cls):
        return cls(3, 7), cls(8)


def full_moons(policy, q, k):
    """The same as a loop."""
    return k in range(q, -1, -policy.month) or k in range(q - policy.window_size + 1, q + 1)

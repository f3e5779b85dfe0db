"""A policy of one's own, from nothing to a row in a table: a window whose far half is thinned out."""

from dataclasses import dataclass

import swaa


@swaa.register_policy
@dataclass(frozen=True, repr=False)
class ThinnedWindow(swaa.Predicate):
    """The last ``window_size`` tokens, and of the far half only every ``step``-th token of the text: visible iff
    ``q - k < (window_size + 1) // 2 or q - k < window_size and k % step == 0``.

    Args:
        window_size: how far it sees, the query's own token included, at least 1. Odd: the near half is the larger one.
        step: which tokens of the far half stay, at least 1; 1 is a plain window.
    """

    window_size: int
    step: int = 4

    def __post_init__(self):
        self.require_int("window_size", at_least=1)
        self.require_int("step", at_least=1)

    def visible(self, q, k):
        near = q - k < (self.window_size + 1) // 2
        return near | (q - k < self.window_size) & (k % self.step == 0)

    @classmethod
    def examples(cls):
        return cls(8, 3), cls(7, 2), cls(2, 5), cls(1, 1), cls(64)


def oracle(policy, q, k):
    """The definition once more, as a loop: from the query backwards, the first half whole, then those that stay."""
    newest_first = list(range(q, -1, -1))[: policy.window_size]
    half = policy.window_size - policy.window_size // 2
    return k in newest_first[:half] or k in [token for token in newest_first[half:] if token % policy.step == 0]

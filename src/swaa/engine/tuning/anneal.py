"""Windows that shrink to the policy's own while training."""

from __future__ import annotations

from swaa.config import Annealing
from swaa.policies import AttentionPolicy, SlidingWindow


def annealed(policy: AttentionPolicy, annealing: Annealing | None, step: int, num_steps: int) -> AttentionPolicy:
    """The policy of one optimizer step: the target, and a window that shrinks geometrically until it is gone.

    Adding a window only widens, whatever the policy: a sliding layer gets a longer window, a full one stays full.

    Args:
        policy: the target.
        annealing: None for the target from the first step.
        step: from 0.
        num_steps: of the whole training.
    """
    if annealing is None or step >= annealing.share * num_steps:
        return policy
    done = step / (annealing.share * num_steps)  # in [0, 1)
    ratio = annealing.end_window / annealing.start_window
    return policy | SlidingWindow(max(1, round(annealing.start_window * ratio**done)))

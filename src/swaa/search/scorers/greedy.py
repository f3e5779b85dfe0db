"""Forward selection: layer after layer, the one that gains most beside those chosen before."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from swaa.reading import check_choice
from swaa.search.choices import Choice, Unit, in_order
from swaa.search.probe import Probe
from swaa.search.scorers.base import Scorer, check_count, mean_gain
from swaa.search.scorers.one_unit import LOSSES
from swaa.search.scorers.registry import register_scorer


@register_scorer
@dataclass(frozen=True)
class Greedy(Scorer):
    """Greedy forward selection with lazy re-evaluation (Minoux, 1978; CELF, Leskovec et al., 2007).

    A layer's gain of an earlier round is taken as the most that it can gain now: the layer that promises most is
    measured anew, until one stays on top. That is the plain greedy choice where gains only shrink as layers are added,
    and a guess where layers help each other.

    Attributes:
        metric: ``nll`` of the right answers, or ``kl`` from full attention.
    """

    name: ClassVar[str] = "greedy"

    metric: str = "nll"

    def __post_init__(self) -> None:
        check_choice(f"{type(self).__name__}.metric", self.metric, LOSSES)

    def score(self, probe: Probe) -> tuple[float, ...]:
        """The layer that is chosen first has the largest score, ``num_layers``; the last one has 1."""
        ranks = {layer: probe.num_layers - place for place, layer in enumerate(self.order(probe, probe.num_layers))}
        return tuple(float(ranks[layer]) for layer in range(probe.num_layers))

    def choose(self, probe: Probe, count: int) -> tuple[Unit, ...]:
        """The first ``count`` of the selection; of the later rounds none is run."""
        check_count(count, probe.num_layers)
        return in_order(self.order(probe, count))

    def order(self, probe: Probe, rounds: int) -> Iterator[int]:
        """The layers of the first ``rounds`` rounds, in the order in which they are chosen."""
        chosen: Choice = frozenset()
        # (-gain, layer, round of the gain): the largest gain first, ties to the earlier layer
        promises = [(float("-inf"), layer, -1) for layer in range(probe.num_layers)]
        for number in range(rounds):
            if len(promises) == 1:  # nothing is left to compare
                yield promises[0][1]
                return
            probe.start_from(chosen)
            before = probe.measure(chosen, self.metric)
            while promises[0][2] < number:
                _, layer, _ = promises[0]
                gain = mean_gain(before, probe.measure(chosen | {layer}, self.metric))
                heapq.heapreplace(promises, (-gain, layer, number))
            _, layer, _ = heapq.heappop(promises)
            chosen |= {layer}
            probe.tell(self.label, number + 1, rounds)
            yield layer

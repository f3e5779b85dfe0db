"""Controls, which measure nothing: the paper's fixed patterns, and chance."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from swaa.errors import invalid
from swaa.reading import check_whole
from swaa.search.choices import Unit
from swaa.search.probe import Probe
from swaa.search.scorers.base import Scorer, check_count
from swaa.search.scorers.registry import register_scorer


@register_scorer
@dataclass(frozen=True)
class Random(Scorer):
    """Layers drawn by chance; the sets of one seed contain one another.

    Attributes:
        seed: of the draw.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(f"{type(self).__name__}.seed", self.seed, minimum=0)

    def score(self, probe: Probe) -> tuple[float, ...]:
        order = [float(place) for place in range(probe.num_layers)]
        random.Random(f"{self.seed}/{probe.num_layers}").shuffle(order)
        return tuple(order)


@register_scorer
@dataclass(frozen=True)
class Fixed(Scorer):
    """Every n-th layer, as in "Sliding Window Attention Adaptation" (arXiv 2512.10411): 1 on the pattern, else 0.

    The paper's patterns are ``every=2`` and ``every=4``, from layer 1 on. For a number of layers that the pattern has
    not, as many are spread evenly over the model's layers from ``start`` on.

    Attributes:
        every: layers from one of the pattern to the next.
        start: the first layer of the pattern.
    """

    name: ClassVar[str] = "fixed"

    every: int = 4
    start: int = 1

    def __post_init__(self) -> None:
        check_whole(f"{type(self).__name__}.every", self.every, minimum=1)
        check_whole(f"{type(self).__name__}.start", self.start, minimum=0)

    def score(self, probe: Probe) -> tuple[float, ...]:
        pattern = self.pattern(probe)
        return tuple(float(layer in pattern) for layer in range(probe.num_layers))

    def choose(self, probe: Probe, count: int) -> tuple[Unit, ...]:
        check_count(count, probe.num_layers)
        pattern = self.pattern(probe)
        if count == len(pattern):
            return tuple(pattern)
        start = min(self.start, probe.num_layers - count)  # so that there is room for all
        return tuple(start + place * (probe.num_layers - start) // count for place in range(count))

    def pattern(self, probe: Probe) -> range:
        """The layers ``start``, ``start + every``, and so on.

        Raises:
            UserError: the model has no layer ``start``.
        """
        if self.start >= probe.num_layers:
            accepted = f"a layer of the model, 0 to {probe.num_layers - 1}"
            raise invalid("Fixed.start", accepted=accepted, got=self.start, mend="Begin at an earlier layer.")
        return range(self.start, probe.num_layers, self.every)

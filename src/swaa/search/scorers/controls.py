"""Controls, which measure nothing: evenly spaced layers, and chance."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from swaa.reading import check_whole
from swaa.search.choices import Unit, spread
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
    """As many layers as are asked for, evenly spaced by :func:`swaa.search.choices.spread`, as a search's own controls.

    The paper's patterns ("Sliding Window Attention Adaptation", arXiv 2512.10411) are among them: 8 of 30 layers are
    every fourth, 1, 5 … 29. For others, name them in ``controls.patterns``.
    """

    name: ClassVar[str] = "fixed"

    def score(self, probe: Probe) -> tuple[float, ...]:
        """In how many of the patterns, of one layer to all of them, the layer is."""
        size = probe.num_layers
        patterns = [spread(size, count) for count in range(1, size + 1)]
        return tuple(float(sum(layer in pattern for pattern in patterns)) for layer in range(size))

    def choose(self, probe: Probe, count: int) -> tuple[Unit, ...]:
        check_count(count, probe.num_layers)
        return spread(probe.num_layers, count)

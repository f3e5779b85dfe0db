"""One layer at a time: what it gains when it alone is full, and what is lost when it alone is restricted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from swaa.reading import check_choice
from swaa.search.choices import Choice
from swaa.search.probe import Probe
from swaa.search.scorers.base import Scorer, mean_gain
from swaa.search.scorers.registry import register_scorer

LOSSES = ("nll", "kl")
"""The probe's metrics of which less is better."""


@dataclass(frozen=True)
class OneLayerSwitched(Scorer):
    """What :class:`AddOne` and :class:`DropOne` share.

    Attributes:
        metric: ``nll`` of the right answers, or ``kl`` from full attention, which needs no right answers.
    """

    metric: str = "nll"

    def __post_init__(self) -> None:
        check_choice(f"{type(self).__name__}.metric", self.metric, LOSSES)

    def _of_each(self, probe: Probe, reference: Choice) -> tuple[float, ...]:
        """How much less is lost where the layer is full than where it is restricted, for every layer, in nats."""
        probe.start_from(reference)
        stays, found = probe.measure(reference, self.metric), []
        for layer in range(probe.num_layers):
            switched = probe.measure(reference ^ {layer}, self.metric)
            found.append(mean_gain(switched, stays) if layer in reference else mean_gain(stays, switched))
            probe.tell(self.label, layer + 1, probe.num_layers)
        return tuple(found)


@register_scorer
@dataclass(frozen=True)
class AddOne(OneLayerSwitched):
    """The loss gained when this layer alone keeps full attention: base - (base with the layer full), in nats.

    Costs one pass under the base and, as prefixes are shared, about half a pass a layer.
    """

    name: ClassVar[str] = "add_one"

    def score(self, probe: Probe) -> tuple[float, ...]:
        return self._of_each(probe, frozenset())


@register_scorer
@dataclass(frozen=True)
class DropOne(OneLayerSwitched):
    """The loss when this layer alone is restricted: (full with the layer restricted) - full, in nats.

    Costs one pass under full attention and, as prefixes are shared, about half a pass a layer.
    """

    name: ClassVar[str] = "drop_one"

    def score(self, probe: Probe) -> tuple[float, ...]:
        return self._of_each(probe, probe.all_layers)

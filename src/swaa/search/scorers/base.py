"""What a scorer is: it says of every unit of a model how much it should keep full attention."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from torch import Tensor

from swaa.errors import invalid
from swaa.reading import build, check_whole
from swaa.search.choices import Unit, in_order
from swaa.search.probe import Probe


class Scorer(ABC):
    """A frozen dataclass whose fields are its parameters.

    A new scorer subclasses this, sets ``name``, checks its fields in ``__post_init__`` (naming them
    ``ClassName.field``), writes :meth:`score` and carries ``@register_scorer``. Some choose sets that are no first so
    many of one order; they override :meth:`choose`.
    """

    name: ClassVar[str]
    """As in YAML."""
    by_head: ClassVar[bool] = False
    """Are the units query heads? Otherwise they are layers."""

    @abstractmethod
    def score(self, probe: Probe) -> tuple[float, ...]:
        """One value for each of :meth:`units`: the larger, the more the unit should keep full attention.

        Raises:
            UserError: the model has not what the scorer needs.
        """

    def choose(self, probe: Probe, count: int) -> tuple[Unit, ...]:
        """The ``count`` units that should keep full attention, by layer: the best scores, ties to the earlier unit.

        Raises:
            UserError: the model has not so many units, or the scores are not one finite number for each; and what
                :meth:`score` raises.
        """
        units = self.units(probe)
        check_count(count, len(units))
        scores = self._checked(self.score(probe), units) if 0 < count < len(units) else (0.0,) * len(units)
        ranked = sorted(range(len(units)), key=lambda place: -scores[place])  # stable: ties to the earlier
        return in_order(units[place] for place in ranked[:count])

    def _checked(self, scores: Sequence[float], units: Sequence[Unit]) -> Sequence[float]:
        """The scores, which rank the units: as many, and each a finite number."""
        if len(scores) == len(units) and all(math.isfinite(score) for score in scores):
            return scores
        accepted = f"{len(units)} finite numbers, one for each of the model's {'heads' if self.by_head else 'layers'}"
        mend = "Correct the scorer."
        raise invalid(f"{type(self).__name__}.score", accepted=accepted, got=scores, mend=mend)

    def units(self, probe: Probe) -> tuple[Unit, ...]:
        """What may be chosen, in the order of the scores: layers, or ``(layer, head)``."""
        layers = range(probe.num_layers)
        return (
            tuple((layer, head) for layer in layers for head in range(probe.num_heads)) if self.by_head else (*layers,)
        )

    @property
    def label(self) -> str:
        """The name with its parameters, for tables and cards: ``add_one(metric=nll)``."""
        fields = {key: value for key, value in self.to_dict().items() if key != "name"}
        said = ", ".join(f"{key}={value}" for key, value in fields.items())
        return f"{self.name}({said})" if said else self.name

    def to_dict(self) -> dict[str, object]:
        """Plain values: ``name`` and every parameter. ``parse_scorer`` reads them back."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {"name": self.name} | {item.name: getattr(self, item.name) for item in fields}

    @classmethod
    def from_dict(cls, parameters: Mapping[str, object]) -> Self:
        """The scorer with these parameters; those left out have their defaults.

        Raises:
            UserError: a parameter is unknown (the nearest is suggested) or has a wrong value.
        """
        return build(cls, parameters, cls.name)


def check_count(count: object, units: int) -> None:
    """Refuse a number of units that a model has not."""
    if check_whole("count", count, minimum=0) > units:
        raise invalid("count", accepted=f"at most {units}, the model's units", got=count, mend="Choose fewer units.")


def mean_gain(before: Tensor, after: Tensor) -> float:
    """How much less the items lose, on average: values [N] before and after."""
    return float((before - after).mean())

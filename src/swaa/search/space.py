"""The space of a search: base policies, which units keep full attention over them, and the controls of a choice."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from swaa.compiler.shape import ModelShape
from swaa.config import Space
from swaa.errors import invalid
from swaa.policies import AttentionPolicy, SinkTokens, SlidingWindow, select
from swaa.reading import within
from swaa.search.choices import Unit, in_order, policy_of, spread


@dataclass(frozen=True)
class Base:
    """The restricted policy that holds on units that are not chosen.

    Attributes:
        window: tokens of the sliding window, the query's own among them.
        sinks: first tokens that all queries see; 0 for none.
        phase: ``both``, or ``prefill`` where answer tokens see everything.
    """

    window: int
    sinks: int
    phase: str

    @property
    def policy(self) -> AttentionPolicy:
        """The policy of a model without chosen units."""
        window: AttentionPolicy = SlidingWindow(self.window)
        seen = window | SinkTokens(self.sinks) if self.sinks else window
        return seen.in_phase("prefill") if self.phase == "prefill" else seen

    def hides(self, length: int) -> bool:
        """Does it hide anything from a prompt of so many tokens?"""
        return self.window + self.sinks < length

    @property
    def label(self) -> str:
        """In names of recipes and files: ``w128-s10-prefill``."""
        return f"w{self.window}-s{self.sinks}-{self.phase}"


@dataclass(frozen=True)
class Candidate:
    """A base policy and the units that keep full attention.

    Attributes:
        base: what holds on the others.
        chosen: the units, in order.
        origins: the labels of the scorers that chose these units, or of the controls that they are.
        num_layers, num_heads: of the model; heads are the query heads of a layer.
    """

    base: Base
    chosen: tuple[Unit, ...]
    origins: tuple[str, ...]
    num_layers: int
    num_heads: int

    @property
    def name(self) -> str:
        """In tables: ``add_one 8 w128-s10-prefill``."""
        return f"{self.origins[0]} {len(self.chosen)} {self.base.label}" if self.chosen else f"none {self.base.label}"

    @property
    def policy(self) -> AttentionPolicy:
        """Full attention on the chosen units, the base policy on the others."""
        return policy_of(self.base.policy, self.chosen, num_layers=self.num_layers, num_heads=self.num_heads)

    @property
    def units(self) -> list[str]:
        """The chosen units in words: ``7``, or ``7.2`` for head 2 of layer 7."""
        return [str(unit) if isinstance(unit, int) else f"{unit[0]}.{unit[1]}" for unit in self.chosen]


def bases(space: Space) -> tuple[Base, ...]:
    """All base policies of a space."""
    return tuple(
        Base(window, sinks, phase) for phase in space.phases for sinks in space.sinks for window in space.windows
    )


def all_units(space: Space, shape: ModelShape) -> list[Unit]:
    """The units that a model has, in order."""
    if space.unit == "layers":
        return list(range(shape.num_layers))
    return [(layer, head) for layer in range(shape.num_layers) for head in range(shape.num_heads)]


def check_counts(space: Space, shape: ModelShape) -> None:
    """Refuse counts that the model has not enough units for.

    Raises:
        UserError: a count is larger than the number of units.
    """
    most = len(all_units(space, shape))
    for index, count in enumerate(space.counts):
        if count > most:
            accepted, mend = f"at most the model's {most} {space.unit}", "Lower it."
            raise invalid(f"space.counts[{index}]", accepted=accepted, got=count, mend=mend)


def merged(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each base and choice once, in order, with the origins of all that are equal to it."""
    found: dict[tuple[Base, tuple[Unit, ...]], Candidate] = {}
    for candidate in candidates:
        key = candidate.base, candidate.chosen
        before = found.get(key)
        origins = candidate.origins if before is None else (*before.origins, *candidate.origins)
        found[key] = replace(candidate, origins=tuple(dict.fromkeys(origins)))
    return list(found.values())


def fixed(of: Candidate, units: Sequence[Unit]) -> Candidate:
    """The evenly spaced control of as many of the ``units`` as a candidate has, over its base."""
    chosen = tuple(units[place] for place in spread(len(units), len(of.chosen)))
    return replace(of, chosen=chosen, origins=("every",))


def randomly(of: Candidate, units: Sequence[Unit], draw: int, seed: int) -> Candidate:
    """A random control of as many of the ``units`` as a candidate has; the same for the same draw and seed."""
    count = len(of.chosen)
    drawn = random.Random(f"{seed}/{draw}/{count}").sample(list(units), count)
    name = f"random[{draw}]" if seed == 0 else f"random[{draw}, seed {seed}]"  # another seed's is another recipe
    return replace(of, chosen=in_order(drawn), origins=(name,))


def patterned(base: Base, pattern: str, shape: ModelShape, field: str) -> Candidate:
    """The control whose full layers a selector names.

    Raises:
        UserError: the selector is none, or names a layer that the model has not; the ``field`` is named.
    """
    with within(field):
        chosen = select(pattern).indices(shape.num_layers, kind="layer")
    return Candidate(base, chosen, (f"pattern[{pattern}]",), shape.num_layers, shape.num_heads)

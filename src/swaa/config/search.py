"""Searches: which units of a model keep full attention, under which window and sinks, within a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swaa.config.common import ModelConfig, read_fields
from swaa.config.files import to_yaml
from swaa.config.finetune import check_apart
from swaa.config.finetune_parts import build_source
from swaa.config.search_parts import (
    Budget,
    Calibration,
    Controls,
    Halving,
    HeldOut,
    Measure,
    Request,
    Scenarios,
    Space,
    plain,
)
from swaa.errors import UserError, invalid
from swaa.reading import build, check_items, check_number, check_text, check_whole
from swaa.recipe import Decoding


@dataclass(frozen=True)
class Search:
    """A search for recipes.

    Attributes:
        calibration: the samples that units are scored on.
        space: what may be chosen.
        scorers: how units are ranked, cheap ones first: names, or mappings with a name and parameters. They are parsed
            where they are run (``swaa.search.scorers``).
        test: the samples that judge.
        output: the folder of the results.
        budget: what a choice may cost.
        request: what costs are predicted of.
        halving: how candidates are thinned out.
        controls: what the chosen ones are tested against.
        scenarios: what the winners are asked for.
        measure: how the winners are timed; None leaves it out.
        precision: the largest half-width of a 95 % interval of an accuracy of the test that is acceptable, in (0, 0.5];
            None asks for none.
        decoding: of the test.
        batch_size: samples that run together, left-padded.
        model: what is adapted.
        plugins: files or modules with tasks or graders of one's own, imported first.
    """

    calibration: Calibration
    space: Space
    scorers: tuple[str | Mapping[str, object], ...]
    test: HeldOut
    output: Path
    budget: Budget = field(default_factory=Budget)
    request: Request = field(default_factory=Request)
    halving: Halving = field(default_factory=Halving)
    controls: Controls = field(default_factory=Controls)
    scenarios: Scenarios = field(default_factory=Scenarios)
    measure: Measure | None = field(default_factory=Measure)
    precision: float | None = None
    decoding: Decoding = field(default_factory=Decoding)
    batch_size: int = 4
    model: ModelConfig = field(default_factory=ModelConfig)
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_items("Search.scorers", self.scorers, of="scorer", mend="Write scorers: [add_one, drop_one].")
        check_whole("Search.batch_size", self.batch_size, minimum=1)
        check_text("Search.output", str(self.output) if isinstance(self.output, Path) else self.output)
        if self.precision is not None:
            number = check_number("Search.precision", self.precision, low=0, high=0.5, open_low=True)
            object.__setattr__(self, "precision", number)
        self._check_held_out()
        if self.space.unit == "heads" and self.controls.patterns:
            mend = "Leave them out, or write unit: layers."
            accepted = "none where the unit is heads, for they name layers"
            raise invalid("Search.controls.patterns", accepted=accepted, got=list(self.controls.patterns), mend=mend)
        if self.space.unit == "heads" and self.budget.max_full_layers is not None:
            mend = "Leave it out: space.counts says how many heads keep full attention. Or write unit: layers."
            accepted, got = "none where the unit is heads", self.budget.max_full_layers
            raise invalid("Search.budget.max_full_layers", accepted=accepted, got=got, mend=mend)
        object.__setattr__(self, "scorers", tuple(self.scorers))
        object.__setattr__(self, "plugins", tuple(self.plugins))
        object.__setattr__(self, "output", Path(self.output))

    def _check_held_out(self) -> None:
        """Refuse a test whose samples have chosen what it is to judge, and a second stage on those of the first."""
        for name, seed in (("calibration", self.calibration.seed), ("halving", self.halving.seed)):
            if seed == self.test.seed:
                raise UserError(
                    f"Search.test.seed: {seed} is {name}.seed, too, and what chooses may not judge. "
                    "Set test.seed to another number."
                )
        check_apart({"calibration": self.calibration, "test": self.test}, owner="Search")
        if self.halving.seed == self.calibration.seed and any(task.sized for task in self.calibration.tasks):
            raise UserError(
                f"Search.halving.seed: {self.halving.seed} is calibration.seed, too, and the second stage is to have "
                "other samples than the first. Set halving.seed to another number."
            )

    @property
    def request_length(self) -> int:
        """Tokens of the prompt that costs are predicted of."""
        return self.request.length or max(self.test.lengths)

    @property
    def request_tokens(self) -> int:
        """Tokens of the answer that costs are predicted of."""
        return self.request.new_tokens or self.decoding.max_new_tokens

    def to_dict(self) -> dict[str, object]:
        """Plain values: a complete search file, without ``vars``."""
        return {
            "plugins": list(self.plugins),
            "model": dataclasses.asdict(self.model),
            **{name: plain(getattr(self, name)) for name in ("calibration", *_PARTS, "test")},
            "measure": None if self.measure is None else plain(self.measure),
            "scorers": [item if isinstance(item, str) else dict(item) for item in self.scorers],
            "precision": self.precision,
            "decoding": self.decoding.to_dict(),
            "batch_size": self.batch_size,
            "output": str(self.output),
        }

    def to_yaml(self) -> str:
        """The text of a complete file that gives this search again."""
        return to_yaml(self.to_dict())

    @classmethod
    def from_dict(cls, values: object, *, output: Path | str) -> Search:
        """The search that plain values describe; ``output`` is the folder where they name none.

        Raises:
            UserError: an unknown, missing or wrong field, named by its dotted path.
        """
        mapping = read_fields("search", values, [item.name for item in dataclasses.fields(cls)], output=output)
        for name, kind in (("calibration", Calibration), ("test", HeldOut)):
            if name in mapping:
                mapping[name] = build_source(kind, mapping[name], name)
        for name, part in (_PARTS | {"model": ModelConfig, "decoding": Decoding}).items():
            if name in mapping:
                mapping[name] = build(part, mapping[name], name)
        if mapping.get("measure") is not None:
            mapping["measure"] = _read_measure(mapping["measure"])
        return build(cls, mapping, "")


_PARTS: dict[str, type] = {
    "space": Space,
    "budget": Budget,
    "request": Request,
    "halving": Halving,
    "controls": Controls,
    "scenarios": Scenarios,
}


def _read_measure(values: object) -> Measure:
    if not isinstance(values, Mapping):
        accepted = "fields such as rounds: 3, or null to measure nothing"
        raise invalid("measure", accepted=accepted, got=values, mend="Write measure: {rounds: 3}.")
    return build(Measure, values, "measure")

"""What a search found: tested recipes with intervals, Pareto fronts, comparisons with the controls, winners."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swaa.config import Scenarios
from swaa.policies import AttentionPolicy
from swaa.report import Record
from swaa.report.paired import Paired, compare_paired, holm
from swaa.report.rows import METRICS, Answers, answers
from swaa.report.stats import Estimate, bootstrap, example_means, mean, share
from swaa.search.budget import KINDS, Costs
from swaa.search.front import pareto
from swaa.search.halving import Scored
from swaa.search.measure import Measurement, Timed

ROLES = ("full attention", "chosen", "fixed pattern", "random set")


@dataclass(frozen=True)
class Tested:
    """A recipe and how it did on the held-out samples.

    Attributes:
        name: of the recipe.
        role: one of ``ROLES``.
        scored: the candidate, and what was known before; None for full attention.
        costs: predicted.
        within_budget: does it cost no more than the budget says?
        accuracy: mean over samples of the grader's score, or of teacher-forced exactness where nothing was generated.
        nll: of the right answers, in nats a token; None where they were not teacher-forced.
        against_full: the difference in accuracy to full attention on the same samples; None for full attention itself.
        measured_ratio: time of the test's own samples over those of full attention in the test, prefill and the
            request's new tokens; None where it was not measured.
        fronts: the kinds of cost on whose front it stands.
    """

    name: str
    role: str
    scored: Scored | None
    costs: Costs
    within_budget: bool
    accuracy: Estimate
    nll: float | None
    against_full: Paired | None
    measured_ratio: float | None
    fronts: tuple[str, ...] = ()

    @property
    def may_win(self) -> bool:
        """Within the budget, and no random set: the luckiest of several would win by luck."""
        return self.within_budget and self.role != "random set"


@dataclass(frozen=True)
class Comparison:
    """A chosen recipe against a control on the same samples."""

    chosen: str
    control: str
    paired: Paired


@dataclass(frozen=True)
class Winner:
    """The answer to a scenario.

    Attributes:
        question: what was asked for.
        name: of the recipe; None where nothing answers.
        nearest: where nothing does, what comes nearest.
        speedup: the least predicted speed-up that was asked for; None where none was.
    """

    question: str
    name: str | None
    nearest: str | None = None
    speedup: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Everything that the test found.

    Attributes:
        tested: full attention first, then what was chosen, then controls.
        comparisons: of every chosen recipe with the controls of as many units over its base policy, and with the
            patterns that were asked for; p corrected for one another.
        winners: of the scenarios.
        metric: what accuracy is: ``score`` or ``forced``.
        num_samples: of the test.
        measurement: of the winners; None where none was made.
    """

    tested: tuple[Tested, ...]
    comparisons: tuple[Comparison, ...]
    winners: tuple[Winner, ...]
    metric: str
    num_samples: int
    measurement: Measurement | None = None

    def named(self, name: str) -> Tested:
        """The tested recipe of that name."""
        return next(one for one in self.tested if one.name == name)

    def timed_of(self, name: str) -> Timed | None:
        """The measured time of a recipe; None where it was not measured."""
        return None if self.measurement is None else self.measurement.of(name)

    @property
    def to_measure(self) -> dict[str, AttentionPolicy]:
        """The recipes that have won anything, each once, by name; full attention is what they are measured beside."""
        won = dict.fromkeys(winner.name for winner in self.winners if winner.name is not None)
        found = {name: self.named(name).scored for name in won}
        return {name: scored.candidate.policy for name, scored in found.items() if scored is not None}

    def is_ready(self, one: Tested) -> bool:
        """Does a recipe get a file of its own: is it on a front, or has it won?"""
        return one.scored is not None and (bool(one.fronts) or one.name in {winner.name for winner in self.winners})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "metric": self.metric,
            "num_samples": self.num_samples,
            "tested": [_plain(one) for one in self.tested],
            "comparisons": [dataclasses.asdict(one) for one in self.comparisons],
            "winners": [dataclasses.asdict(one) for one in self.winners],
            "measurement": None if self.measurement is None else self.measurement.to_dict(),
        }


@dataclass(frozen=True)
class Entry:
    """A recipe of the test and its records.

    Attributes:
        name, role, scored, costs, within_budget: as of :class:`Tested`.
        records: of the recipe.
    """

    name: str
    role: str
    scored: Scored | None
    costs: Costs
    within_budget: bool
    records: tuple[Record, ...]


def judge(entries: Sequence[Entry], scenarios: Scenarios, *, new_tokens: int) -> Outcome:
    """The outcome of a test.

    Args:
        entries: full attention first; all have records of the same samples.
        scenarios: what the winners are asked for.
        new_tokens: of the request, for the measured time.
    """
    everywhere = [record for entry in entries for record in entry.records]
    metric = "score" if any("score" in record.scores for record in everywhere) else "forced"
    values = {entry.name: _values(entry.records, METRICS[metric]) for entry in entries}
    full = entries[0]
    seconds = {entry.name: _seconds(entry.records, new_tokens) for entry in entries}
    against = [None, *(compare_paired(values[entry.name], values[full.name]) for entry in entries[1:])]
    tested = [
        Tested(
            name=entry.name,
            role=entry.role,
            scored=entry.scored,
            costs=entry.costs,
            within_budget=entry.within_budget,
            accuracy=_accuracy(values[entry.name]),
            nll=mean(record.scores.get("forced_nll") for record in entry.records),
            against_full=paired,
            measured_ratio=_ratio(seconds[entry.name], seconds[full.name]),
        )
        for entry, paired in zip(entries, _corrected(against), strict=True)
    ]
    tested = _with_fronts(tested)
    winners = winners_of(tested, scenarios)
    return Outcome(tuple(tested), _comparisons(tested, values), winners, metric, len(values[full.name]))


def winners_of(tested: Sequence[Tested], scenarios: Scenarios) -> tuple[Winner, ...]:
    """Who answers the scenarios, among what is within the budget; ``tested`` begins with full attention."""
    able = [one for one in tested if one.may_win]
    least = scenarios.accuracy_share * tested[0].accuracy.value
    fair = f"at least {scenarios.accuracy_share:.0%} of full attention's accuracy"
    good = [one for one in able if one.accuracy.value >= least - 1e-12]
    fast = [one for one in able if one.costs.time_ratio * scenarios.speedup <= 1 + 1e-12]
    best = max(able, key=_quality, default=None)
    quickest = min(able, key=lambda one: one.costs.time_ratio, default=None)
    no_accuracy = None if best is None else f"{best.name}, accuracy {best.accuracy.value:.3f} of {least:.3f}"
    no_speed = None if quickest is None else f"{quickest.name}, {1 / quickest.costs.time_ratio:.2f} times"
    fastest = min(good, key=lambda one: _cheapest(one, "time_ratio"), default=None)
    accurate = max(fast, key=_quality, default=None)
    smallest = min(good, key=lambda one: _cheapest(one, "kv_share"), default=None)
    asked = scenarios.speedup
    return (
        _winner(f"fastest with {fair}", fastest, no_accuracy),
        _winner(f"most accurate at least {asked:g} times faster", accurate, no_speed, speedup=asked),
        _winner(f"smallest KV with {fair}", smallest, no_accuracy),
        _winner("most accurate within the budget", best, None),
    )


def _winner(question: str, one: Tested | None, nearest: str | None, *, speedup: float | None = None) -> Winner:
    return Winner(question, one.name if one else None, None if one else nearest, speedup)


def _cheapest(one: Tested, kind: str) -> tuple[float, ...]:
    return (getattr(one.costs, kind), *(-figure for figure in _quality(one)))


def _quality(one: Tested) -> tuple[float, ...]:
    """The larger the better: accuracy, then likelihood, then speed."""
    return one.accuracy.value, -(one.nll or 0.0), -one.costs.time_ratio


def _with_fronts(tested: Sequence[Tested]) -> list[Tested]:
    able = [one for one in tested if one.may_win]
    names: dict[str, list[str]] = {one.name: [] for one in tested}
    for kind in KINDS:
        for place in pareto([(-one.accuracy.value, float(getattr(one.costs, kind))) for one in able]):
            names[able[place].name].append(kind)
    return [dataclasses.replace(one, fronts=tuple(names[one.name])) for one in tested]


def _comparisons(tested: Sequence[Tested], values: Mapping[str, Answers]) -> tuple[Comparison, ...]:
    found = []
    for one in tested:
        for control in tested:
            if one.role == "chosen" and _is_rival(control, one):
                paired = compare_paired(values[one.name], values[control.name])
                if paired is not None:
                    found.append(Comparison(one.name, control.name, paired))
    corrected = _corrected([one.paired for one in found])
    return tuple(
        dataclasses.replace(one, paired=paired) for one, paired in zip(found, corrected, strict=True) if paired
    )


def _is_rival(control: Tested, one: Tested) -> bool:
    """Is it a control over the same base policy, of as many units or a pattern that was asked for?"""
    if control.role not in ROLES[2:] or control.scored is None or one.scored is None:
        return False
    mine, its = one.scored.candidate, control.scored.candidate
    asked_for = any(origin.startswith("pattern[") for origin in its.origins)
    return mine.base == its.base and (asked_for or len(mine.chosen) == len(its.chosen))


def _corrected(found: Sequence[Paired | None]) -> list[Paired | None]:
    """The comparisons, their p values corrected for one another."""
    ps = iter(holm([one.p for one in found if one]))
    return [dataclasses.replace(one, p_holm=next(ps)) if one else None for one in found]


def _values(records: Iterable[Record], name: str) -> Answers:
    return answers(records, lambda record: record.scores.get(name))


def _accuracy(found: Answers) -> Estimate:
    some = list(found.values())
    if all(value in (0, 1) for each in some for value in each):
        return share(some)
    return bootstrap(example_means(some))


def _seconds(records: Sequence[Record], new_tokens: int) -> float | None:
    """Mean seconds of a sample: its share of the batch's prefill, and the request's decode steps."""
    prefill = mean(record.timing.get("prefill_seconds") for record in records)
    step = mean(
        record.timing["decode_ms_per_token"] / record.timing["batch_size"] / 1000
        for record in records
        if "decode_ms_per_token" in record.timing
    )
    return None if prefill is None else prefill + (step or 0.0) * (new_tokens - 1)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _plain(one: Tested) -> dict[str, Any]:
    values = dataclasses.asdict(dataclasses.replace(one, scored=None))
    del values["scored"]
    if one.scored is not None:
        candidate = one.scored.candidate
        values |= {
            "base": dataclasses.asdict(candidate.base),
            "chosen": [unit if isinstance(unit, int) else list(unit) for unit in candidate.chosen],
            "origins": list(candidate.origins),
            "policy": repr(candidate.policy),
            **{
                name: getattr(one.scored, name) for name in ("calibration_nll", "validation_nll", "validation_accuracy")
            },
        }
    return values

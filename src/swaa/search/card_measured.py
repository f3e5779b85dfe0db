"""The part of a card that sets what was measured of the winners beside what was predicted."""

from __future__ import annotations

from swaa.config import Search
from swaa.markdown import number, table
from swaa.search.measure import UNPOLICED, Measurement, Timed
from swaa.search.outcome import Outcome

FAR = 0.3
"""Predicted and measured are far from each other beyond this share of the smaller."""


def measured(search: Search, outcome: Outcome, profile: str) -> list[str]:
    """The paragraphs.

    Args:
        search: what was asked for.
        outcome: with the measurement, if there is one.
        profile: the name of the machine that predictions are of.
    """
    winners, found = outcome.to_measure, outcome.measurement
    if not winners:
        return ["Nothing was measured: no recipe but full attention itself has won."]
    if search.measure is None:
        return ["Nothing was measured: `measure` is null."]
    if found is None:
        return ["Nothing was measured yet: the search was interrupted. The same command goes on."]
    parts = [_how(found)] if found.full_seconds is not None else []
    if found.timed:
        head = ("recipe", "time, predicted", "time, measured", "KV, predicted", "KV, measured")
        parts.append(table(head, [_row(outcome, one) for one in found.timed]))
    notes = [*_far(outcome, found, profile), *_too_slow(outcome, found)]
    for name, reason in found.left_out.items():
        notes.append(f"{'full attention' if name == UNPOLICED else name} could not be measured: {reason.rstrip('.')}.")
    return [*parts, *notes]


def _how(found: Measurement) -> str:
    several = f"the median of {found.rounds} rounds, with the least and the largest"
    rounds = "one round" if found.rounds == 1 else several
    return (
        f"Over the model without a policy, in turn with it: {rounds}; requests of {found.prompt_length:,} prompt "
        f"tokens and {found.new_tokens} new ones ({found.full_seconds:.3g} s without a policy), one at a time, on: "
        f"{found.machine}."
    )


def _row(outcome: Outcome, timed: Timed) -> tuple[str, ...]:
    costs, (low, high) = outcome.named(timed.name).costs, timed.ends
    spread = f"{timed.time_ratio:.3f} [{low:.3f}, {high:.3f}]"
    return timed.name, number(costs.time_ratio), spread, number(costs.kv_share), number(timed.kv_share)


def _far(outcome: Outcome, found: Measurement, profile: str) -> list[str]:
    """A sentence for each kind of cost whose prediction is far from what was measured."""
    told = []
    times, shares = [], []
    for timed in found.timed:
        costs = outcome.named(timed.name).costs
        if is_far(costs.time_ratio, timed.time_ratio):
            times.append(timed.name)
        if timed.kv_share is not None and is_far(costs.kv_share, timed.kv_share):
            shares.append(timed.name)
    if times:
        told.append(
            f"Predicted and measured time differ by more than {100 * FAR:.0f} %: {', '.join(times)}. The prediction's "
            f"profile ({profile}) does not fit this machine at this request; `swaa bench` with the baselines `full` "
            "and `floor` fits one, which `request.machine` takes."
        )
    if shares:
        told.append(f"Predicted and measured KV differ by more than {100 * FAR:.0f} %: {', '.join(shares)}.")
    return told


def is_far(predicted: float, measured: float) -> bool:
    """Is the larger more than ``FAR`` above the smaller?"""
    small, large = sorted((predicted, measured))
    return large > (1 + FAR) * small


def _too_slow(outcome: Outcome, found: Measurement) -> list[str]:
    """A sentence for a winner that has not the speed-up that was asked for, when it is measured."""
    told = []
    for winner in outcome.winners:
        timed = None if winner.name is None else found.of(winner.name)
        if timed is not None and winner.speedup is not None and timed.time_ratio * winner.speedup > 1 + 1e-12:
            told.append(
                f"{winner.name} was to be at least {winner.speedup:g} times faster than the model without a policy, by "
                f"prediction; as measured it is {1 / timed.time_ratio:.2f} times as fast."
            )
    return told

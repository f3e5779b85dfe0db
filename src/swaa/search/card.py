"""What a search writes for its reader: the card, and the table of the fronts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from swaa.config import Search
from swaa.markdown import number, table
from swaa.report.paired import Paired
from swaa.report.stats import Estimate
from swaa.report.table import p_value
from swaa.search.budget import KINDS, limits
from swaa.search.card_measured import measured
from swaa.search.choices import Unit
from swaa.search.choosing import Found
from swaa.search.folder import recipe_file
from swaa.search.halving import Scored
from swaa.search.outcome import Outcome, Tested
from swaa.search.space import Base, bases
from swaa.tasks import Task

COLUMNS = (
    *("recipe", "role", "fronts", "full_layers", "time_ratio", "kv_share", "within_budget", "n"),
    *("accuracy", "accuracy_low", "accuracy_high", "nll", "difference", "difference_low", "difference_high"),
    *("p", "p_holm", "measured_ratio", "bench_time_ratio", "bench_time_low", "bench_time_high", "bench_kv_share"),
    *("calibration_nll", "validation_nll", "validation_accuracy"),
    *("window", "sinks", "phase", "units", "chosen_by", "file"),
)
FRONTS = {"full_layers": "full", "time_ratio": "time", "kv_share": "KV"}
"""The fronts, named by the columns of the card that have their costs."""
LIMITS = {
    "full_layers": "at most {:g} layers with full attention",
    "time_ratio": "predicted time at most {:g} of full attention's",
    "kv_share": "KV at most {:g} of full attention's",
}
"""A budget in words."""


def to_csv(outcome: Outcome) -> str:
    """A line for each recipe that was tested, at full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in outcome.tested:
        writer.writerow({key: "" if value is None else value for key, value in _row(one, outcome).items()})
    return text.getvalue()


def _row(one: Tested, outcome: Outcome) -> dict[str, object]:
    difference = None if one.against_full is None else one.against_full.difference
    row: dict[str, object] = {
        "recipe": one.name,
        "role": one.role,
        "fronts": " ".join(one.fronts),
        **{kind: getattr(one.costs, kind) for kind in KINDS},
        "within_budget": one.within_budget,
        "n": one.accuracy.n,
        **_ends("accuracy", one.accuracy),
        "nll": one.nll,
        **_ends("difference", difference),
        "p": None if one.against_full is None else one.against_full.p,
        "p_holm": None if one.against_full is None else one.against_full.p_holm,
        "measured_ratio": one.measured_ratio,
    }
    timed = outcome.timed_of(one.name)
    if timed is not None:
        row |= {"bench_time_ratio": timed.time_ratio, "bench_kv_share": timed.kv_share}
        row |= dict(zip(("bench_time_low", "bench_time_high"), timed.ends, strict=True))
    if one.scored is not None:
        candidate = one.scored.candidate
        row |= {
            **{name: getattr(one.scored, name) for name in COLUMNS if name.startswith(("calibration", "validation"))},
            **vars(candidate.base),
            "units": " ".join(candidate.units),
            "chosen_by": " ".join(candidate.origins),
            "file": recipe_file(one.name) if outcome.is_ready(one) else None,
        }
    return row


def _ends(name: str, figure: Estimate | None) -> dict[str, object]:
    low, high = (None, None) if figure is None else (figure.low, figure.high)
    return {name: None if figure is None else figure.value, f"{name}_low": low, f"{name}_high": high}


def to_card(search: Search, outcome: Outcome, found: Found, second: Sequence[Scored], *, plot: str) -> str:
    """How each recipe was chosen, in Markdown."""
    parts = [
        f"# Recipe search: {search.model.name}",
        *_asked(search, outcome, found, second),
        "## Winners",
        _winners(outcome),
        "## Winners, measured",
        *measured(search, outcome, found.cost_model.machine.name),
        "## What was tested",
        _accuracy_is(outcome),
        _tested(outcome),
        f"![accuracy against cost]({plot})",
        "Controls stand to the right of the chosen recipes that cost as much.",
        "## Chosen against controls",
        _comparisons(outcome),
        "## How each was chosen",
        *_chosen(outcome, found),
        "## What to know",
        _notes(search, outcome, found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _asked(search: Search, outcome: Outcome, found: Found, second: Sequence[Scored]) -> list[str]:
    budget = ", ".join(LIMITS[kind].format(limit) for kind, limit in limits(search.budget).items()) or "none"
    calibration, halving, test = search.calibration, search.halving, search.test
    lengths = ", ".join(f"{length:,}" for length in test.lengths)
    others = "other " if all(task.sized for task in calibration.tasks) else ""  # a file's are the same for every seed
    by = {"nll": "NLL", "accuracy": "accuracy"}[halving.metric]
    third = sum(one.role == "chosen" for one in outcome.tested)
    return [
        f"Budget: {budget}. Request: {found.cost_model.prompt_length:,} prompt tokens, {found.cost_model.new_tokens} "
        f"new ones, on: {found.cost_model.machine.name}.",
        f"1. The scorers chose {len(found.scored)} candidate{'s' * (len(found.scored) != 1)} within the budget, on "
        f"{calibration.num_examples} samples of {_labels(calibration.tasks)} ({calibration.length:,} tokens, seed "
        f"{calibration.seed}).\n"
        f"2. {len(second)} of them, the best there by NLL and cost, went on to {halving.num_examples} {others}samples "
        f"of {_labels(calibration.tasks)} (seed {halving.seed}), teacher-forced.\n"
        f"3. {third} of these, the best there by {by} and cost, went on to the test: {outcome.num_samples} held-out "
        f"samples of {_labels(test.tasks)} ({lengths} tokens, seed {test.seed}), beside full attention and controls.",
        _stages(outcome, found, second),
    ]


def _stages(outcome: Outcome, found: Found, second: Sequence[Scored]) -> str:
    """How far each candidate came."""
    seen = {_key(one): one for one in second}
    tested = {_key(one.scored) for one in outcome.tested if one.scored is not None and one.role == "chosen"}
    rows = []
    for first in found.scored:
        one = seen.get(_key(first), first)
        figures = (first.calibration_nll, one.validation_nll, one.validation_accuracy)
        rows.append((first.candidate.name, *map(number, figures), "yes" if _key(first) in tested else "no"))
    return table(("candidate", "1: NLL", "2: NLL", "2: accuracy", "tested"), rows)


def _key(one: Scored) -> tuple[Base, tuple[Unit, ...]]:
    return one.candidate.base, one.candidate.chosen


def _labels(tasks: Sequence[Task]) -> str:
    return "each of " * (len(tasks) > 1) + ", ".join(task.label for task in tasks)


def _winners(outcome: Outcome) -> str:
    lines = []
    for winner in outcome.winners:
        if winner.name is None:
            nearest = f" The nearest: {winner.nearest}." if winner.nearest else ""
            lines.append(f"- {winner.question}: nothing.{nearest}")
            continue
        one = outcome.named(winner.name)
        lines.append(
            f"- {winner.question}: **{one.name}**, accuracy {_interval(one.accuracy)}, predicted time "
            f"{one.costs.time_ratio:.3f}, KV {one.costs.kv_share:.3f} of full attention's"
        )
    return "\n".join(lines)


def _accuracy_is(outcome: Outcome) -> str:
    what = "of generated answers, by the tasks' graders" if outcome.metric == "score" else "teacher-forced"
    return (
        f"Accuracy {what}, with 95 % intervals; differences are paired, sample by sample. A name says who chose, how "
        "many units keep full attention, and what holds on the others: window (w), sinks (s), and where (`prefill`: "
        "answer tokens see everything; `both`: everywhere)."
    )


def _tested(outcome: Outcome) -> str:
    head = ("recipe", "role", "accuracy", "NLL", "- full attention", "full", "time", "in the test", "KV", "front of")
    rows = [
        (
            one.name,
            one.role if one.within_budget else f"{one.role}, beyond the budget",
            _interval(one.accuracy),
            number(one.nll),
            _paired(one.against_full),
            str(one.costs.full_layers),
            number(one.costs.time_ratio),
            number(one.measured_ratio),
            number(one.costs.kv_share),
            ", ".join(FRONTS[kind] for kind in one.fronts) or "-",
        )
        for one in outcome.tested
    ]
    return table(head, rows)


def _comparisons(outcome: Outcome) -> str:
    if not outcome.comparisons:
        return "No control over the base policy of a chosen recipe was tested."
    rows = [(one.chosen, one.control, _paired(one.paired), p_value(one.paired.p_holm)) for one in outcome.comparisons]
    return table(("chosen", "control", "difference in accuracy", "p (Holm)"), rows)


def _chosen(outcome: Outcome, found: Found) -> list[str]:
    parts = []
    for one in outcome.tested:
        if one.role != "chosen" or one.scored is None:
            continue
        candidate, scored = one.scored.candidate, one.scored
        rivals = [each for each in found.scored if each.candidate.base == candidate.base]
        rivals = [each for each in rivals if len(each.candidate.chosen) == len(candidate.chosen)]
        better = sum((each.calibration_nll or 0.0) < (scored.calibration_nll or 0.0) for each in rivals)
        by = ", ".join(candidate.origins) if candidate.chosen else "nothing: no unit keeps full attention"
        kind = "head" if isinstance(next(iter(candidate.chosen), 0), tuple) else "layer"
        unit = kind + "s" * (len(candidate.chosen) != 1)
        where = f"Full attention on {unit} {', '.join(candidate.units)}; as a policy: " if candidate.chosen else ""
        parts.append(
            f"**{one.name}**: {where}`{candidate.policy!r}`\n\nChosen by {by}. Calibration NLL "
            f"{number(scored.calibration_nll)} nats a token, {_place(better)} of {len(rivals)} with as many; "
            f"second stage: NLL {number(scored.validation_nll)}, accuracy {number(scored.validation_accuracy)}."
        )
    return parts


def _notes(search: Search, outcome: Outcome, found: Found) -> str:
    notes = [
        "Units and candidates were chosen on the samples of stages 1 and 2. Fronts and winners are read off the test: "
        "where several recipes are close, the best of them owes part of its lead to chance.",
        "Random sets are on no front and cannot win: the luckiest of several would.",
        "Time is predicted for the request above, over that of the model without a policy, so full attention's is 1. "
        f"'In the test' is the time of the test's own samples, in batches of {search.batch_size}, over those of full "
        "attention in the test. Recipes ran one after another there: whatever else the machine did is in it, too.",
        f"Scoring took {found.evaluations} forward passes of a calibration sample in this session.",
    ]
    if not outcome.tested[0].accuracy.value:
        notes.append("Full attention itself got nothing right: a share of its accuracy asks for nothing.")
    if all(one.costs.kv_share >= 1 for one in outcome.tested):
        notes.append("Every recipe keeps all keys and values, as answer tokens see them: none saves memory.")
    length = search.calibration.length
    for base in bases(search.space):
        if not base.hides(length):
            notes.append(
                f"{base.label} hides nothing from prompts of {length:,} tokens: nothing was there to choose by."
            )
    return "\n".join(f"- {note}" for note in notes)


def _interval(figure: Estimate) -> str:
    ends = "" if figure.low is None or figure.high is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.value:.3f}{ends}"


def _paired(paired: Paired | None) -> str:
    if paired is None:
        return "-"
    figure = paired.difference
    ends = "" if figure.low is None or figure.high is None else f" [{figure.low:+.3f}, {figure.high:+.3f}]"
    return f"{figure.value:+.3f}{ends}"


def _place(better: int) -> str:
    return "the best" if not better else f"number {better + 1}"

"""A search from beginning to end: choose, halve, test, write what was found, and measure the winners."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from swaa.config import Experiment, Search
from swaa.engine.evaluation import run_evaluation
from swaa.engine.interrupt import Interrupted, StopRequested, stoppable
from swaa.engine.progress import print_line
from swaa.policies import FullAttention
from swaa.report import read_run
from swaa.search.budget import CostModel, excess
from swaa.search.card import to_card, to_csv
from swaa.search.choosing import Found, check_precision, find, parse_scorers, test_of
from swaa.search.folder import CARD, FRONT, PLOT, PNG, RESULT, VALIDATION, SearchFolder, recipe_file
from swaa.search.halving import FULL, Scored, after_calibration, after_validation, validate
from swaa.search.measure import measure
from swaa.search.outcome import Entry, Outcome, Tested, judge
from swaa.search.plot import panels_of, to_svg
from swaa.search.plot_png import write_png
from swaa.search.space import Candidate, all_units, bases, fixed, merged, patterned, randomly

Stages = tuple[Found, Sequence[Scored], Sequence[Scored]]
"""What the first stage found, what the second measured, what goes on to the test."""


def run_search(search: Search, *, fresh: bool = False, console: Console | None = None) -> Outcome:
    """Do what the search's folder does not hold yet, and write the fronts, the recipes and the card.

    Args:
        search: what to search.
        fresh: delete the folder's former results first.
        console: where progress is drawn (default: standard error, if it is a terminal).

    Raises:
        UserError: a scorer is unknown, the test is too small for the precision asked, nothing meets the budget, the
            model's layers cannot be switched, samples cannot be made; see :class:`SearchFolder`, too.
        Interrupted: Ctrl-C; what was measured is kept.
    """
    scorers = parse_scorers(search)
    check_precision(search, search.test.num_samples)
    for task in (*search.calibration.tasks, *search.test.tasks):
        task.check()
        task.grader.check()
    console = console or Console(stderr=True)
    with SearchFolder(search, fresh=fresh) as folder:
        try:
            with stoppable():
                found = find(search, scorers, folder, console)
                first = after_calibration(found.scored, search.halving.keep)
                print_line(console, f"second stage: {len(first)} of {len(found.scored)} candidates")
                second = validate(search, first, folder.path / VALIDATION, console)
                third = after_validation(second, search.halving.keep, search.halving.metric)
                print_line(console, f"test: {len(third)} candidates, and controls")
                outcome = _test(search, third, found.cost_model, console)
                stages = found, second, third
                _write(search, folder, outcome, stages)  # whatever becomes of the measurement
                winners = outcome.to_measure
                if search.measure is not None and winners:
                    print_line(console, f"measurement: full attention, {', '.join(winners)}")
                    outcome = dataclasses.replace(outcome, measurement=measure(search, winners, console))
                    _write(search, folder, outcome, stages)
        except (StopRequested, Interrupted):
            raise Interrupted(
                f"Interrupted; what was measured is kept in {folder.path}. "
                "Run the same command again to go on from there."
            ) from None
        return outcome


def controls_of(search: Search, finalists: Sequence[Scored], cost_model: CostModel) -> list[tuple[str, Candidate]]:
    """The controls of the candidates that are tested, each with its role; full attention itself is none."""
    shape, asked = cost_model.shape, search.controls
    units = all_units(search.space, shape)
    cells: dict[object, Candidate] = {}
    for one in finalists:
        cells.setdefault((one.candidate.base, len(one.candidate.chosen)), one.candidate)
    found = []
    for candidate in cells.values():
        if candidate.chosen:
            found += [("fixed pattern", fixed(candidate, units))] if asked.same_counts else []
            found += [("random set", randomly(candidate, units, draw, asked.seed)) for draw in range(asked.random)]
    for base in bases(search.space):
        if any(one.candidate.base == base for one in finalists):
            for index, pattern in enumerate(asked.patterns):
                found.append(("fixed pattern", patterned(base, pattern, shape, f"controls.patterns[{index}]")))
    return [(role, one) for role, one in found if one.policy != FullAttention()]


def _test(search: Search, finalists: Sequence[Scored], cost_model: CostModel, console: Console) -> Outcome:
    """Evaluate the finalists, full attention and the controls on the held-out samples."""
    chosen = {(one.candidate.base, one.candidate.chosen): one for one in finalists}
    controls = controls_of(search, finalists, cost_model)
    roles = {(one.base, one.chosen): role for role, one in reversed(controls)}
    candidates = merged([*(one.candidate for one in finalists), *(one for _, one in controls)])
    experiment = test_of(search, candidates)
    run_evaluation(experiment, console=console)
    records = read_run(experiment.output).records
    whole = cost_model.costs(FullAttention(), len(all_units(search.space, cost_model.shape)))
    asked = {recipe.name: recipe.hash for recipe in experiment.recipes}

    def entry(name: str, role: str, scored: Scored | None) -> Entry:
        costs = whole if scored is None else scored.costs
        mine = tuple(record for record in records if record.recipe_hash == asked[name])
        return Entry(name, role, scored, costs, not excess(search.budget, costs), mine)

    entries = [entry(FULL, "full attention", None)]
    for candidate in candidates:
        key = candidate.base, candidate.chosen
        known = chosen.get(key) or Scored(candidate, cost_model.of_candidate(candidate))
        scored = dataclasses.replace(known, candidate=candidate)
        entries.append(entry(candidate.name, "chosen" if key in chosen else roles[key], scored))
    return judge(entries, search.scenarios, new_tokens=search.request_tokens)


def _write(search: Search, folder: SearchFolder, outcome: Outcome, stages: Stages) -> None:
    """Write everything that the folder's docstring names."""
    found, second, third = stages
    folder.clear_recipes()
    for one in outcome.tested:
        if one.scored is not None and outcome.is_ready(one):
            folder.write(recipe_file(one.name), experiment_of(search, one).to_yaml())
    result = {
        "model": dataclasses.asdict(search.model),
        "cost_model": {
            "prompt_length": found.cost_model.prompt_length,
            "new_tokens": found.cost_model.new_tokens,
            "machine": found.cost_model.machine.to_dict(),
        },
        "evaluations": found.evaluations,
        "candidates": [_stage(one) for one in found.scored],
        "second_stage": [one.candidate.name for one in second],
        "tested": [one.candidate.name for one in third],
        "outcome": outcome.to_dict(),
    }
    folder.write(RESULT, f"{json.dumps(result, ensure_ascii=False, indent=1)}\n")
    folder.write(FRONT, to_csv(outcome))
    panels = panels_of(outcome, unit=search.space.unit, units=len(all_units(search.space, found.cost_model.shape)))
    folder.write(PLOT, to_svg(panels, title=search.model.name))
    write_png(panels, folder.path / PNG, title=search.model.name)
    folder.write(CARD, to_card(search, outcome, found, second, plot=PLOT))


def experiment_of(search: Search, one: Tested) -> Experiment:
    """The experiment that tests a recipe beside full attention, as the search did."""
    assert one.scored is not None
    experiment = test_of(search, [one.scored.candidate])
    return dataclasses.replace(experiment, output=Path("runs") / Path(recipe_file(one.name)).stem)


def _stage(one: Scored) -> dict[str, object]:
    return {
        "name": one.candidate.name,
        "origins": list(one.candidate.origins),
        "units": one.candidate.units,
        "calibration_nll": one.calibration_nll,
        **dataclasses.asdict(one.costs),
    }

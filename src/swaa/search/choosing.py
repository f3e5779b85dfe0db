"""From a search to candidates: load the model, let every scorer choose over every base policy, score the choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from swaa.config import Experiment, Search
from swaa.engine.grid import context_of
from swaa.engine.own_code import code_of
from swaa.engine.progress import make_progress, print_line
from swaa.engine.resumable import MEND
from swaa.engine.samples import make_samples
from swaa.errors import UserError, invalid
from swaa.hf import apply_policy, model_shape
from swaa.hf.loading import load
from swaa.hf.spec import saved_policy, saved_scores
from swaa.policies import FullAttention
from swaa.reading import within
from swaa.report.stats import wilson
from swaa.search.book import ScoreBook
from swaa.search.budget import CostModel, check_met, excess
from swaa.search.calibration import Item, calibration_items
from swaa.search.folder import SCORES, TEST, Choice, SearchFolder
from swaa.search.halving import Scored, recipe_of
from swaa.search.probe import Probe
from swaa.search.scorers import Scorer, parse_scorer
from swaa.search.space import Base, Candidate, all_units, bases, check_counts, fixed, merged, patterned


@dataclass(frozen=True)
class Found:
    """What the first stage leaves.

    Attributes:
        scored: candidates within the budget, each once, with their NLL on the calibration samples.
        cost_model: what predicted their costs.
        evaluations: forward passes of one calibration sample that this took now.
    """

    scored: tuple[Scored, ...]
    cost_model: CostModel
    evaluations: int


def parse_scorers(search: Search) -> tuple[Scorer, ...]:
    """The scorers of a search.

    Raises:
        UserError: one is unknown (the nearest is suggested), wrong, there already, or ranks other units than the space
            has.
    """
    found: list[Scorer] = []
    for index, value in enumerate(search.scorers):
        path = f"scorers[{index}]"
        with within(path):
            scorer = parse_scorer(value)
        units = "heads" if scorer.by_head else "layers"
        if units != search.space.unit:
            mend = f"Take another scorer, or write space.unit: {units}."
            raise UserError(f"{path}: {scorer.name} ranks {units}, and space.unit is {search.space.unit}. {mend}")
        if scorer in found:
            raise UserError(f"{path}: {scorer.label} is there already. Remove one of them.")
        found.append(scorer)
    return tuple(found)


def check_precision(search: Search, samples: int) -> None:
    """Refuse a test whose samples are too few for the interval that is asked for.

    Args:
        samples: of the test.

    Raises:
        UserError: the 95 % interval of an accuracy of one half, the widest there is, is wider than ``precision`` asks.
    """
    asked = search.precision
    if asked is None or half_width(samples) <= asked:
        return
    enough = samples
    while half_width(enough) > asked:
        enough = enough + 1 if enough < 64 else int(enough * 1.02) + 1
    cells = len(search.test.tasks) * len(search.test.lengths)
    raise UserError(
        f"test.num_examples: {samples} samples know an accuracy to +-{half_width(samples):.3f}, and precision asks for "
        f"+-{asked:g}. Set it to {-(-enough // cells)} or more, or precision to {half_width(samples) + 5e-4:.3f}."
    )


def check_request(search: Search, context: int | None) -> None:
    """Refuse a request to be timed that is longer than the model's context, now rather than after the test.

    Raises:
        UserError: it is.
    """
    length, new_tokens = search.request_length, search.request_tokens
    if search.measure is None or context is None or length + new_tokens <= context:
        return
    accepted = f"at most {context - new_tokens}, as {new_tokens} new tokens follow and the model's context is {context}"
    mend = "Lower it, or write measure: null, so that winners are predicted and not timed."
    raise invalid("request.length", accepted=accepted, got=length, mend=mend)


def half_width(samples: int) -> float:
    """Half the width of the 95 % interval of an accuracy of one half, of so many samples."""
    interval = wilson(samples // 2, samples)
    return (interval.high - interval.low) / 2


def find(search: Search, scorers: Sequence[Scorer], folder: SearchFolder, console: Console) -> Found:
    """Let the scorers choose, and score what they chose; what is on record is not measured again.

    Raises:
        UserError: the model cannot be had or its layers cannot be switched, nothing is within the budget, samples
            cannot be made or are too few.
    """
    model, tokenizer = _load(search, console)
    with apply_policy(model, bases(search.space)[0].policy, kernel=search.model.kernel):
        pass  # refuses a model whose layers cannot be switched; of some, not even their attention heads are known
    shape = model_shape(model)
    check_counts(search.space, shape)
    for index, pattern in enumerate(search.controls.patterns):
        patterned(bases(search.space)[0], pattern, shape, f"controls.patterns[{index}]")
    cost_model = CostModel.of(search, shape, model.device.type)
    cells = _affordable(search, cost_model)
    check_precision(search, _test_samples(search, tokenizer, model))
    check_request(search, context_of(model))  # whose length is that of the test where none is set: told above
    items = _items(search, tokenizer)
    book = ScoreBook(folder.path / SCORES)
    candidates: list[Candidate] = []
    losses: dict[tuple[Base, tuple[object, ...]], float] = {}
    evaluations = 0
    with _ScorerProgress(console) as progress:
        for base in bases(search.space):
            counts = [count for of, count in cells if of == base]
            if not counts:
                continue
            print_line(console, f"base policy {base.policy!r}")
            probe = Probe(
                model,
                items,
                base.policy,
                batch_size=search.batch_size,
                book=book,
                kernel=search.model.kernel,
                progress=progress.tell,
            )
            for choice in _choices(probe, base, counts, scorers, folder):
                candidates.append(Candidate(base, choice.chosen, (choice.scorer,), shape.num_layers, shape.num_heads))
                losses[base, choice.chosen] = choice.nll
            evaluations += probe.evaluations
    every = [Scored(one, cost_model.of_candidate(one), losses[one.base, one.chosen]) for one in merged(candidates)]
    check_met(search.budget, {one.candidate.name: one.costs for one in every})  # of heads, only now it is known
    within_budget = [one for one in every if not excess(search.budget, one.costs)]
    return Found(tuple(within_budget), cost_model, evaluations)


def _load(search: Search, console: Console) -> tuple[Any, Any]:
    """The model and its tokenizer; what a checkpoint brings along as its policy is off, as in an evaluation."""
    config = search.model
    model, tokenizer = load(config.name, dtype=config.dtype, device=config.device)
    own, scores = saved_policy(model.config), saved_scores(model.config)
    if own is not None:
        apply_policy(model, FullAttention())
        also = "" if scores is None else f" and its scores {scores!r}"
        print_line(console, f"the checkpoint's own policy {own!r}{also} is left off: a search puts on its own")
    return model, tokenizer


def _choices(
    probe: Probe, base: Base, counts: Sequence[int], scorers: Sequence[Scorer], folder: SearchFolder
) -> list[Choice]:
    """The choices over one base policy, from the record or made now.

    Raises:
        UserError: a choice on record is of other samples, weights or code of a scorer than there are now.
    """
    known, found = folder.choices(), []
    for scorer in scorers:
        code = code_of(type(scorer))
        subject = probe.subject if code is None else f"{probe.subject} {code[:16]}"
        for count in counts:
            choice = known.get((base.label, scorer.label, count))
            if choice is not None and choice.subject not in ("", subject):
                raise UserError(
                    f"{folder.path} holds results of a different search: when {scorer.label} chose {count} of the "
                    f"units over {base.label}, the samples (a file's rows, say), the weights or the scorer's code were "
                    f"others. {MEND}"
                )
            if choice is None:
                chosen = scorer.choose(probe, count)
                choice = Choice(base.label, scorer.label, count, chosen, float(probe.nll(chosen).mean()), subject)
                folder.add(choice)
            found.append(choice)
    return found


def _affordable(search: Search, cost_model: CostModel) -> list[tuple[Base, int]]:
    """The base policies and counts that are worth scoring; full attention itself, the count of all units, is not.

    Any layers of one count cost the same. Heads do not, so that all of them are scored.

    Raises:
        UserError: none of layers is within the budget.
    """
    units = all_units(search.space, cost_model.shape)
    shape = cost_model.shape
    cells = [(base, count) for base in bases(search.space) for count in search.space.counts if count < len(units)]
    if not cells:
        mend = "Add a smaller one, such as 0."
        raise UserError(f"space.counts: all {len(units)} {search.space.unit} are full attention itself. {mend}")
    if search.space.unit == "heads":
        return cells
    costs = {}
    for base, count in cells:
        some = fixed(Candidate(base, tuple(units[:count]), ("",), shape.num_layers, shape.num_heads), units)
        costs[base, count] = cost_model.of_candidate(some)
    named = {f"{base.policy!r} with {count} full layers": cost for (base, count), cost in costs.items()}
    check_met(search.budget, named)
    return [cell for cell in cells if not excess(search.budget, costs[cell])]


def _test_samples(search: Search, tokenizer: Any, model: Any) -> int:
    """Samples of the test, made now so that a mistake in it is told before anything is measured."""
    return len(make_samples(test_of(search, []), tokenizer, context=context_of(model)).samples)


def test_of(search: Search, candidates: Sequence[Candidate]) -> Experiment:
    """The test of candidates, full attention first."""
    asked = search.test
    return Experiment(
        recipes=tuple(recipe_of(search, one) for one in (None, *candidates)),
        tasks=asked.tasks,
        lengths=asked.lengths,
        output=search.output / TEST,
        plugins=search.plugins,
        model=search.model,
        num_examples=asked.num_examples,
        seed=asked.seed,
        batch_size=search.batch_size,
        scoring=asked.scoring,
    )


def _items(search: Search, tokenizer: Any) -> tuple[Item, ...]:
    """The calibration samples of a search."""
    asked = search.calibration
    return calibration_items(
        asked.tasks, tokenizer, length=asked.length, num_examples=asked.num_examples, seed=asked.seed
    )


class _ScorerProgress:
    """A bar for the scorer at work; where the console is no terminal, a line as each ends."""

    def __init__(self, console: Console) -> None:
        self._bars = make_progress(console)
        self._bar = self._bars.add_task("scorers", total=None)

    def __enter__(self) -> _ScorerProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def tell(self, what: str, done: int, total: int) -> None:
        """As a scorer goes on."""
        self._bars.update(self._bar, description=what, completed=done, total=total)
        if done == total and not self._bars.console.is_terminal:
            print_line(self._bars.console, f"  {what}: {total} of {total}")

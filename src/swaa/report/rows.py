"""Records -> rows of tables: what each recipe did, with intervals, and against a baseline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from swaa.report.paired import Paired, compare_paired, holm
from swaa.report.passk import mean_pass_at_k, usual_ks
from swaa.report.records import Record
from swaa.report.runs import Stretch
from swaa.report.stats import Estimate, bootstrap, example_means, mean, share

Example: TypeAlias = tuple[str, int, str]
"""Task, length and id."""
Answers: TypeAlias = dict[Example, list[float]]
"""A value of each answer that has one, by example."""
METRICS = {"score": "score", "forced": "forced_exact"}
"""What differences are of -> what a record calls it."""


@dataclass(frozen=True)
class Row:
    """What one recipe did on one task at one length, or on another part of it; None where it was not measured.

    Means are over examples, each the mean of its own answers; intervals are of 95 %.

    Attributes:
        length: the prompt length that was asked for, in tokens; None for a part that has several.
        n: examples.
        accuracy: share of answers that the grader gives everything.
        score: mean of the grader.
        forced: share of samples whose every answer token was the likeliest (teacher-forced).
        nll: mean over samples of the nats per answer token.
        prefill_seconds: mean seconds per sample.
        decode_ms: mean milliseconds per decode step.
        visible_pair_share: mean share of full attention's query-key pairs.
        kv_share: mean share of full attention's KV bytes after prefill.
        score_interval: ``score`` with its interval.
        nll_interval: ``nll`` with its interval.
        answers: records, where there are several of an example; else None.
        graded: answers with a grade, where some lack one; else None.
        errors: answers that could not be graded.
        unparsed: answers of which a judge's verdict could not be read.
        truncated: share of answers that were cut before their final answer.
        new_tokens: tokens of an answer.
        passes: pass@k by k, where there are several answers of an example.
        is_baseline: whether this is what others are compared with.
        paired: the difference to the baseline, in ``metric``.
        metric: what ``paired`` is a difference of: ``score``, or ``forced`` where nothing was generated.
        delta_nll: of long text, nats per token more than under full attention.
        long_ppl: perplexity of long text's key tokens.
        run: the run's label, where there are several.
        part: which part of the samples this is, where not a length.
    """

    recipe: str
    task: str
    length: int | None
    n: int
    accuracy: Estimate | None
    score: float | None
    forced: Estimate | None
    nll: float | None
    prefill_seconds: float | None
    decode_ms: float | None
    visible_pair_share: float | None
    kv_share: float | None
    score_interval: Estimate | None = None
    nll_interval: Estimate | None = None
    answers: int | None = None
    graded: int | None = None
    errors: int = 0
    unparsed: int = 0
    truncated: Estimate | None = None
    new_tokens: Estimate | None = None
    passes: tuple[tuple[int, Estimate], ...] = ()
    is_baseline: bool = False
    paired: Paired | None = None
    metric: str = "score"
    delta_nll: Estimate | None = None
    long_ppl: Estimate | None = None
    run: str = ""
    part: str = ""


@dataclass(frozen=True)
class Cell:
    """What a row is made of.

    Attributes:
        records: at least one; all of one recipe and task.
        baseline: the baseline's records on this part of the samples; None in the baseline's own row, or without one.
        is_baseline: whether this is the baseline.
        stretches: the recipe's, of long text.
        run: the run's label.
        part: the name of the part; empty where that is the records' task and length.
    """

    records: Sequence[Record]
    baseline: Sequence[Record] | None = None
    is_baseline: bool = False
    stretches: Sequence[Stretch] = field(default=())
    run: str = ""
    part: str = ""


def summarise(
    records: Iterable[Record], *, baseline: str | None = None, stretches: Sequence[Stretch] = ()
) -> list[Row]:
    """One row per task, length and recipe, each in the order of its first record.

    Args:
        records: of one run.
        baseline: hash of the recipe that the others are compared with (:func:`swaa.report.runs.find_baseline`).
        stretches: how likely long text is under the recipes.
    """
    recipes: dict[str, None] = {}
    groups: dict[tuple[str, int], dict[str, list[Record]]] = {}
    for record in records:
        recipes.setdefault(record.recipe_hash)
        group = groups.setdefault((record.task, record.length), {})
        group.setdefault(record.recipe_hash, []).append(record)
    rows = []
    for group in groups.values():
        cells = [
            Cell(
                group[recipe],
                baseline=None if baseline in (None, recipe) else group.get(baseline or ""),
                is_baseline=recipe == baseline,
                stretches=[one for one in stretches if one.recipe_hash == recipe],
            )
            for recipe in recipes
            if recipe in group
        ]
        rows += make_rows(cells)
    return rows


def make_rows(cells: Sequence[Cell]) -> list[Row]:
    """The rows of one table; its comparisons with the baseline are corrected for one another."""
    measured = {name for cell in cells for record in cell.records for name in record.scores}
    metric = "forced" if "forced_exact" in measured and "score" not in measured else "score"
    rows = [_row(cell, metric) for cell in cells]
    corrected = iter(holm([row.paired.p for row in rows if row.paired]))
    return [
        dataclasses.replace(row, paired=dataclasses.replace(row.paired, p_holm=next(corrected))) if row.paired else row
        for row in rows
    ]


def answers(records: Iterable[Record], value: Callable[[Record], float | None]) -> Answers:
    """``value`` of each answer that has it, by example."""
    found: Answers = {}
    for record in records:
        number = value(record)
        if number is not None:
            found.setdefault((record.task, record.length, record.example), []).append(number)
    return found


def _row(cell: Cell, metric: str) -> Row:
    records, first = cell.records, cell.records[0]
    examples = len({(record.task, record.length, record.example) for record in records})
    errors = sum(record.error is not None for record in records)
    unparsed = sum(record.error is None and record.verdict == "unparsed" for record in records)
    score, nll = _estimate(records, _scored("score")), _estimate(records, _scored("forced_nll"))
    return Row(
        recipe=first.recipe,
        task=first.task,
        length=None if cell.part else first.length,
        n=examples,
        accuracy=_estimate(records, lambda record: _whole(record.scores.get("all_correct"))),
        score=score.value if score else None,
        forced=_estimate(records, lambda record: _whole(record.scores.get("forced_exact"))),
        nll=nll.value if nll else None,
        prefill_seconds=mean(record.timing.get("prefill_seconds") for record in records),
        decode_ms=mean(record.timing.get("decode_ms_per_token") for record in records),
        visible_pair_share=mean(record.cost.get("visible_pair_share") for record in records),
        kv_share=mean(record.cost.get("kv_share") for record in records),
        score_interval=score,
        nll_interval=nll,
        answers=len(records) if len(records) > examples else None,
        graded=sum("score" in record.scores for record in records) if errors or unparsed else None,
        errors=errors,
        unparsed=unparsed,
        truncated=_estimate(records, _scored("truncated")),
        new_tokens=_estimate(records, lambda record: record.timing.get("new_tokens"), is_share=False),
        passes=_passes(records),
        is_baseline=cell.is_baseline,
        paired=_paired(cell, metric),
        metric=metric,
        delta_nll=_over_text(cell.stretches, lambda one: one.delta_nll, lambda one: one.tokens),
        long_ppl=_exp(_over_text(cell.stretches, lambda one: one.long_nll, lambda one: one.key_tokens)),
        run=cell.run,
        part=cell.part,
    )


def _scored(name: str) -> Callable[[Record], float | None]:
    return lambda record: record.scores.get(name)


def _whole(score: float | None) -> float | None:
    """1.0 for everything, 0.0 for less."""
    return None if score is None else float(score == 1)


def _estimate(
    records: Sequence[Record], value: Callable[[Record], float | None], *, is_share: bool = True
) -> Estimate | None:
    """The mean with its interval, of a share where all values are 0 or 1; None where no record has the value."""
    some = list(answers(records, value).values())
    if not some:
        return None
    if is_share and all(number in (0, 1) for each in some for number in each):
        return share(some)
    return bootstrap(example_means(some))


def _passes(records: Sequence[Record]) -> tuple[tuple[int, Estimate], ...]:
    some = list(answers(records, _scored("all_correct")).values())
    found = ((k, mean_pass_at_k(some, k)) for k in usual_ks(max(map(len, some), default=0)))
    return tuple((k, estimate) for k, estimate in found if estimate)


def _paired(cell: Cell, metric: str) -> Paired | None:
    if cell.baseline is None:
        return None
    value = _scored(METRICS[metric])
    return compare_paired(answers(cell.records, value), answers(cell.baseline, value))


def _over_text(
    stretches: Sequence[Stretch], value: Callable[[Stretch], float | None], weight: Callable[[Stretch], int]
) -> Estimate | None:
    """The mean over all tokens that count, with an interval over stretches; None where there is none."""
    pairs = [(number, weight(one)) for one in stretches if (number := value(one)) is not None and weight(one) > 0]
    return bootstrap([number for number, _ in pairs], [tokens for _, tokens in pairs]) if pairs else None


def _exp(nats: Estimate | None) -> Estimate | None:
    """The perplexity of a mean NLL; exp is monotone, so its ends are the ends. Past what a float holds: infinity."""
    if nats is None:
        return None
    low, high = (None if end is None else _exp_or_inf(end) for end in (nats.low, nats.high))
    return Estimate(_exp_or_inf(nats.value), low, high, nats.n)


def _exp_or_inf(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:  # above 709 nats
        return math.inf

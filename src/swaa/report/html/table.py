"""The table of recipes: what each column says, how it sorts, and what stands in the CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swaa.report.html.figures import Figures, Group
from swaa.report.html.marks import described, glyph_of
from swaa.report.html.markup import Markup, element, join
from swaa.report.stats import Estimate

Value = float | int | str | None
MINUS, DASH, TIMES = "\u2212", "\u2013", "\u00d7"
_STRIP = 100
"""Width of the drawn interval, in CSS pixels."""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: its head.
        meaning: what it says, with its unit, for the notes.
        value: what it sorts by, and what the CSV file has.
        cell: what is shown.
        name: of the CSV column.
        kind: CSS class.
    """

    title: str
    name: str
    meaning: str
    value: Callable[[Group, Figures], Value]
    cell: Callable[[Group, Figures], object]
    kind: str = "number"


def percent(share: float | None, digits: int = 0) -> str:
    """A share in percent, without the sign; a dash for none."""
    return DASH if share is None else f"{100 * share:.{digits}f}"


def signed(share: float | None) -> str:
    """A difference in points, with its sign; a dash for none."""
    if share is None:
        return DASH
    if not math.isfinite(share):
        return str(share)
    points = round(100 * share)
    return "0" if points == 0 else f"+{points}" if points > 0 else f"{MINUS}{-points}"


def number(value: float | None, form: str) -> str:
    """A number, or a dash."""
    return DASH if value is None else format(value, form).replace("-", MINUS)


def interval(estimate: Estimate | None, form: Callable[[float | None], str] = percent) -> Markup | str:
    """A value with its interval in smaller letters."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return form(estimate.value if estimate else None)
    ends = element("span", f"{form(estimate.low)} to {form(estimate.high)}", class_="ends")
    return join(element("b", form(estimate.value)), " ", ends)


def _recipe(group: Group, figures: Figures) -> Markup:
    entry = figures.entry
    told = described(entry)
    words = element("span", told, class_="quiet") if told else None
    name = element("span", entry.info.name, class_="name")
    return join(glyph_of(entry), element("span", name, words, class_="names"))


def _accuracy(group: Group, figures: Figures) -> object:
    """The number, and the interval drawn on a scale from 0 to 1, with a rule at full attention."""
    share = figures.accuracy
    if share is None:
        return DASH
    low, high = (share.value if end is None else end for end in (share.low, share.high))
    drawn = [element("line", class_="grid", x1=0, x2=_STRIP, y1=9, y2=9)]
    full = next(
        (row.accuracy for row in group.rows if row.row.is_baseline and row.entry.run == figures.entry.run), None
    )
    if full is not None:
        x = f"{_STRIP * full.value:.1f}"
        drawn.append(element("line", class_="reference", x1=x, x2=x, y1=0, y2=18))
    ends = {"x1": f"{_STRIP * low:.1f}", "x2": f"{_STRIP * high:.1f}"}
    drawn.append(element("line", class_="span", y1=9, y2=9, **ends))
    drawn.append(element("circle", class_="dot", cx=f"{_STRIP * share.value:.1f}", cy=9, r=3.5))
    size = {"viewBox": f"-4 0 {_STRIP + 8} 18", "width": _STRIP + 8, "height": 18}
    strip = element("svg", *drawn, class_=f"strip f-{figures.entry.family}", aria_hidden="true", **size)
    return element("span", element("span", interval(share), class_="figure"), strip, class_="accuracy")


def _difference(group: Group, figures: Figures) -> object:
    if figures.row.is_baseline:
        return element("span", "baseline", class_="quiet")
    return interval(figures.row.paired.difference, signed) if figures.row.paired else DASH


def _p(value: float | None) -> str:
    return DASH if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def _over(group: Group, figures: Figures) -> object:
    over = group.over_line(figures)
    kind = "quiet" if over is None or abs(over) < 0.005 else "good" if over > 0 else "bad"
    return element("span", signed(over), class_=kind)


def speed(group: Group, figures: Figures) -> float | None:
    """How many times faster than the run's full attention; None where either was not timed."""
    same = (row.seconds for row in group.rows if row.row.is_baseline and row.entry.run == figures.entry.run)
    full = next(same, None)
    return full / figures.seconds if full and figures.seconds else None


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


COLUMNS = (
    Column(
        "#", "number", "number of the row all over this page", lambda g, f: f.entry.number, lambda g, f: f.entry.number
    ),
    Column(
        "recipe",
        "recipe",
        "policy, prompting and fine-tuning, by name",
        lambda g, f: f.entry.info.name,
        _recipe,
        "words",
    ),
    Column("run", "run", "folder of the run", lambda g, f: f.entry.run, lambda g, f: f.entry.run, "words"),
    Column("n", "n", "examples", lambda g, f: f.row.n, lambda g, f: f.row.n),
    Column(
        "accuracy %",
        "accuracy",
        "share of answers that have everything the grader looks for (of forced answers, where nothing was generated), "
        "with its 95 % interval (Wilson's; a bootstrap over examples where there are several answers to one); "
        "the thin upright is full attention",
        lambda g, f: _value(f.accuracy),
        _accuracy,
    ),
    Column(
        "over line",
        "over_line",
        "accuracy less that of the line from naive sliding-window attention to full attention at the same time, in "
        "points; the line is of the same run and way of asking, without fine-tuning",
        lambda g, f: g.over_line(f),
        _over,
    ),
    Column(
        "difference",
        "difference",
        "to full attention (the baseline) on the same examples, in points of the score, with its 95 % interval",
        lambda g, f: f.row.paired.difference.value if f.row.paired else None,
        _difference,
    ),
    Column(
        "p",
        "p",
        "of that difference, by the paired sign-flip test (exact McNemar for right and wrong)",
        lambda g, f: f.row.paired.p if f.row.paired else None,
        lambda g, f: _p(f.row.paired.p if f.row.paired else None),
    ),
    Column(
        "p Holm",
        "p_holm",
        "p corrected for the rows of the run's table",
        lambda g, f: f.row.paired.p_holm if f.row.paired else None,
        lambda g, f: _p(f.row.paired.p_holm if f.row.paired else None),
    ),
    Column(
        "score %",
        "score",
        "mean of the grader; for needles the share found",
        lambda g, f: f.row.score,
        lambda g, f: percent(f.row.score),
    ),
    Column(
        "s/request",
        "seconds_per_request",
        "machine seconds of a request: its share of the batch's prefill, and of each decode step of the batch",
        lambda g, f: f.seconds,
        lambda g, f: number(f.seconds, ".3g"),
    ),
    Column(
        "speed",
        "speed",
        "full attention's seconds a request over this row's",
        lambda g, f: speed(g, f),
        lambda g, f: DASH if speed(g, f) is None else f"{speed(g, f):.2f}{TIMES}",
    ),
    Column(
        "pairs %",
        "visible_pair_share",
        "query-key pairs computed, as a share of full attention's",
        lambda g, f: f.row.visible_pair_share,
        lambda g, f: percent(f.row.visible_pair_share),
    ),
    Column(
        "KV %",
        "kv_share",
        "bytes of keys and values kept after the prompt, as a share of full attention's",
        lambda g, f: f.row.kv_share,
        lambda g, f: percent(f.row.kv_share),
    ),
    Column(
        "forced NLL",
        "forced_nll",
        "nats per token of the reference answer, each token given the right ones before it",
        lambda g, f: f.row.nll,
        lambda g, f: number(f.row.nll, ".2f"),
    ),
    Column(
        "new tokens",
        "new_tokens",
        "tokens of an answer, mean",
        lambda g, f: _value(f.row.new_tokens),
        lambda g, f: number(_value(f.row.new_tokens), ".0f"),
    ),
    Column(
        "cut %",
        "truncated",
        "share of answers whose reasoning was cut before a final answer",
        lambda g, f: _value(f.row.truncated),
        lambda g, f: percent(_value(f.row.truncated)),
    ),
    Column(
        "best pass@k %",
        "pass_at_most",
        "chance that one of k answers to an example is right, for the largest k there is (k stands beside it)",
        lambda g, f: f.row.passes[-1][1].value if f.row.passes else None,
        lambda g, f: f"{percent(f.row.passes[-1][1].value)} (k {f.row.passes[-1][0]})" if f.row.passes else DASH,
    ),
    Column(
        "errors",
        "errors",
        "answers that could not be graded; they are in no figure",
        lambda g, f: f.row.errors or None,
        lambda g, f: f.row.errors or DASH,
    ),
    Column(
        "unparsed",
        "unparsed",
        "answers whose verdict by the judge could not be read; they are in no figure",
        lambda g, f: f.row.unparsed or None,
        lambda g, f: f.row.unparsed or DASH,
    ),
    Column(
        "ΔNLL",
        "delta_nll",
        "on long texts: nats per token above those of full attention",
        lambda g, f: _value(f.row.delta_nll),
        lambda g, f: number(_value(f.row.delta_nll), "+.3f"),
    ),
    Column(
        "LongPPL",
        "long_ppl",
        "perplexity of those tokens of long texts that only long context makes likely (arXiv 2410.23771)",
        lambda g, f: _value(f.row.long_ppl),
        lambda g, f: number(_value(f.row.long_ppl), ".2f"),
    ),
)


def columns_of(groups: Sequence[Group]) -> list[Column]:
    """The columns that have something to say in these groups; ``run`` where there are several."""
    pairs = [(group, row) for group in groups for row in group.rows]
    left_out = {"run"} if len({row.entry.run for _, row in pairs}) == 1 else set()
    if all(row.accuracy is not None and row.row.score == row.accuracy.value for _, row in pairs):
        left_out.add("score")  # the grader knows only right and wrong
    return [
        column
        for column in COLUMNS
        if column.name not in left_out and any(column.value(*pair) is not None for pair in pairs)
    ]


def table(group: Group, columns: Sequence[Column]) -> Markup:
    """The table of a group; its heads are buttons that sort (``page.js``)."""
    heads = [
        element(
            "th",
            element("button", column.title, element("span", class_="arrow", aria_hidden="true"), type="button"),
            class_=f"{column.kind} c-{column.name}",
            scope="col",
            title=column.meaning,
            aria_sort="ascending" if column.name == "number" else "none",
        )
        for column in columns
    ]
    rows = [
        element("tr", *(_td(column, group, row) for column in columns), data_row=row.entry.number) for row in group.rows
    ]
    caption = element("caption", group.title, class_="unseen")
    return element(
        "div",
        element("table", caption, element("thead", element("tr", *heads)), element("tbody", *rows), class_="recipes"),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=f"Recipes: {group.title}",
    )


def _td(column: Column, group: Group, row: Figures) -> Markup:
    value = column.value(group, row)
    tag, scope = ("th", "row") if column.name == "recipe" else ("td", None)
    kind = f"{column.kind} c-{column.name}"
    return element(tag, column.cell(group, row), class_=kind, scope=scope, data_value="" if value is None else value)


def table_csv(groups: Sequence[Group]) -> str:
    """All groups as one CSV table at full precision, ends of intervals in columns of their own; empty: not measured."""
    out = io.StringIO()
    names = ["task", "length", *(column.name for column in COLUMNS)]
    ends = ["accuracy_low", "accuracy_high", "difference_low", "difference_high"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *ends, "prompting", "fine_tuning", "policy"])
    for group in groups:
        for row in group.rows:
            difference = row.row.paired.difference if row.row.paired else None
            values = [group.task or group.title, group.length, *(column.value(group, row) for column in COLUMNS)]
            values += [getattr(each, end, None) for each in (row.accuracy, difference) for end in ("low", "high")]
            info = row.entry.info
            writer.writerow([*values, info.prompting, info.fine_tuning, info.policy])
    return out.getvalue()

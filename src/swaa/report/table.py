"""Rows -> tables: for the terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from swaa import markdown
from swaa.report.rows import Row
from swaa.report.stats import Estimate

NOTE = (
    "accuracy: samples whose text has everything that the grader looks for; score: the grader's mean, for needles the "
    "share found; forced: samples whose every answer token is the likeliest, given the right ones before it; "
    "[low,high]: 95 % interval, Wilson's for shares, else a bootstrap over examples. NLL: nats per answer token. "
    "prefill s: seconds per sample; decode ms: milliseconds per token, which is a decode step of a batch. pairs, KV: "
    "query-key pairs computed and KV bytes kept after prefill, as shares of full attention."
)


@dataclass(frozen=True)
class _Column:
    """A column of the printed tables.

    Attributes:
        title: its head.
        cell: how a row fills it.
        meaning: what the note says of it.
        wanted: whether a row has something for it; a column that no row wants is left out.
    """

    title: str
    cell: Callable[[Row], str]
    meaning: str = ""
    wanted: Callable[[Row], bool] = lambda row: True


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _signed_percent(share: float | None) -> str:
    text = _number(share and 100 * share, "+.0f")
    return "0" if text in ("-0", "+0") else text


def _interval(estimate: Estimate | None, form: Callable[[float | None], str] = _percent) -> str:
    if estimate is None or estimate.low is None:
        return form(estimate.value if estimate else None)
    return f"{form(estimate.value)} [{form(estimate.low)},{form(estimate.high)}]"


def _score(row: Row) -> str:
    """With its interval where that is not the accuracy's."""
    same = row.accuracy is not None and row.accuracy == row.score_interval
    return _percent(row.score) if same else _interval(row.score_interval)


def _difference(row: Row) -> str:
    if row.is_baseline:
        return "baseline"
    return _interval(row.paired.difference, _signed_percent) if row.paired else "-"


def p_value(value: float | None) -> str:
    """Three digits; none is 0."""
    return "-" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def _with(decimals: int) -> Callable[[float | None], str]:
    return lambda value: _number(value, f".{decimals}f")


COLUMNS = (
    _Column("recipe", lambda row: row.recipe),
    _Column("n", lambda row: str(row.n)),
    _Column("accuracy %", lambda row: _interval(row.accuracy)),
    _Column("score %", _score),
    _Column("forced %", lambda row: _interval(row.forced)),
    _Column("NLL", lambda row: _number(row.nll, ".2f")),
    _Column("prefill s", lambda row: _number(row.prefill_seconds, ".2f")),
    _Column("decode ms", lambda row: _number(row.decode_ms, ".0f")),
    _Column("pairs %", lambda row: _percent(row.visible_pair_share)),
    _Column("KV %", lambda row: _percent(row.kv_share)),
)
"""What every table has, and no more than 80 columns of a terminal hold."""

_RUN = _Column("run", lambda row: row.run, wanted=lambda row: bool(row.run))

_FEWER = (
    _Column(
        "answers",
        lambda row: _number(row.answers, "d"),
        "answers: of n examples together; means are over examples, each the mean of its answers.",
        lambda row: row.answers is not None,
    ),
    _Column(
        "graded",
        lambda row: _number(row.graded if row.errors + row.unparsed else row.answers or row.n, "d"),
        "graded: answers with a grade, over which accuracy and score are; errors: the grader failed; unparsed: the "
        "judge's verdict could not be read. Neither counts as wrong.",
        lambda row: row.errors + row.unparsed > 0,
    ),
    _Column("errors", lambda row: str(row.errors), wanted=lambda row: row.errors > 0),
    _Column("unparsed", lambda row: str(row.unparsed), wanted=lambda row: row.unparsed > 0),
    _Column(
        "cut %",
        lambda row: _interval(row.truncated),
        "cut: replies whose reasoning was cut short, by the budget of tokens or by max_new_tokens.",
        lambda row: row.truncated is not None,
    ),
    _Column(
        "new tokens",
        lambda row: _interval(row.new_tokens, _with(0)),
        "new tokens: of an answer.",
        lambda row: row.new_tokens is not None,
    ),
)

_COMPARED = (
    _Column(
        "difference %",
        _difference,
        "difference: to the baseline on the same examples, in points of the score (of forced, where nothing was "
        "generated); p: of the paired sign-flip test, exact McNemar for right and wrong; p Holm: corrected for the "
        "rows of this table.",
        lambda row: row.paired is not None,
    ),
    _Column("p", lambda row: p_value(row.paired.p if row.paired else None), wanted=lambda row: row.paired is not None),
    _Column(
        "p Holm",
        lambda row: p_value(row.paired.p_holm if row.paired else None),
        wanted=lambda row: row.paired is not None,
    ),
    _Column(
        "delta-NLL",
        lambda row: _interval(row.delta_nll, _with(3)),
        "delta-NLL: nats per token of long text, beyond full attention's; LongPPL: perplexity of its key tokens.",
        lambda row: row.delta_nll is not None,
    ),
    _Column("LongPPL", lambda row: _interval(row.long_ppl, _with(2)), wanted=lambda row: row.long_ppl is not None),
)


def _pass_columns(rows: Sequence[Row]) -> list[_Column]:
    def column(k: int) -> _Column:
        return _Column(f"pass@{k} %", lambda row: _interval(dict(row.passes).get(k)))

    return [column(k) for k in sorted({k for row in rows for k, _ in row.passes})]


def _extras(rows: Sequence[Row]) -> list[_Column]:
    """The columns beside ``COLUMNS`` that some row fills."""
    columns = [*_FEWER, *_pass_columns(rows), *_COMPARED]
    return [column for column in columns if any(map(column.wanted, rows))]


def _lead(rows: Sequence[Row]) -> list[_Column]:
    return [_RUN] if any(map(_RUN.wanted, rows)) else []


def note(rows: Sequence[Row]) -> str:
    """What the columns of the rows' tables mean."""
    extras = _extras(rows)
    passes = "pass@k: examples of which one of k answers would be right." if any(row.passes for row in rows) else ""
    return " ".join([NOTE, *(text for text in [*(column.meaning for column in extras), passes] if text)])


def to_rich(rows: Sequence[Row]) -> list[Table]:
    """The terminal tables of each task and length, or part; 80 columns are enough for the first of them.

    Names of recipes fold where they must. Where rows have more than ``COLUMNS``, that is a second table.
    """
    tables = []
    lead, extras = _lead(rows), _extras(rows)
    for title, group in _groups(rows):
        tables.append(_rich(title, group, [*lead, *COLUMNS]))
        if extras:
            tables.append(_rich(f"{title} (continued)", group, [*lead, COLUMNS[0], *extras]))
    return tables


def _rich(title: str, rows: Sequence[Row], columns: Sequence[_Column]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for column in columns:
        if column in (COLUMNS[0], _RUN):
            table.add_column(column.title, overflow="fold")
            continue
        width = max(len(column.cell(row)) for row in rows)
        words = max(map(len, column.title.split()))
        table.add_column(column.title, justify="right", min_width=max(width, words))
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    return table


def to_markdown(rows: Sequence[Row]) -> str:
    """One Markdown table per task and length, or part, with the note that says what the columns mean."""
    columns = [*_lead(rows), *COLUMNS, *_extras(rows)]
    parts = []
    for title, group in _groups(rows):
        rules = ["---" if column in (COLUMNS[0], _RUN) else "---:" for column in columns]
        cells = [[column.cell(row) for column in columns] for row in group]
        parts += [f"### {title}", markdown.table([column.title for column in columns], cells, rules)]
    return "\n\n".join([*parts, note(rows)]) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """All rows in one CSV table, at full precision, an interval in two columns; an empty cell was not measured.

    The first columns are always there; of the others, those that some row fills.
    """
    if not rows:
        return ""
    base, more = [_flat(row) for row in rows], [_flat_extras(row) for row in rows]
    names = [*base[0], *dict.fromkeys(name for values in more for name, value in values.items() if value is not None)]
    names.sort(key=lambda name: name not in ("run", "part"))  # stable: these two lead
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**values, **others} for values, others in zip(base, more, strict=True))
    return out.getvalue()


def _ends(name: str, estimate: Estimate | None) -> dict[str, object]:
    values = (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _flat(row: Row) -> dict[str, object]:
    return {
        "task": row.task,
        "length": row.length,
        "recipe": row.recipe,
        "n": row.n,
        **_ends("accuracy", row.accuracy),
        "score": row.score,
        **_ends("forced", row.forced),
        "nll": row.nll,
        "prefill_seconds": row.prefill_seconds,
        "decode_ms_per_token": row.decode_ms,
        "visible_pair_share": row.visible_pair_share,
        "kv_share": row.kv_share,
    }


def _flat_extras(row: Row) -> dict[str, object]:
    """What the columns beside the first hold; None leaves a column out where no row has it."""
    score, nll = _ends("score", row.score_interval), _ends("nll", row.nll_interval)
    del score["score"], nll["nll"]
    paired = row.paired
    return {
        "run": row.run or None,
        "part": row.part or None,
        **score,
        **nll,
        "answers": row.answers,
        "graded": row.graded,
        "errors": row.errors or None,
        "unparsed": row.unparsed or None,
        **_ends("truncated", row.truncated),
        **_ends("new_tokens", row.new_tokens),
        **{name: value for k, estimate in row.passes for name, value in _ends(f"pass_at_{k}", estimate).items()},
        "metric": row.metric if paired else None,
        **_ends("difference", paired.difference if paired else None),
        "pairs": paired.difference.n if paired else None,
        "unpaired": paired.unpaired if paired else None,
        "p": paired.p if paired else None,
        "p_holm": paired.p_holm if paired else None,
        **_ends("delta_nll", row.delta_nll),
        **_ends("long_ppl", row.long_ppl),
    }


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.task}, {row.part or f'{row.length} tokens'}", []).append(row)
    return list(groups.items())

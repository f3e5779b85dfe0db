"""The data of the sample browser: every answer, and every prompt once, cut to what a page can carry.

Texts are lists of pieces, so that no offset has to survive the change from Python's characters to JavaScript's:
``"text"`` is plain, ``["e", "text"]`` is evidence, ``["g", "text"]`` was graded, ``["x", 1234]`` says how many
characters are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swaa.report.html.figures import Entry
from swaa.report.records import Record
from swaa.report.runs import Run, Sample

PROMPT_BYTES, ANSWER_BYTES = 5_000_000, 4_000_000
"""What the prompts and the answers of a page may come to, in UTF-8; texts are cut at the longest limit that fits."""
LIMITS = (200_000, 100_000, 50_000, 20_000, 10_000, 5_000, 2_000, 1_000, 500, 200)
"""Characters of a text."""
MOST_RECORDS = 20_000
"""Answers that a page lists."""

VERDICTS = {
    "right": "right",
    "partly": "partly right",
    "wrong": "wrong",
    "unparsed": "verdict not readable",
    "failed": "grading failed",
    "none": "not graded",
}

Pieces = list[Any]


def browser_data(runs: Mapping[str, Run], entries: Sequence[Entry], measure: str) -> dict[str, Any]:
    """What ``page.js`` reads: rows, prompts, records, and notices of what was cut."""
    rows = {entry.key: place for place, entry in enumerate(entries)}
    asked = [(label, record) for label, run in runs.items() for record in run.records]
    shown = asked[:: -(-len(asked) // MOST_RECORDS)] if asked else []
    texts = {_sample_key(label, sample): sample for label, run in runs.items() for sample in run.samples}
    prompts = _Prompts(texts, (_record_key(label, record) for label, record in shown))
    answer_limit = _limit((record.generated or "" for _, record in shown), ANSWER_BYTES)
    records = [
        [
            rows[label, record.recipe_hash],
            prompts.index[_record_key(label, record)],
            record.generation,
            verdict_of(record, measure),
            _answer(record, answer_limit),
            _facts(record),
        ]
        for label, record in shown
    ]
    return {
        "rows": [_row(entry) for entry in entries],
        "tasks": list(dict.fromkeys(record.task for _, record in shown)),
        "verdicts": VERDICTS,
        "prompts": prompts.items,
        "records": records,
        "notices": _notices(len(asked), len(shown), prompts.limit, prompts.cut, answer_limit, records),
    }


def verdict_of(record: Record, measure: str) -> str:
    """Which of ``VERDICTS`` an answer got."""
    if record.error is not None:
        return "failed"
    if record.verdict == "unparsed":
        return "unparsed"
    if measure not in record.scores:
        return "none"
    if record.scores[measure] == 1:
        return "right"
    return "partly" if record.scores.get("score", 0) > 0 else "wrong"


def _sample_key(label: str, sample: Sample) -> tuple[str, ...]:
    return label, sample.task, str(sample.length), sample.example, sample.prompting


def _record_key(label: str, record: Record) -> tuple[str, ...]:
    return label, record.task, str(record.length), record.example, record.prompting


def _row(entry: Entry) -> dict[str, object]:
    info = entry.info
    return {
        "number": entry.number,
        "name": info.name,
        "run": entry.run,
        "prompting": info.prompting,
        "family": entry.family,
        "tuned": entry.tuned,
    }


class _Prompts:
    """The prompts that records were asked, each distinct one once.

    Attributes:
        items: what the page gets.
        index: key of a record's prompt -> its place in ``items``.
        limit: characters of a prompt that are kept.
        cut: how many prompts were longer.
    """

    def __init__(self, texts: Mapping[tuple[str, ...], Sample], keys: Iterable[tuple[str, ...]]) -> None:
        self.items: list[dict[str, object]] = []
        self.index: dict[tuple[str, ...], int] = {}
        self.cut = 0
        wanted = dict.fromkeys(keys)
        self.limit = _limit({texts[key].prompt for key in wanted if key in texts}, PROMPT_BYTES)
        known: dict[tuple[object, ...], int] = {}
        for key in wanted:
            sample = texts.get(key)
            same = (*key[1:], None if sample is None else sample.prompt)  # the same question in another run
            if same not in known:
                known[same] = len(self.items)
                self.items.append(self._item(key, sample))
            self.index[key] = known[same]

    def _item(self, key: tuple[str, ...], sample: Sample | None) -> dict[str, object]:
        _, task, length, example, prompting = key
        item: dict[str, object] = {"task": task, "length": int(length), "example": example, "prompting": prompting}
        if sample is not None:
            self.cut += len(sample.prompt) > self.limit
            item |= {
                "tokens": sample.prompt_tokens,
                "answer": sample.answer,
                "references": list(sample.references),
                "type": sample.metadata.get("question_type"),
                "pieces": prompt_pieces(sample, self.limit),
            }
        return item


def evidence_of(sample: Sample) -> list[tuple[int, int]]:
    """Where the evidence stands in the rendered prompt, in order and apart; empty where that is not known.

    ``spans`` count in the example's own text; ``prompt_start`` says where that begins in the rendered prompt.
    """
    spans, start = sample.metadata.get("spans"), sample.metadata.get("prompt_start")
    if not isinstance(spans, list) or not isinstance(start, int) or start < 0:
        return []
    merged: list[tuple[int, int]] = []
    for low, high in sorted((int(low) + start, int(high) + start) for low, high in spans):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        elif low < high <= len(sample.prompt):
            merged.append((low, high))
    return merged


def prompt_pieces(sample: Sample, limit: int) -> Pieces:
    """The prompt in pieces: both ends, the evidence and what stands about it, of about ``limit`` characters."""
    spans = evidence_of(sample)
    pieces: Pieces = []
    at = 0
    for low, high in _kept(len(sample.prompt), spans, limit):
        if low > at:
            pieces.append(["x", low - at])
        at = low
        for first, last in spans:
            if low <= first and last <= high:
                pieces += [sample.prompt[at:first], ["e", sample.prompt[first:last]]]
                at = last
        pieces.append(sample.prompt[at:high])
        at = high
    if at < len(sample.prompt):
        pieces.append(["x", len(sample.prompt) - at])
    return [piece for piece in pieces if piece]


def _kept(length: int, spans: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """The stretches of a text that are kept, in order and apart."""
    if length <= limit:
        return [(0, length)]
    about = limit // (4 * (len(spans) + 1))
    evidence = sum(high - low + 2 * about for low, high in spans)
    ends = max(about, (limit - evidence) // 2)
    wanted = [(0, ends), *((max(0, low - about), min(length, high + about)) for low, high in spans)]
    kept: list[tuple[int, int]] = []
    for low, high in [*wanted, (max(0, length - ends), length)]:
        if kept and low <= kept[-1][1]:
            kept[-1] = (kept[-1][0], max(high, kept[-1][1]))
        else:
            kept.append((low, high))
    return kept


def _answer(record: Record, limit: int) -> Pieces | None:
    """The answer in pieces, the graded part marked where it is not all of it."""
    text = record.generated
    if text is None:
        return None
    start = text.rfind(record.final) if record.final else -1
    pieces: Pieces
    if start < 0 or record.final is None:
        pieces = _shortened(text, limit)
    else:
        final, after = record.final, text[start + len(record.final) :]
        room = max(limit - len(final) - len(after), limit // 4)
        pieces = [*_shortened(text[:start], room), ["g", final[:limit]], *_shortened(after, limit // 4)]
    return [piece for piece in pieces if piece]


def _shortened(text: str, limit: int) -> Pieces:
    """Beginning and end, with a notice between them where text is left out."""
    if len(text) <= limit:
        return [text]
    half = limit // 2
    return [text[:half], ["x", len(text) - 2 * half], text[len(text) - half :]]


def _facts(record: Record) -> dict[str, object]:
    """What is shown beside an answer; what is not there is left out."""
    facts: dict[str, object] = {name: round(value, 4) for name, value in record.scores.items()}
    timing = record.timing
    if "new_tokens" in timing:
        facts["new tokens"] = timing["new_tokens"]
    for name in ("ending", "verdict", "error"):
        value = getattr(record, name)
        if value is not None:
            facts[name] = value
    if record.final == "":
        facts["final answer"] = "none reached"
    distance = record.metadata.get("evidence_distance")
    if isinstance(distance, int | float):
        facts["evidence, tokens before the end"] = distance
    return facts


def _limit(texts: Iterable[str], budget: int) -> int:
    """The longest of ``LIMITS`` at which the texts together stay within the budget; the shortest where none does."""
    lengths = [(len(text), len(text.encode("utf-8", "replace"))) for text in texts]
    for limit in LIMITS:
        if sum(size * min(1.0, limit / max(1, length)) for length, size in lengths) <= budget:
            return limit
    return LIMITS[-1]


def _notices(
    asked: int, shown: int, prompt_limit: int, cut: int, answer_limit: int, records: Sequence[Sequence[Any]]
) -> list[str]:
    notices = []
    if shown < asked:
        notices.append(f"{shown:,} of {asked:,} answers are listed here, evenly chosen; the records have them all.")
    if cut:
        many = "1 prompt is" if cut == 1 else f"{cut:,} prompts are"
        notices.append(f"{many} cut to {prompt_limit:,} characters: both ends and what stands about the evidence.")
    cut = sum(any(isinstance(piece, list) and piece[0] == "x" for piece in record[4] or ()) for record in records)
    if cut:
        notices.append(f"{'1 answer is' if cut == 1 else f'{cut:,} answers are'} cut to {answer_limit:,} characters.")
    return notices

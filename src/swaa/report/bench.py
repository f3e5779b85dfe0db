"""Benchmark records: what is written as a benchmark runs, and what it comes to. Never imports torch."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swaa.jsonlines import read_lines


@dataclass(frozen=True)
class Check:
    """A row compared with the dense mask, before it was timed.

    Attributes:
        row, row_hash: which.
        kernel: that its sparse layers ran on.
        length: tokens of the prompt.
        new_tokens: tokens generated after it; of these, ``same_tokens`` were also the row's likeliest.
        equal: whether the differences are those of rounding.
        found: ``float32_difference`` (largest difference of logits, as a share of the largest logit), ``dtype_error``
            and ``dense_dtype_error`` (root mean square from float32, of the row and of the dense mask).
    """

    row: str
    row_hash: str
    kernel: str
    length: int
    new_tokens: int
    same_tokens: int
    equal: bool
    found: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.same_tokens} of {self.new_tokens} tokens are the reference's"]
        if "float32_difference" in self.found:
            parts.append(f"float32 logits differ by at most {self.found['float32_difference']:.1e} of the largest")
        if "dtype_error" in self.found:
            ours, dense = self.found["dtype_error"], self.found["dense_dtype_error"]
            parts.append(f"rounding error {ours:.2g} (dense mask: {dense:.2g})")
        verdict = "equal" if self.equal else "NOT EQUAL"
        return f"{verdict} to the dense mask on {self.kernel}, {self.length} tokens: {'; '.join(parts)}"


@dataclass(frozen=True)
class Run:
    """One timed request. Seconds and bytes.

    Attributes:
        row, row_hash: which.
        length: tokens of the prompt.
        repeat: 0, 1, …
        session: which of the sessions on record it belongs to.
        prefill_seconds: from the prompt to the first new token.
        step_seconds: of each decode step.
        kv_bytes: keys and values held when decoding begins.
        rest_bytes: memory in use before the request, weights among it.
        peak_bytes: the most in use during it.
    """

    row: str
    row_hash: str
    length: int
    repeat: int
    session: int
    prefill_seconds: float
    step_seconds: tuple[float, ...]
    kv_bytes: int | None = None
    rest_bytes: int | None = None
    peak_bytes: int | None = None

    @property
    def request_seconds(self) -> float:
        """The whole request."""
        return self.prefill_seconds + sum(self.step_seconds)

    @property
    def step_median(self) -> float | None:
        """The median decode step; None if there was none."""
        return statistics.median(self.step_seconds) if self.step_seconds else None


@dataclass
class Log:
    """Everything on record: sessions (plain data on machine and versions), checks and runs, in their order."""

    sessions: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def check_of(self, row_hash: str) -> Check | None:
        """The latest check of a row."""
        return next((check for check in reversed(self.checks) if check.row_hash == row_hash), None)

    def renamed(self, names: Mapping[str, str]) -> Log:
        """What belongs to the rows of these hashes, under these names."""
        return Log(
            self.sessions,
            [dataclasses.replace(c, row=names[c.row_hash]) for c in self.checks if c.row_hash in names],
            [dataclasses.replace(r, row=names[r.row_hash]) for r in self.runs if r.row_hash in names],
        )


def line_of(entry: Check | Run | Mapping[str, Any]) -> str:
    """One line of JSON for a check, a run or a session."""
    kind = {Check: "check", Run: "run"}.get(type(entry), "session")
    values = dict(entry) if isinstance(entry, Mapping) else dataclasses.asdict(entry)
    return json.dumps({"kind": kind, **values}, ensure_ascii=False)


def read_log(path: Path) -> Log:
    """What a file of such lines holds; nothing where there is none. A last line without its end was torn: left out.

    Raises:
        UserError: another line cannot be read; it is named.
    """
    mend = "Remove this line to measure it again, or begin anew with --fresh."
    entries = list(read_lines(path, _parse_line, fault="is no measurement", mend=mend))
    return Log(
        sessions=[entry for entry in entries if isinstance(entry, dict)],
        checks=[entry for entry in entries if isinstance(entry, Check)],
        runs=[entry for entry in entries if isinstance(entry, Run)],
    )


def _parse_line(line: str) -> Check | Run | dict[str, Any]:
    values: dict[str, Any] = json.loads(line)
    kind = values.pop("kind")
    if kind == "session":
        return values
    if kind == "check":
        return Check(**values)
    if kind == "run":
        return Run(**{**values, "step_seconds": tuple(values["step_seconds"])})
    raise ValueError(f"unknown kind {kind!r}")


@dataclass(frozen=True)
class Expected:
    """What was known of a row and length before it ran; None where nothing was.

    Attributes:
        prefill_pair_share, decode_pair_share: visible pairs as shares of full attention's.
        prefill, decode, request: predicted time as a share of full attention's.
    """

    prefill_pair_share: float | None = None
    decode_pair_share: float | None = None
    prefill: float | None = None
    decode: float | None = None
    request: float | None = None


@dataclass(frozen=True)
class Summary:
    """What a row did at a length. Medians over its runs, and the least; None where not measured.

    Attributes:
        n: runs.
        prefill, prefill_min, step, step_min, request, request_min: seconds.
        prefill_ratio, step_ratio, request_ratio: of the median over full attention's median.
        ideal_ratio: the request's ratio if attention cost exactly its share of visible pairs (needs floor and full).
        expected: what was predicted.
        extra_bytes: peak of memory over what was in use before, the largest of the runs.
        peak_bytes: peak of memory, weights and libraries included.
        kv_bytes: keys and values held when decoding begins.
    """

    row: str
    length: int
    n: int
    prefill: float
    prefill_min: float
    step: float | None
    step_min: float | None
    request: float
    request_min: float
    prefill_ratio: float | None
    step_ratio: float | None
    request_ratio: float | None
    ideal_ratio: float | None
    expected: Expected
    extra_bytes: int | None
    peak_bytes: int | None
    kv_bytes: int | None


def summarise(runs: Iterable[Run], rows: Sequence[str], expected: Mapping[tuple[str, int], Expected]) -> list[Summary]:
    """One summary per length and row that was run, lengths rising, rows in the order given."""
    cells: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.length, run.row), []).append(run)
    found = []
    for length in sorted({length for length, _ in cells}):
        full, floor = cells.get((length, "full")), cells.get((length, "floor"))
        for row in rows:
            if (length, row) in cells:
                known = expected.get((row, length), Expected())
                found.append(_summary(cells[length, row], full, floor, known))
    return found


def _summary(runs: Sequence[Run], full: Sequence[Run] | None, floor: Sequence[Run] | None, known: Expected) -> Summary:
    prefill, step, request = _prefill(runs), _step(runs), _request(runs)
    steps = [run.step_median for run in runs if run.step_median is not None]
    extras = [
        run.peak_bytes - run.rest_bytes for run in runs if run.peak_bytes is not None and run.rest_bytes is not None
    ]
    return Summary(
        row=runs[0].row,
        length=runs[0].length,
        n=len(runs),
        prefill=prefill,
        prefill_min=min(run.prefill_seconds for run in runs),
        step=step,
        step_min=min(steps, default=None),
        request=request,
        request_min=min(run.request_seconds for run in runs),
        prefill_ratio=prefill / _prefill(full) if full else None,
        step_ratio=_ratio(step, _step(full) if full else None),
        request_ratio=request / _request(full) if full else None,
        ideal_ratio=_ideal(full, floor, known) if full and floor else None,
        expected=known,
        extra_bytes=max(extras, default=None),
        peak_bytes=max((run.peak_bytes for run in runs if run.peak_bytes is not None), default=None),
        kv_bytes=runs[-1].kv_bytes,
    )


def _ideal(full: Sequence[Run], floor: Sequence[Run], known: Expected) -> float | None:
    """Time over full attention's if what attention costs beyond the floor shrank exactly with its visible pairs."""
    if known.prefill_pair_share is None:
        return None
    low, high = _prefill(floor), _prefill(full)
    ideal = low + known.prefill_pair_share * (high - low)
    total = high
    low_decode, high_decode = (statistics.median(sum(run.step_seconds) for run in runs) for runs in (floor, full))
    if known.decode_pair_share is not None:
        ideal += low_decode + known.decode_pair_share * (high_decode - low_decode)
        total += high_decode
    return ideal / total


def _prefill(runs: Sequence[Run]) -> float:
    return statistics.median(run.prefill_seconds for run in runs)


def _step(runs: Sequence[Run]) -> float | None:
    steps = [run.step_median for run in runs if run.step_median is not None]
    return statistics.median(steps) if steps else None


def _request(runs: Sequence[Run]) -> float:
    return statistics.median(run.request_seconds for run in runs)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None or not theirs else ours / theirs

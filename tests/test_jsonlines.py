"""Files of JSON lines, written in every way that an interruption or a hand can leave them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.errors import UserError
from swaa.jsonlines import read_lines, to_line


@dataclass(frozen=True)
class Entry:
    text: str
    number: int = 0


def read(path: Path) -> list[Entry]:
    lines = read_lines(path, lambda line: Entry(**json.loads(line)), fault="is no entry", mend="Remove it.")
    return list(lines)


@settings(max_examples=settings.default.max_examples // 20)
@given(
    entries=st.lists(st.builds(Entry, st.text(), st.integers())),
    cut=st.floats(0, 1),
    ends=st.sampled_from(["\n", "\r\n"]),
)
def test_wherever_a_file_is_cut_its_whole_lines_are_read(entries: list[Entry], cut: float, ends: str) -> None:
    lines = [(to_line(entry) + ends).encode() for entry in entries]
    whole = b"".join(lines)
    end = round(cut * len(whole))
    complete = [entry for index, entry in enumerate(entries) if len(b"".join(lines[: index + 1])) <= end]
    with TemporaryDirectory() as folder:
        path = Path(folder, "entries.jsonl")
        path.write_bytes(whole[:end])
        assert read(path) == complete


def test_no_file_is_no_line(tmp_path: Path) -> None:
    assert read(tmp_path / "missing.jsonl") == []


@pytest.mark.parametrize("line", ["{nonsense", "[1]", "7", "null", '{"other": 1}', "{}", "", '"\ufffd'])
def test_a_line_that_holds_something_else_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "entries.jsonl"
    path.write_text(f"{to_line(Entry('a'))}\n{line}\n{to_line(Entry('b'))}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"entries.jsonl:2: this line is no entry \(.*\). Remove it.$"):
        read(path)


def test_what_is_wrong_within_a_line_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "entries.jsonl"
    path.write_text("1\n2\n")

    def parse(line: str) -> int:
        if line == "2\n":
            raise UserError("number: expected 1, got 2. Write 1.")
        return int(line)

    with pytest.raises(UserError, match=r"entries.jsonl:2: number: expected 1, got 2. Write 1.$"):
        list(read_lines(path, parse, fault="is no number", mend="Remove it."))

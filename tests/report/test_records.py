from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from swaa.errors import UserError
from swaa.report import Key, Record, read_records

RECORD = Record(
    "sink 10",
    "ab" * 32,
    "needle",
    900,
    "e0",
    seed=3,
    prompt_tokens=899,
    answer=" 12\n",
    metadata={"depths": [0.5]},
    generated=" zwölf\n\u2028",
    scores={"score": 0.5},
    timing={"batch_size": 8},
    git=None,
    versions={"torch": "2"},
)


def test_a_record_is_one_line_and_comes_back() -> None:
    line = RECORD.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == RECORD
    assert RECORD.key == Key("ab" * 32, "needle", 900, "e0")


def test_a_file_is_read_without_its_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    other = dataclasses.replace(RECORD, example="e1")
    whole = f"{RECORD.to_json()}\n{other.to_json()}\n"
    assert read_records(path) == []
    for torn in ("", "{", other.to_json(), other.to_json()[:40]):
        path.write_text(whole + torn, encoding="utf-8")
        assert read_records(path) == [RECORD, other]
    path.write_bytes(whole.encode() + "{ö".encode()[:-1])  # torn within a character
    assert read_records(path) == [RECORD, other]


@pytest.mark.parametrize("line", ["{nonsense", "[]", '{"recipe": "a"}', '{"other": 1}', ""])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{RECORD.to_json()}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"records.jsonl:2: this line is no record \(.*\). Remove this line to run"):
        read_records(path)

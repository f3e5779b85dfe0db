from __future__ import annotations

import dataclasses
import json
import time
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


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("scores", None, "scores: expected an object, got None"),
        ("scores", {"score": None}, "scores.score: expected a number, got None"),
        ("scores", {"score": True}, "scores.score: expected a number, got True"),
        ("timing", {"prefill_seconds": "fast"}, "timing.prefill_seconds: expected a number, got 'fast'"),
        ("cost", [], r"cost: expected an object, got \[\]"),
        ("versions", {"torch": 2}, "versions.torch: expected a string, got 2"),
        ("metadata", "none", "metadata: expected an object, got 'none'"),
        ("prompt_tokens", "x", "prompt_tokens: expected a whole number, got 'x'"),
        ("length", 1.5, "length: expected a whole number, got 1.5"),
        ("recipe", None, "recipe: expected a string, got None"),
        ("generated", 3, "generated: expected a string, got 3"),
        ("generation", None, "generation: expected a whole number, got None"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, field: str, value: object, told: str) -> None:
    path = tmp_path / "records.jsonl"
    spoilt = json.dumps({**json.loads(RECORD.to_json()), field: value})
    path.write_text(f"{RECORD.to_json()}\n{spoilt}\n{RECORD.to_json()}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"records.jsonl:2: {told}. Remove this line to run its sample again"):
        read_records(path)


def test_a_field_of_a_later_version_is_refused_and_one_of_an_earlier_may_lack(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    values = json.loads(RECORD.to_json())
    path.write_text(json.dumps({**values, "colour": 1}) + "\n")
    with pytest.raises(UserError, match="records.jsonl:1: this line is no record .*colour.*. Remove this line"):
        read_records(path)
    del values["prompting"], values["verdict"]
    path.write_text(json.dumps(values) + "\n")
    assert read_records(path) == [RECORD]


def test_thousands_of_records_are_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{RECORD.to_json()}\n" * 3_400, encoding="utf-8")
    began = time.process_time()
    assert len(read_records(path)) == 3_400
    assert time.process_time() - began < 1

"""What is told of a file or a line that a task cannot read: the file, the line, the field, and what to do."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path

import pytest

from swaa.errors import UserError
from swaa.tasks import task_from_dict
from tasks.test_files import read

DATA = Path(__file__).parents[1] / "data"
SAMPLES = {
    "longmemeval": "longmemeval.json",
    "longbench_v2": "longbench_v2.json",
    "locomo": "locomo10.json",
    "ruler_jsonl": "ruler.jsonl",
    "file": "prompts.jsonl",
}
GOOD = {"prompt": "Who?", "answer": "I"}


def refused(name: str, path: Path, **parameters: object) -> str:
    """What is said when the task reads the file to its end."""
    with pytest.raises(UserError) as caught:
        read(task_from_dict({"name": name, "path": str(path)} | parameters))
    assert len(str(caught.value)) < 900
    return str(caught.value)


WHOLE: list[tuple[str, bytes | None, str]] = [
    ("data.jsonl", None, "there is no such file. Check the path; it is taken from the folder you work in."),
    ("data.csv", b"a,b", "unknown kind of file '.csv'. Use one of these. Known: .json, .jsonl, .parquet."),
    ("data.jsonl", b"", "the file is empty. Write one example a line, or name another file."),
    ("data.jsonl", b"\n \n", "the file is empty."),
    ("data.json", b"[]", "the file is empty."),
    ("data.json", b" ", "the file is empty."),
    ("data.json", b"{}\n{}", "data.json: not JSON (Extra data: line 2 column 1 (char 3)): '{}\\n{}'. Is it one object"),
    ("data.json", b'{"data": []}', "data.json: expected a list of objects, got {'data': []}. Name the field"),
    ("data.json", b'["x"]', "data.json: item 1: this line: expected an object, got 'x'."),
    ("data.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt"', "data.jsonl:2: not JSON (Expecting ':' delimiter"),
    ("data.jsonl", b"[1]", "data.jsonl:1: this line: expected an object, got [1]."),
    ("data.jsonl", b'{"prompt": "\xe9"}', "data.jsonl:1: not UTF-8 ('utf-8' codec can't decode byte 0xe9"),
    ("data.json", b'["\xe9"]', "data.json: not UTF-8"),
    ("data.parquet", b"PAR1 no", "data.parquet: not a Parquet file that can be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), WHOLE)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert message in refused("file", path)


@pytest.mark.parametrize("name", SAMPLES)
def test_an_empty_file_and_a_missing_one_are_told_by_every_task(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data.jsonl"
    assert refused(name, path).startswith(f"{path}: there is no such file.")
    path.write_text("")
    assert refused(name, path).startswith(f"{path}: the file is empty.")


LINES: list[tuple[dict[str, object], dict[str, object], str]] = [
    ({"promt": "Who?", "answer": "I"}, {}, "prompt: this field is missing. Did you mean 'promt'? There is: promt, ans"),
    ({"prompt": "Who?", "anwser": "I"}, {}, "answer: this field is missing. Did you mean 'anwser'?"),
    ({"context": "A fox.", "answer": "I"}, {}, "question: this field is missing. Add it, or name"),
    ({"question": "Who?", "answer": "I"}, {}, "context: this field is missing."),
    ({"prompt": "Who?", "answer": None}, {}, "answer: this field is null. Give it a value, or drop the line."),
    ({"prompt": "Who?", "answer": " "}, {}, "answer: expected a string that is not blank, got ' '."),
    ({"prompt": "Who?", "answer": True}, {}, "answer: expected a string or a number, got True."),
    ({"prompt": "Who?", "answer": {"a": 1}}, {}, "answer: expected a string or a number, got {'a': 1}."),
    ({"prompt": "Who?", "answer": []}, {}, "answer: expected at least one answer, got []."),
    ({"prompt": "Who?", "answer": ["I", ""]}, {}, "answer[1]: expected a string that is not blank, got ''."),
    ({"prompt": 3, "answer": "I"}, {}, "prompt: expected a string, got 3."),
    ({"prompt": "x\ud800", "answer": "I"}, {}, "prompt: expected text that UTF-8 can hold"),
    ({**GOOD, "id": ["a"]}, {}, "id: expected a string or a number, got ['a']."),
    ({**GOOD, "answer_prefix": 3}, {}, "answer_prefix: expected a string, got 3."),
    ({**GOOD, "metadata": "x"}, {}, "metadata: expected an object, got 'x'."),
    (GOOD, {"references": "gold"}, "gold: this field is missing. Add it, or name the one that stands for it."),
    (GOOD, {"answer": "answer.text"}, "answer: expected an object or a list, for answer.text, got 'I'."),
    ({**GOOD, "a": {"text": []}}, {"answer": "a.text.0"}, "a.text.0: this field is missing."),
    ({**GOOD, "a": {"txt": 1}}, {"answer": "a.text"}, "a.text: this field is missing. Did you mean 'txt'?"),
    (GOOD, {"id": "nr"}, "nr: this field is missing."),
    (GOOD, {"question_type": "kind"}, "kind: this field is missing."),
    (GOOD, {"metadata": ["hops"]}, "hops: this field is missing."),
    (GOOD, {"prompt": "{prmpt}"}, "prmpt: this field is missing. Did you mean 'prompt'?"),
    ({**GOOD, "prompt": ["x"]}, {"prompt": "{prompt}"}, "prompt: expected a string, got ['x']."),
    ({**GOOD, "proof": "I did"}, {"evidence": "proof"}, "proof: expected text that stands in the prompt, got 'I did'."),
]


@pytest.mark.parametrize(("line", "parameters", "message"), LINES)
def test_a_line_that_is_wrong_is_named_with_its_field(
    tmp_path: Path, line: object, parameters: dict[str, object], message: str
) -> None:
    path = tmp_path / "data.jsonl"
    first = GOOD | {"a": {"text": ["I"]}, "gold": 1, "nr": 7, "kind": "k", "hops": 1, "prmpt": "Who?", "proof": "Who"}
    if parameters.get("answer") == "answer.text":
        first["answer"] = {"text": "I"}
    elif parameters.get("answer") == "a.text":
        first["a"] = {"text": "I"}
    path.write_text(f"{json.dumps(first)}\n\n{json.dumps(line)}\n")
    assert refused("file", path, **parameters).startswith(f"{path}:3: {message}")


def test_ids_that_come_twice_are_told_with_both_places(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(GOOD | {"id": name}) for name in ("a", "b", "a")))
    assert refused("file", path) == (
        f"{path}:3: id: 'a' is already that of {path}:1. Rename one of the two, or remove it."
    )


FORMATS: list[tuple[str, str, object, str]] = [
    ("longmemeval", "question_id", None, "question_id: this field is null."),
    ("longmemeval", "question", ..., "question: this field is missing. Did you mean 'question_id'?"),
    ("longmemeval", "answer", [1], "answer: expected a string or a number, got [1]."),
    ("longmemeval", "haystack_sessions", "x", "haystack_sessions: expected a list of sessions, got 'x'."),
    ("longmemeval", "haystack_sessions", [3, 4], "haystack_sessions[0]: expected a list of turns, got 3."),
    ("longmemeval", "haystack_dates", ["x"], "haystack_dates: expected one for each of 2 sessions, got 1."),
    ("longmemeval", "haystack_dates", [1, 2], "haystack_dates[0]: expected a string, got 1."),
    ("longmemeval", "haystack_session_ids", ["x"], "haystack_session_ids: expected one for each of 2 sessions, got 1."),
    ("longmemeval", "haystack_sessions", [[], [3]], "session a: turn 1: this turn: expected an object, got 3."),
    (
        "longmemeval",
        "haystack_sessions",
        [[], [{"role": "user"}]],
        "session a: turn 1: content: this field is missing.",
    ),
    ("longbench_v2", "answer", "E", "answer: unknown value 'E'. Use one of these. Known: A, B, C, D."),
    ("longbench_v2", "choice_C", ..., "choice_C: this field is missing. Did you mean 'choice_"),
    ("longbench_v2", "context", "", "context: expected a string that is not blank, got ''."),
    ("locomo", "qa", ..., "qa: this field is missing."),
    ("locomo", "qa", [{"question": "x", "answer": "y"}], "qa[0]: category: this field is missing."),
    ("locomo", "qa", [{"question": "x", "answer": "y", "category": 6}], "qa[0]: category: expected a number from 1"),
    ("locomo", "qa", [{"question": "x", "category": 1}], "qa[0]: answer: this field is missing."),
    (
        "locomo",
        "qa",
        [{"question": "x", "answer": "y", "category": 1, "evidence": "D1"}],
        "qa[0]: evidence: expected a",
    ),
    ("locomo", "conversation", {}, "conversation: expected sessions (session_1, session_2, ...), got none."),
    ("locomo", "conversation", {"session_1": "x"}, "conversation.session_1: expected a list of turns, got 'x'."),
    (
        "locomo",
        "conversation",
        {"session_1": [{"text": "x"}]},
        "conversation.session_1: turn 1: speaker: this field is",
    ),
    ("ruler_jsonl", "input", ..., "input: this field is missing."),
    ("ruler_jsonl", "outputs", [], "outputs: expected at least one answer, got []."),
    ("ruler_jsonl", "outputs", {"a": 1}, "outputs: expected a string or a number, got {'a': 1}."),
]


@pytest.mark.parametrize(("name", "field", "value", "message"), FORMATS)
def test_a_published_format_with_one_field_spoilt(
    tmp_path: Path, name: str, field: str, value: object, message: str
) -> None:
    text = (DATA / SAMPLES[name]).read_text("utf-8")
    row = json.loads(text)[0] if SAMPLES[name].endswith(".json") else json.loads(text.splitlines()[0])
    if value is ...:
        del row[field]
    else:
        row[field] = value
    path = tmp_path / "data.json"
    path.write_text(json.dumps([row]))
    assert refused(name, path).startswith(f"{path}: item 1: {message}")


def test_nothing_left_says_what_was_left_out() -> None:
    message = refused("longmemeval", DATA / "longmemeval.json", question_types=["temporal-reasoning"])
    assert "no example is left; left out: 1 for question_type 'single-session-user', 1 for" in message
    assert "1 for abstention (the sessions do not answer it). Ask for others, or another file." in message


PARAMETERS: list[tuple[dict[str, object], str]] = [
    ({"name": "file"}, "file.path: this field is missing. Add it; it has no default."),
    ({"name": "file", "path": ""}, "file.path: expected a non-empty string, got ''."),
    ({"name": "file", "path": 3}, "file.path: expected a non-empty string, got 3."),
    ({"name": "file", "path": "x", "answr": "y"}, "unknown field 'file.answr'. Did you mean 'file.answer'?"),
    (
        {"name": "file", "path": "x", "prompt": "{a"},
        "file.prompt: expected a template (expected '}' before end of stri",
    ),
    ({"name": "file", "path": "x", "prompt": "{}"}, "file.prompt: expected fields of a name alone, got '{}'. Write {f"),
    ({"name": "file", "path": "x", "prompt": "{a!r}"}, "file.prompt: expected fields of a name alone, got '{a!r}'."),
    ({"name": "file", "path": "x", "prompt": 3}, "file.prompt: expected a non-empty string, got 3."),
    ({"name": "file", "path": "x", "metadata": "a"}, "file.metadata: expected a list of names, got 'a'."),
    ({"name": "file", "path": "x", "metadata": ["a", "a"]}, "file.metadata: expected each name once, got 'a'."),
    ({"name": "file", "path": "x", "grader": {"nam": "x"}}, "grader: expected the name of a grader, or a mapping with"),
    ({"name": "locomo", "path": "x", "categories": [6]}, "locomo.categories: expected numbers from 1 to 5, got 6."),
    ({"name": "locomo", "path": "x", "categories": []}, "locomo.categories: expected a list of at least one category"),
    ({"name": "locomo", "path": "x", "categories": [1, 1]}, "locomo.categories: expected each category once, got 1."),
    ({"name": "longmemeval", "path": "x", "abstention": 1}, "longmemeval.abstention: expected true or false, got 1."),
    (
        {"name": "longmemeval", "path": "x", "question_types": ["multi_session"]},
        "longmemeval.question_types[0]: unknown value 'multi_session'. Did you mean 'multi-session'?",
    ),
    (
        {"name": "longbench_v2", "path": "x", "difficulties": ["Hard"]},
        "longbench_v2.difficulties[0]: unknown value 'Hard'. Did you mean 'hard'?",
    ),
]


@pytest.mark.parametrize(("values", "message"), PARAMETERS)
def test_parameters_that_are_wrong(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        task_from_dict(values)


def test_rows_are_for_a_json_file_that_is_no_list(tmp_path: Path) -> None:
    lines = DATA / "prompts.jsonl"
    assert "rows: expected nothing for a file of rows, got 'data'." in refused("file", lines, rows="data")
    listed = DATA / "longbench_v2.json"
    assert "rows: expected nothing, as the file is a list itself, got 'data'." in refused("file", listed, rows="data")
    path = tmp_path / "data.json"
    path.write_text('{"dta": []}')
    assert "data: this field is missing. Did you mean 'dta'?" in refused("file", path, rows="data")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *args: object, **options: object) -> object:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return whole(name, *args, **options)

    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setattr(builtins, "__import__", without)
    assert "takes pyarrow, which is not installed. Install it: pip install 'swaa[parquet]'" in refused("file", path)

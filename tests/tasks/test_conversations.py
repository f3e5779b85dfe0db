"""Data files: what a line may say, and what is told of one that says something else."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.errors import UserError
from swaa.tasks import Example
from swaa.tasks.conversations import Conversation, Turn, read_conversations

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
GOOD = {"prompt": "Hi", "answer": "Hello."}


def write(folder: Path, *lines: object, name: str = "data.jsonl") -> Path:
    """A file of lines: text as it is, bytes as they are, anything else as JSON."""
    path = folder / name
    encoded = [line if isinstance(line, bytes) else _text(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def _text(line: object) -> str:
    return line if isinstance(line, str) else json.dumps(line)


def test_the_three_forms_of_a_line(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be kind."}, USER, REPLY, {"role": "user", "content": "More"}, REPLY]
    path = write(
        tmp_path,
        {"messages": chat, "id": "chat", "answer_prefix": "Hel", "metadata": {"from": ["me"]}},
        "",
        {"prompt": "Who?", "answer": " I.", "answer_prefix": "It is"},
        "   ",
        {"context": "A fox.", "question": "What is it?", "answer": "A fox."},
    )
    talk, single, about = read_conversations(path)
    roles = ["system", "user", "assistant", "user", "assistant"]
    texts = ["Be kind.", "Hi", "Hello.", "More", "Hello."]
    assert talk == Conversation("chat", tuple(map(Turn, roles, texts)), "Hel", {"from": ["me"]})
    assert talk.answer == "lo."
    assert single == Conversation("data-3", (Turn("user", "Who?"), Turn("assistant", "It is I.")), "It is")
    assert single.answer == " I."
    asked = Turn("user", "A fox.\n\nWhat is it?")
    assert about == Conversation("data-5", (asked, Turn("assistant", "A fox.")))


def test_a_file_may_begin_with_a_mark_end_without_a_line_end_and_break_lines_as_windows_does(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    line = json.dumps({"prompt": "a\u2028b", "answer": "\u00e9"}, ensure_ascii=False).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    assert [one.turns[0].content for one in read_conversations(path)] == ["a\u2028b"] * 2
    assert [one.id for one in read_conversations(str(path))] == ["data-1", "data-2"]


LINES: list[tuple[object, str]] = [
    ("{'prompt': 'Hi'}", "not JSON (Expecting property name"),
    ("[" * 100_000, "not JSON (maximum recursion depth exceeded"),
    ("[1, 2]", "this line: expected an object, got [1, 2]. Write"),
    (b'{"prompt": "\xe9"}', "not UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 12"),
    ({"promt": "Hi", "answer": "x"}, "unknown field 'promt'. Did you mean 'prompt'? Known: answer, answer_prefix, con"),
    ({**GOOD, "source": "web"}, "What is your own goes into 'metadata'."),
    ({}, "missing fields: expected either 'messages', or 'prompt' and 'answer', or 'context', 'question' and 'answer'"),
    ({"id": "a"}, "got none of them. Add what is missing."),
    ({"prompt": "Hi"}, "missing fields: expected either 'messages', or 'prompt' and 'answer'"),
    ({"question": "Hi", "answer": "x"}, "got 'answer', 'question'. Add what is missing."),
    ({**GOOD, "messages": [USER, REPLY]}, "ambiguous fields: expected either 'messages', or"),
    ({**GOOD, "question": "x"}, "got 'answer', 'prompt', 'question'. Keep the fields of one set."),
    ({"prompt": 3, "answer": "x"}, "prompt: expected a string, got 3. Write it as text, in quotes."),
    ({"prompt": "Hi", "answer": ["x"] * 99}, "answer: expected a string, got ['x', 'x',"),
    ({"prompt": "Hi", "answer": "\ud800"}, "answer: expected text that UTF-8 can hold (surrogates not allowed)."),
    ({**GOOD, "id": True}, "id: expected a string, got True."),
    ({**GOOD, "id": 7.0}, "id: expected a string, got 7.0."),
    ({**GOOD, "id": " "}, "id: expected a non-empty string, got ' '."),
    ({**GOOD, "metadata": "x"}, "metadata: expected an object, got 'x'. Write it as"),
    ({**GOOD, "answer_prefix": 1}, "answer_prefix: expected a string, got 1."),
    ({"messages": []}, "messages: expected a list of {role, content}, got []."),
    ({"messages": "Hi"}, "messages: expected a list of {role, content}, got 'Hi'."),
    ({"messages": [USER, "Hi"]}, "messages[1]: expected an object {role, content}, got 'Hi'."),
    ({"messages": [{"role": "user"}, REPLY]}, "messages[0].content: this field is missing. Add it."),
    ({"messages": [{"from": "user"}, REPLY]}, "messages[0]: unknown field 'from'."),
    ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0].content: expected a string, got ['Hi']."),
    ({"messages": [{"role": "usr", "content": "x"}]}, "messages[0].role: unknown value 'usr'. Did you mean 'user'?"),
    ({"messages": [USER]}, "the last turn: expected the assistant's, got the user's. After an optional system turn"),
    ({"messages": [{"role": "system", "content": "x"}]}, "the last turn: expected the assistant's, got the system's."),
    ({"messages": [USER, USER, REPLY]}, "turn 2: expected the assistant's turn, got the user's, which follows the u"),
    (
        {"messages": [REPLY]},
        "turn 1: expected the system's turn or the user's turn, got the assistant's, which comes f",
    ),
    ({"messages": [USER, REPLY, {"role": "system", "content": "x"}, REPLY]}, "turn 3: expected the user's turn, got"),
    ({"messages": [{"role": "system", "content": "x"}, REPLY]}, "turn 2: expected the user's turn, got the assistant"),
    ({"messages": [USER, REPLY, REPLY]}, "turn 3: expected the user's turn, got the assistant's"),
    ({"prompt": "Hi", "answer": ""}, "answer: empty answer. Write what the assistant shall learn to say."),
    ({"prompt": "Hi", "answer": " \n", "answer_prefix": "It is"}, "answer: empty answer."),
    ({"prompt": " ", "answer": "x"}, "turn 1 of 2 (user): no text. Give it some."),
    ({"messages": [USER, {"role": "assistant", "content": ""}, USER, REPLY]}, "turn 2 of 4 (assistant): empty answer."),
    ({"messages": [USER, REPLY], "answer_prefix": "hello"}, "expected the beginning of the last reply 'Hello.', got"),
    ({"messages": [USER, REPLY], "answer_prefix": "Hello."}, "answer_prefix: empty answer: the prefix is the whole re"),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path, GOOD, "", line)
    with pytest.raises(UserError) as caught:
        read_conversations(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_number_is_an_id_too(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "id": 7}, {**GOOD, "id": 0})
    assert [conversation.id for conversation in read_conversations(path)] == ["7", "0"]
    with pytest.raises(UserError, match="id: '7' is already the id of line 1"):
        read_conversations(write(tmp_path, {**GOOD, "id": 7}, {**GOOD, "id": "7"}))


def test_an_id_that_comes_twice_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "id": "data-3"}, "", GOOD)
    message = f"{path}:3: id: 'data-3' is already the id of line 1. Rename one of the two, or remove it."
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        read_conversations(path)


def test_a_file_without_conversations_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "", " ")
    with pytest.raises(UserError, match="data.jsonl: no conversations. Write one a line: either 'messages', or"):
        read_conversations(path)


def test_what_is_no_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere.jsonl: there is no such file. Check the path"):
        read_conversations(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="there is no such file"):
        read_conversations(tmp_path)
    path = write(tmp_path, GOOD, name="data.json")
    with pytest.raises(UserError, match="data.json: unknown kind of file '.json'. Did you mean '.jsonl'"):
        read_conversations(path)


def test_a_conversation_made_of_an_example_continues_the_prefix() -> None:
    example = Example("e-1", "Question?", "It is", " 42", ("42",), {"depth": 0.5})
    made = Conversation.of_example(example)
    turns = (Turn("user", "Question?"), Turn("assistant", "It is 42"))
    assert made == Conversation("e-1", turns, "It is", {"depth": 0.5})
    assert made.answer == " 42"
    with pytest.raises(UserError, match="^example e-2: answer_prefix: empty answer: the prefix is the whole reply"):
        Conversation.of_example(Example("e-2", "Question?", "It is", "", ()))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = [Turn("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Turn("user", draw(texts)), Turn("assistant", draw(texts))]
    reply = turns[-1].content
    prefix = reply[: draw(st.integers(0, len(reply)))]
    prefix = prefix if reply[len(prefix) :].strip() else ""
    metadata = draw(st.dictionaries(texts, st.none() | st.integers() | texts, max_size=2))
    return Conversation(draw(texts), tuple(turns), prefix, metadata)


@given(conversation=conversations())
@settings(max_examples=settings.default.max_examples // 20)
def test_a_line_of_json_comes_back(conversation: Conversation) -> None:
    line = conversation.to_json()
    assert "\n" not in line
    line.encode("utf-8")
    assert Conversation.from_mapping(json.loads(line)) == conversation


def test_what_is_written_is_read(tmp_path: Path) -> None:
    turns = (Turn("user", "a\u2028b\nc"), Turn("assistant", "\u00e9 d"))
    conversation = Conversation("one", turns, "\u00e9", {"depth": 0.5})
    assert "\u00e9 d" in conversation.to_json()  # for eyes, too
    path = write(tmp_path, conversation.to_json(), conversation.to_json().replace("one", "two"))
    first, second = read_conversations(path)
    assert first == conversation
    assert (second.id, second.turns) == ("two", turns)


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    tables = pytest.importorskip("pyarrow.parquet")
    path = folder / "data.parquet"
    tables.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_rows_of_parquet_are_read_as_lines(tmp_path: Path) -> None:
    """Columns are of all rows: a row has None where it lacks the field."""
    rows = [
        {"id": "a", "messages": [USER, {**REPLY, "name": None}], "prompt": None, "metadata": '{"k": 1}'},
        {"id": None, "messages": None, "prompt": "Hi", "answer": " 42", "answer_prefix": "It is", "metadata": None},
    ]
    first, second = read_conversations(parquet(tmp_path, [dict.fromkeys(rows[1]) | row for row in rows]))
    assert first == Conversation("a", (Turn("user", "Hi"), Turn("assistant", "Hello.")), "", {"k": 1})
    assert second == Conversation("data-2", (Turn("user", "Hi"), Turn("assistant", "It is 42")), "It is")
    structured = [{**GOOD, "metadata": {"k": 2}}]
    assert read_conversations(parquet(tmp_path, structured))[0].metadata == {"k": 2}


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path, [GOOD, {"prompt": "Hi", "answer": None}])
    with pytest.raises(UserError, match="data.parquet:2: missing fields: expected either"):
        read_conversations(path)
    path = parquet(tmp_path, [{**GOOD, "metadata": "{"}])
    with pytest.raises(UserError, match="data.parquet:1: metadata: not a JSON object"):
        read_conversations(path)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = write(tmp_path, GOOD, name="data.parquet")
    with pytest.raises(UserError, match=r"data.parquet: not a Parquet file that can be read \(.*\). Write it anew."):
        read_conversations(path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError("No module named 'pyarrow'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    path = write(tmp_path, GOOD, name="data.parquet")
    with pytest.raises(
        UserError, match="takes pyarrow, which is not installed. Install it: pip install 'swaa.parquet.'"
    ):
        read_conversations(path)

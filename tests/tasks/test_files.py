"""Tasks on files: each published format against its sample, one's own files, the order, what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from swaa.graders import AllFound, AnyFound, Choice, Question, Recall, TokenF1, parse_grader
from swaa.tasks import Example, File, LoCoMo, LongBenchV2, LongMemEval, RulerJsonl, Task, task_from_dict
from swaa.tasks.filetask import FileTask

DATA = Path(__file__).parents[1] / "data"
TASKS: list[FileTask] = [
    File(str(DATA / "prompts.jsonl")),
    File(str(DATA / "contexts.jsonl")),
    LongMemEval(str(DATA / "longmemeval.json")),
    LongBenchV2(str(DATA / "longbench_v2.json")),
    LoCoMo(str(DATA / "locomo10.json")),
    RulerJsonl(str(DATA / "ruler.jsonl")),
]
each = pytest.mark.parametrize("task", TASKS, ids=lambda task: Path(task.path).stem)


def refuse(prompt: str, prefix: str) -> int:
    raise AssertionError("no tokenizer is asked")


def read(task: Task, seed: int = 0, length: int = 1, num_examples: int = 1) -> dict[str, Example]:
    """Item -> example."""
    found = task.examples(length=length, num_examples=num_examples, seed=seed, count_tokens=refuse)
    return {str(example.metadata["item"]): example for example in found}


def evidence(example: Example) -> list[str]:
    return [example.prompt[start:end] for start, end in example.metadata.get("spans", [])]


def rows_of(task: FileTask) -> list[dict[str, object]]:
    text = Path(task.path).read_text("utf-8")
    return json.loads(text) if task.path.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def contents(task: FileTask) -> list[tuple[object, ...]]:
    """What the examples say, but for ids that name the file."""
    return sorted((one.prompt, one.answer_prefix, one.answer, one.references) for one in read(task).values())


class TestAll:
    @pytest.mark.parametrize(("task", "number"), list(zip(TASKS, [3, 2, 2, 2, 4, 2], strict=True)))
    def test_all_are_offered_whatever_length_and_number_say(self, task: FileTask, number: int) -> None:
        assert not task.sized
        assert len(read(task)) == number
        assert list(read(task)) == list(read(task, length=10**6, num_examples=10**6))

    @each
    def test_ids_are_known_without_making_examples(self, task: FileTask) -> None:
        examples = read(task, seed=3)
        ids = list(task.example_ids(length=5, num_examples=1, seed=3))
        assert ids == [example.id for example in examples.values()]
        assert all(name.startswith(f"{task.name}-{task.fingerprint}-") for name in ids)
        assert len(set(ids)) == len(ids)

    @each
    def test_a_seed_shuffles_and_changes_no_example(self, task: FileTask) -> None:
        one, two = read(task, seed=0), read(task, seed=1)
        assert one == two  # as mappings
        orders = {tuple(read(task, seed=seed)) for seed in range(20)}
        assert len(orders) > 1

    @each
    def test_examples_can_be_graded_scored_and_written(self, task: FileTask) -> None:
        for example in read(task).values():
            question = Question(example.prompt, example.references, example.metadata)
            assert task.grader.grade(example.answer, question).score == 1
            assert json.loads(json.dumps(example.metadata)) == example.metadata
            reply = example.answer_prefix + example.answer
            assert "  " not in reply
            assert example.answer.strip()
            assert len(example.metadata.get("depths", [])) == len(evidence(example))

    @each
    def test_round_trip_through_plain_values(self, task: FileTask) -> None:
        assert task_from_dict(json.loads(json.dumps(task.to_dict()))) == task
        assert task.label == f"{task.name}(path={task.path})"

    @each
    def test_a_copy_elsewhere_has_the_same_ids_and_another_text_has_others(
        self, task: FileTask, tmp_path: Path
    ) -> None:
        copy = tmp_path / f"copy{Path(task.path).suffix}"
        copy.write_bytes(Path(task.path).read_bytes())
        moved = replace(task, path=str(copy))
        assert moved.fingerprint == task.fingerprint
        copy.write_bytes(copy.read_bytes() + b"\n")
        assert moved.fingerprint != task.fingerprint
        other = replace(task, grader=parse_grader("exact"))
        assert other.fingerprint == task.fingerprint

    @each
    def test_rows_may_come_as_json_lines_or_json(self, task: FileTask, tmp_path: Path) -> None:
        (tmp_path / "rows.json").write_text(json.dumps(rows_of(task)), "utf-8")
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows_of(task))), "utf-8")
        kinds = [replace(task, path=str(tmp_path / name)) for name in ("rows.json", "rows.jsonl")]
        assert contents(kinds[0]) == contents(kinds[1]) == contents(task)

    @pytest.mark.parametrize("task", [TASKS[1], TASKS[3], TASKS[5]], ids=lambda task: task.name)
    def test_rows_may_come_as_parquet(self, task: FileTask, tmp_path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows_of(task)), tmp_path / "rows.parquet")
        assert contents(replace(task, path=str(tmp_path / "rows.parquet"))) == contents(task)

    def test_the_file_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "data.jsonl"
        path.write_bytes((DATA / "prompts.jsonl").read_bytes())
        times = []
        whole = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda self: times.append(self) or whole(self))
        task = File(str(path))
        read(task)
        list(task.example_ids(length=1, num_examples=1, seed=0))
        assert task.left_out == {}
        assert len(times) == 1


class TestFile:
    def test_the_papers_fields(self) -> None:
        found = read(TASKS[0])
        assert set(found) == {"prompts-1", "prompts-2", "prompts-3"}
        ferry, hives, key = (found[f"prompts-{number}"] for number in (1, 2, 3))
        assert ferry.prompt.endswith("Answer with the hour.")
        assert (ferry.answer, ferry.references, ferry.answer_prefix) == ("four", ("four",), "")
        assert (hives.answer, hives.references) == ("7", ("7",))
        assert (key.answer_prefix, key.answer, key.references) == (
            "The key is",
            " behind the clock",
            ("behind the clock",),
        )
        assert key.metadata["question"] == "Where is the key?"
        assert TASKS[0].grader == Recall()

    def test_context_and_question(self) -> None:
        bridge = read(TASKS[1])["bridge"]
        assert bridge.prompt.startswith("The bridge has nine arches;")
        assert bridge.prompt.endswith("on it.\n\nWhich arch is the widest?")
        assert bridge.metadata["question_type"] == "order"
        assert bridge.answer == "the third, third"  # for recall, parts of an answer

    def test_every_field_by_name(self) -> None:
        task = File(
            str(DATA / "contexts.jsonl"),
            prompt="Page {source.page}: {context}\nQ: {question} {{brief}}",
            answer="answer.1",
            references="answer",
            answer_prefix="Of {question_type} is",
            id="source.page",
            question_type="id",
            evidence="evidence",
            metadata=("source", "evidence"),
            grader=AnyFound(),
        )
        mill = read(task)["3"]
        assert mill.prompt.startswith("Page 3: The mill at")
        assert mill.prompt.endswith("Q: Of what was the mill built again? {brief}")
        assert mill.answer_prefix == "Of material is"
        assert mill.answer == " of stone"
        assert mill.references == ("stone", "of stone")
        assert evidence(mill) == ["built again of stone"]
        assert mill.metadata["depths"] == [pytest.approx(mill.prompt.index("built") / len(mill.prompt), abs=1e-6)]
        assert mill.metadata["source"] == {"page": 3}
        assert mill.metadata["question_type"] == "mill"

    @pytest.mark.parametrize(
        ("grader", "answer"), [(Recall(), "stone, of stone"), (AllFound(), "stone, of stone"), (TokenF1(), "stone")]
    )
    def test_several_answers_are_parts_or_spellings(self, grader: object, answer: str) -> None:
        assert read(replace(TASKS[1], grader=grader))["mill"].answer == answer

    def test_a_prefix_may_be_switched_off_and_words_never_run_into_each_other(self) -> None:
        assert read(replace(TASKS[0], answer_prefix=""))["prompts-3"].answer_prefix == ""
        for prefix, answer in (("So", " four"), ("So ", "four"), ("(", "four"), ("答案是", "four")):
            assert read(replace(TASKS[0], answer_prefix=prefix))["prompts-1"].answer == answer

    def test_rows_inside_an_object(self, tmp_path: Path) -> None:
        path = tmp_path / "data.json"
        path.write_text(json.dumps({"data": {"test": [{"prompt": "Who?", "answer": "I"}]}}))
        assert read(File(str(path), rows="data.test"))["data-1"].prompt == "Who?"

    def test_metadata_of_a_line_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl"
        path.write_text(json.dumps({"prompt": "Who?", "answer": "I", "metadata": {"hop": 2, "spans": [[0, 3]]}}))
        example = read(File(str(path)))["data-1"]
        assert example.metadata["hop"] == 2
        assert evidence(example) == ["Who"]


class TestLongMemEval:
    def test_sessions_stand_in_the_order_of_time_with_dates_and_roles(self) -> None:
        boat = read(TASKS[2])["s1"]
        lines = boat.prompt.splitlines()
        assert lines[0] == "Here are 2 sessions of a user with an assistant, the oldest first."
        order = ["Session of 2024/01/05 (Fri) 07:30", "user: How do I get paint off my hands?"]
        order += ["assistant: Oil first, then soap.", "Session of 2024/02/11 (Sun) 18:00"]
        places = [lines.index(line) for line in order]
        assert places == sorted(places)
        assert "It is 2024/03/02 (Sat) 09:10." in lines[-2]
        assert lines[-1] == "What did I name my boat?"
        assert "say so" not in boat.prompt
        assert evidence(boat) == ["user: My boat is in the water at last. I named her Dragonfly."]
        assert boat.metadata["question_type"] == "single-session-user"
        assert boat.metadata["num_sessions"] == 2

    def test_sessions_are_the_evidence_where_no_turn_is_marked(self) -> None:
        trees = read(TASKS[2])["s2"]
        assert (trees.answer, trees.references) == ("5", ("5",))
        first, second = evidence(trees)
        assert first.startswith("Session of 2024/04/01")
        assert "two plum trees" in first
        assert "Three cherry trees" in second
        assert "rain" not in first + second

    def test_abstention_is_left_out_and_counted_unless_asked(self) -> None:
        assert set(read(TASKS[2])) == {"s1", "s2"}
        assert TASKS[2].left_out == {"abstention (the sessions do not answer it)": 1}
        asked = replace(TASKS[2], abstention=True)
        assert asked.left_out == {}
        horse = read(asked)["s3_abs"]
        assert horse.metadata["abstention"] is True
        assert "If the sessions do not tell, say so." in horse.prompt
        assert evidence(horse) == []

    def test_question_types(self) -> None:
        task = replace(TASKS[2], question_types=("multi-session",))
        assert set(read(task)) == {"s2"}
        assert task.left_out["question_type 'single-session-user'"] == 1
        assert TASKS[2].grader == AnyFound()


class TestLongBench:
    def test_a_question_and_its_choices(self) -> None:
        lamp = read(TASKS[3])["lb-1"]
        assert "(A) The cook\n(B) The clerk\n(C) The captain\n(D) Nobody\n" in lamp.prompt
        assert "At ten the lamp was gone." in lamp.prompt
        assert lamp.answer_prefix + lamp.answer == "The correct answer is B"
        assert lamp.references == ("B",)
        assert TASKS[3].grader == Choice()
        facts = {key: lamp.metadata[key] for key in ("question_type", "sub_domain", "difficulty", "length_class")}
        assert list(facts.values()) == ["Single-Document QA", "Detective", "easy", "short"]

    @pytest.mark.parametrize(
        ("kept", "reason"),
        [
            ({"domains": ["Single-Document QA"]}, "domain 'Code Repository Understanding'"),
            ({"difficulties": ["easy"]}, "difficulty 'hard'"),
            ({"length_classes": ["short", "medium"]}, "length 'long'"),
        ],
    )
    def test_what_is_not_kept_is_counted(self, kept: dict[str, object], reason: str) -> None:
        task = task_from_dict({"name": "longbench_v2", "path": TASKS[3].path} | kept)
        assert set(read(task)) == {"lb-1"}
        assert task.left_out == {reason: 1}


class TestLoCoMo:
    def test_sessions_in_order_with_dates_speakers_and_pictures(self) -> None:
        cello = read(TASKS[4])["talk-1-1"]
        start = cello.prompt.index("\nSession 1, 9:00 am on 1 May, 2021\nOtto: What do you do in the evenings?\nIda: I")
        assert start < cello.prompt.index("\nSession 2, 4:10 pm on 3 June, 2021\nOtto: Look what I bought")
        assert "Otto: Look what I bought this morning! [a picture: a green wooden cart in a yard]\n" in cello.prompt
        assert "Session 3" not in cello.prompt  # it has a date and no turns
        assert cello.prompt.startswith("Here are 2 sessions of a conversation of Ida and Otto.\n")
        assert cello.prompt.endswith("\nWhich instrument does Ida learn?")
        assert evidence(cello) == ["Ida: I learn the cello. My own cello!"]
        assert TASKS[4].grader == TokenF1()

    def test_answers_and_kinds(self) -> None:
        found = read(TASKS[4])
        assert {name: example.references for name, example in found.items()} == {
            "talk-1-1": ("the cello",),
            "talk-1-2": ("2021",),
            "talk-1-3": ("Yes",),
            "talk-1-4": ("a cello, a cart",),
        }
        kinds = [found[f"talk-1-{number}"].metadata["question_type"] for number in (1, 2, 3, 4)]
        assert kinds == ["single-hop", "temporal", "open-domain", "multi-hop"]
        assert "approximate date" in found["talk-1-2"].prompt
        assert "approximate date" not in found["talk-1-1"].prompt

    def test_evidence_as_untidy_as_it_comes(self) -> None:
        found = read(TASKS[4])
        assert [text[:14] for text in evidence(found["talk-1-2"])] == ["Otto: Look wha", "Ida: A cart! F"]
        assert [text[:11] for text in evidence(found["talk-1-4"])] == ["Ida: I lear", "Otto: Look "]
        assert evidence(found["talk-1-3"]) == []

    def test_adversarial_questions_are_left_out_and_counted_unless_asked(self) -> None:
        assert TASKS[4].left_out == {"category 5 (adversarial)": 1}
        task = replace(TASKS[4], categories=(5, 4))
        assert set(read(task)) == {"talk-1-1", "talk-1-5"}
        assert task.left_out["category 2 (temporal)"] == 1
        example = read(task)["talk-1-5"]
        assert example.answer == "Not mentioned in the conversation"
        assert all('reply "Not mentioned in the conversation"' in one.prompt for one in read(task).values())
        assert not any("Not mentioned" in one.prompt for one in read(TASKS[4]).values())


class TestRuler:
    def test_outputs_and_prefix(self) -> None:
        first, second = (read(TASKS[5])[name] for name in ("0", "1"))
        assert first.prompt.endswith("What are the numbers of the harbor?")
        assert first.answer_prefix == "Answer: The numbers of the harbor are"
        assert first.answer == " 4711, 1209"
        assert first.references == ("4711", "1209")
        assert (second.answer_prefix, second.answer) == ("Answer: they are:", " AB, CD")
        assert first.metadata["ruler_length"] == 60
        assert read(replace(TASKS[5], grader=AnyFound()))["0"].answer == " 4711"

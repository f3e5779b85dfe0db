"""What holds for every synthetic task, a user's own included: bytes, ids, seeds, metadata, templates."""

from __future__ import annotations

import hashlib
import json
import shutil
import string
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.cli.listings import list_tasks
from swaa.policies import load_plugin
from swaa.tasks import CommonWords, DocumentQA, FrequentWords, Task, VariableTracking, get_task, task_from_dict
from swaa.tasks import registry as registry_module
from swaa.tasks.template import Template
from tasks.counters import make, thirds, words

ROOT = Path(__file__).parents[2]
TASKS: list[Task] = [
    VariableTracking(),
    CommonWords(4, freq_common=8, freq_uncommon=2),
    FrequentWords(),
    DocumentQA(),
    DocumentQA(str(ROOT / "tests" / "data" / "documents.jsonl")),
]
each = pytest.mark.parametrize("task", TASKS, ids=["tracking", "common", "frequent", "people", "documents"])


def test_the_bytes_are_golden() -> None:
    """Equal on every platform and Python version; only a change of wording may change it."""
    varied = [*TASKS[:-1], VariableTracking(num_chains=3, num_hops=2), FrequentWords(alpha=1.37), DocumentQA(depth=0.3)]
    examples = [asdict(example) for task in varied for example in make(task, 1000, number=2, seed=7, count=thirds)]
    digest = hashlib.sha256(json.dumps(examples, sort_keys=True).encode()).hexdigest()
    assert digest == "d6293042b8f9ae25bb11c37d7cb66e61c526d602c1a5ef2729031e41bef7e99a"


@each
def test_more_examples_begin_with_the_same(task: Task) -> None:
    assert make(task, 300, number=5)[:2] == make(task, 300, number=2)


@each
def test_seeds_and_lengths_have_their_own_examples_and_ids_are_known_before(task: Task) -> None:
    asked = [(300, 0), (300, 1), (301, 0)]
    examples = [example for length, seed in asked for example in make(task, length, number=3, seed=seed)]
    ids = [task.example_ids(length=length, num_examples=3, seed=seed) for length, seed in asked]
    assert [example.id for example in examples] == [name for names in ids for name in names]
    assert len({example.id for example in examples}) == len({example.prompt for example in examples}) == 9


@each
def test_examples_can_be_scored_and_written_and_come_one_at_a_time(task: Task) -> None:
    endless = task.examples(length=300, num_examples=10**9, seed=0, count_tokens=words)
    for example in islice(endless, 3):
        assert task.sized
        assert json.loads(json.dumps(example.metadata)) == example.metadata
        assert example.answer.startswith(" ")
        assert all(reference in example.answer for reference in example.references[:1])
        assert len(example.metadata["spans"]) == len(example.metadata["depths"]) > 0
        assert all(0 <= start < end <= len(example.prompt) for start, end in example.metadata["spans"])
        assert example.references[0] not in example.answer_prefix


@each
def test_round_trip(task: Task) -> None:
    assert task_from_dict(json.loads(json.dumps(task.to_dict()))) == task


@each
def test_long_prompts_ask_the_tokenizer_few_times(task: Task) -> None:
    calls = 0

    def counting(prompt: str, prefix: str) -> int:
        nonlocal calls
        calls += 1
        return thirds(prompt, prefix)

    (example,) = make(task, 20_000, count=counting)
    assert example.metadata["tokens"] == 20_000
    assert calls <= 30


def test_the_example_of_the_docs_is_a_task_as_good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry_module, "_tasks", dict(registry_module._tasks))
    # a copy: a file is imported once in a process, and other tests want it registered after this one
    load_plugin(str(shutil.copy(ROOT / "docs" / "examples" / "timetable.py", tmp_path)))
    task = get_task("timetable").from_dict({"first_hour": 5})
    for example in make(task, 333, number=3):
        ((start, end),) = example.metadata["spans"]
        assert example.prompt[start:end] == f"{example.answer_prefix}{example.answer}."
        assert words(example.prompt, example.answer_prefix) == 333
    assert ("timetable", "first_hour: 6") in [(name, text.partition("\n")[2]) for name, text in list_tasks()]


def test_the_listing_tells_what_a_task_needs_and_its_grader_by_name() -> None:
    told = {name: text.partition("\n")[2] for name, text in list_tasks()}
    assert told["locomo"] == "grader: token_f1, path: (needed), categories: [1, 2, 3, 4]"
    assert told["common_words"] == "num_common: 10, freq_common: 30, freq_uncommon: 3"


names = st.text(string.ascii_lowercase, min_size=1, max_size=5)


@settings(max_examples=settings.default.max_examples // 20)
@given(values=st.dictionaries(names, st.text("ab{}.", max_size=4) | st.integers(), min_size=1), data=st.data())
def test_templates_fill_as_format_does(values: dict[str, object], data: st.DataObject) -> None:
    part = st.sampled_from(sorted(values)).map("{{{}}}".format) | st.sampled_from(["{{", "}}", "x", " ", "\n"])
    text = data.draw(st.lists(part, min_size=1).map("".join).filter(str.strip))
    assert Template.parse("File.prompt", text).fill(values) == text.format(**values)

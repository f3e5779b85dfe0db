"""Tasks by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest

from swaa.errors import UserError
from swaa.graders import Grader, Recall, parse_grader
from swaa.tasks import (
    CountTokens,
    Example,
    NeedleSingle,
    Task,
    get_task,
    register_task,
    task_from_dict,
    task_names,
)
from swaa.tasks import registry as registry_module


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_tasks", dict(registry_module._tasks))


@dataclass(frozen=True)
class Echo(Task):
    """A user's task."""

    name: ClassVar[str] = "echo"
    word: str = "hello"

    @property
    def grader(self) -> Grader:
        return parse_grader("exact")

    def examples(self, *, length: int, num_examples: int, seed: int, count_tokens: CountTokens) -> Iterator[Example]:
        for index in range(num_examples):
            yield Example(f"echo-{index}", f"Say {self.word}.", "", self.word, (self.word,))


def test_a_task_of_the_users_own() -> None:
    register_task(Echo)
    task = task_from_dict({"name": "echo", "word": "bye"})
    assert task == Echo(word="bye")
    assert "echo" in task_names()
    assert task.label == "echo(word=bye)"


def test_two_tasks_cannot_share_a_name() -> None:
    class Other(NeedleSingle):
        pass

    with pytest.raises(UserError, match=r"task name 'needle_single' is taken by .*NeedleSingle; .*Other cannot"):
        register_task(Other)
    assert register_task(NeedleSingle) is NeedleSingle  # again is no harm


def test_a_task_is_a_frozen_dataclass_with_a_name() -> None:
    class Bare(Task):
        name = "bare"

    @dataclass(frozen=True)
    class Nameless(Echo):
        name: ClassVar[str] = ""

    for wrong in (Bare, Nameless):
        with pytest.raises(UserError, match=r"task: expected a frozen dataclass with a name, got '.*'\. Set `name"):
            register_task(wrong)


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown task 'needle_singel'. Did you mean 'needle_single'?"):
        get_task("needle_singel")


def test_a_task_is_graded_by_recall_unless_it_says_otherwise() -> None:
    assert NeedleSingle().grader == Recall()
    assert Echo().grader == parse_grader("exact")
    assert NeedleSingle().sized
    assert NeedleSingle().left_out == {}


def test_labels_say_what_is_changed_and_stay_short() -> None:
    judge = {"name": "judge", "model": "m", "template": "{question} {references} {answer}" + " x" * 200}
    task = task_from_dict({"name": "document_qa", "grader": judge})
    assert re.fullmatch(r"document_qa\(grader=judge\(model=m, template=.{50}\.\.\. [0-9a-f]{8}\)\)", task.label)
    other = task_from_dict({"name": "document_qa", "grader": judge | {"template": judge["template"] + "y"}})
    assert other.label != task.label
    assert task_from_dict(task.to_dict()) == task

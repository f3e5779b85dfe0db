"""Tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from swaa.errors import invalid
from swaa.named import add_named, find_named
from swaa.tasks.base import Task

T = TypeVar("T", bound=type[Task])

_tasks: dict[str, type[Task]] = {}


def register_task(task_class: T) -> T:
    """Class decorator: make a task known by its ``name`` to YAML and the command line.

    Raises:
        UserError: the class is no frozen dataclass, has no name, or another class has the name.
    """
    return add_named(_tasks, task_class, kind="task")


def get_task(name: str) -> type[Task]:
    """The task class of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    return find_named(_tasks, name, kind="task")


def task_names() -> tuple[str, ...]:
    """All known names, sorted."""
    return tuple(sorted(_tasks))


def task_from_dict(values: Mapping[str, object]) -> Task:
    """The task that ``{"name": ..., parameter: value, ...}`` describes.

    Raises:
        UserError: the name is missing or unknown, or a parameter is unknown or wrong.
    """
    name = values.get("name")
    if not isinstance(name, str):
        mend = f"Add it; known: {', '.join(task_names())}."
        raise invalid("task.name", accepted="the name of a task", got=name, mend=mend)
    return get_task(name).from_dict({key: value for key, value in values.items() if key != "name"})


def task_to_dict(task: Task) -> dict[str, object]:
    """Plain values that :func:`task_from_dict` reads back."""
    return task.to_dict()

"""Tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from swaa.errors import UserError, invalid, unknown
from swaa.tasks.base import Task

T = TypeVar("T", bound=type[Task])

_tasks: dict[str, type[Task]] = {}


def register_task(task_class: T) -> T:
    """Class decorator: make a task known by its ``name`` to YAML and the command line.

    Raises:
        UserError: the class is no frozen dataclass, has no name, or another class has the name.
    """
    name = getattr(task_class, "name", "")
    params = getattr(task_class, "__dataclass_params__", None)
    if not name or params is None or not params.frozen:
        mend = "Set `name: ClassVar[str]` and put @dataclass(frozen=True) under @register_task."
        raise invalid("task", accepted="a frozen dataclass with a name", got=task_class.__name__, mend=mend)
    present = _tasks.get(name)
    if present is not None and _address(present) != _address(task_class):
        raise UserError(
            f"task name {name!r} is taken by {_address(present)}; {_address(task_class)} cannot have it too. "
            f"Rename one of the tasks."
        )
    _tasks[name] = task_class
    return task_class


def get_task(name: str) -> type[Task]:
    """The task class of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in _tasks:
        raise unknown("task", name, _tasks)
    return _tasks[name]


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


def _address(task_class: type[Task]) -> str:
    return f"{task_class.__module__}.{task_class.__qualname__}"

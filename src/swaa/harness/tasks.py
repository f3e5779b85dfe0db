"""Finding lm-eval's tasks by name, and saying what is wrong with one that cannot be had."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from swaa.errors import UserError

_PATTERN = frozenset("*?[")


class Tasks(TaskManager):  # type: ignore[misc]  # lm_eval is untyped
    """lm-eval's task manager, whose errors are messages to a user."""

    def load(self, task_list: Any) -> Any:
        """The tasks, with their data.

        Raises:
            UserError: the data or a library that a task needs is not there; the task's file is wrong.
        """
        try:
            return super().load(task_list)
        except (OSError, ImportError, ValueError, TypeError, LookupError, AssertionError) as error:
            names = ", ".join(map(str, task_list)) if isinstance(task_list, list) else str(task_list)
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"tasks {names}: lm-eval cannot prepare them ({type(error).__name__}: {reason}). Check that their data "
                f"can be reached (many lie on the hub), their extra libraries and, for a task of your own, its file."
            ) from error


def find_tasks(
    asked: Sequence[str], include_path: str | Path | Sequence[str | Path] | None, metadata: Mapping[str, Any]
) -> tuple[Tasks, list[str]]:
    """A manager that knows the tasks, and their names in full.

    lm-eval's own tasks are many, and reading their index takes seconds: it is left out where a folder of the user's has
    all that is asked for.

    Args:
        asked: names of tasks, groups or tags, patterns such as ``ruler_*``, or YAML files.
        include_path: folders of tasks of the user's own.
        metadata: what tasks are told, such as ``{"max_seq_lengths": [4096]}``.

    Raises:
        UserError: there is no such folder, or no such task; the nearest name is suggested.
    """
    given = (include_path,) if isinstance(include_path, str | Path) else include_path or ()
    folders = [Path(folder).expanduser() for folder in given]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"include_path: there is no folder {folder}. Give one that holds tasks' YAML files.")
    if not asked:
        raise UserError("tasks: expected at least one name, got none. `lm-eval ls tasks` prints what there is.")
    if folders:
        own = Tasks(include_path=folders, include_defaults=False, metadata=dict(metadata))
        if all(name in own.all_subtasks or _is_file(name) for name in asked):
            return own, list(asked)
    manager = Tasks(include_path=folders, metadata=dict(metadata))
    return manager, [found for name in asked for found in matching(name, manager)]


def matching(name: str, manager: Tasks) -> list[str]:
    """The tasks that a name or pattern stands for.

    Raises:
        UserError: there is none; the nearest are suggested.
    """
    if name in manager.task_index or _is_file(name):
        return [name]
    found: list[str] = manager.match_tasks([name]) if _PATTERN & set(name) else []
    if not found:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
        mend = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise UserError(f"unknown task {name!r}. {mend}`lm-eval ls tasks` prints all {len(manager.all_tasks):,}.")
    return found


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).expanduser().is_file()

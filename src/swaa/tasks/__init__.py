"""Tasks: data in, examples out; they know no model. A task's grader is in :mod:`swaa.graders`."""

from __future__ import annotations

from swaa.tasks.base import CountTokens, Example, Task
from swaa.tasks.counting import CommonWords, FrequentWords
from swaa.tasks.documents import DocumentQA
from swaa.tasks.file import File
from swaa.tasks.locomo import LoCoMo
from swaa.tasks.longbench import LongBenchV2
from swaa.tasks.longmemeval import LongMemEval
from swaa.tasks.needle import NeedleMultikey, NeedleMultiquery, NeedleMultivalue, NeedleSingle
from swaa.tasks.registry import get_task, register_task, task_from_dict, task_names, task_to_dict
from swaa.tasks.ruler import RulerJsonl
from swaa.tasks.tracking import VariableTracking

__all__ = [
    "CommonWords",
    "CountTokens",
    "DocumentQA",
    "Example",
    "File",
    "FrequentWords",
    "LoCoMo",
    "LongBenchV2",
    "LongMemEval",
    "NeedleMultikey",
    "NeedleMultiquery",
    "NeedleMultivalue",
    "NeedleSingle",
    "RulerJsonl",
    "Task",
    "VariableTracking",
    "get_task",
    "register_task",
    "task_from_dict",
    "task_names",
    "task_to_dict",
]

"""Tasks: data in, examples out; they know no model. docs/tasks.md has them all."""

from __future__ import annotations

from swaa.tasks.base import CountTokens, Example, Task
from swaa.tasks.counting import CommonWords, FrequentWords
from swaa.tasks.documents import DocumentQA
from swaa.tasks.file import File
from swaa.tasks.filetask import Content, Entry, FileTask, LeftOut
from swaa.tasks.locomo import LoCoMo
from swaa.tasks.longbench import LongBenchV2
from swaa.tasks.longmemeval import LongMemEval
from swaa.tasks.needle import NeedleMultikey, NeedleMultiquery, NeedleMultivalue, NeedleSingle
from swaa.tasks.registry import get_task, register_task, task_from_dict, task_names, task_to_dict
from swaa.tasks.ruler import RulerJsonl
from swaa.tasks.sized import HaystackTask, Order, SizedTask
from swaa.tasks.tracking import VariableTracking

__all__ = [
    "CommonWords",
    "Content",
    "CountTokens",
    "DocumentQA",
    "Entry",
    "Example",
    "File",
    "FileTask",
    "FrequentWords",
    "HaystackTask",
    "LeftOut",
    "LoCoMo",
    "LongBenchV2",
    "LongMemEval",
    "NeedleMultikey",
    "NeedleMultiquery",
    "NeedleMultivalue",
    "NeedleSingle",
    "Order",
    "RulerJsonl",
    "SizedTask",
    "Task",
    "VariableTracking",
    "get_task",
    "register_task",
    "task_from_dict",
    "task_names",
    "task_to_dict",
]

"""Graders of generated answers, each known by a name, such as ``recall`` or ``judge``; docs/graders.md has them all."""

from __future__ import annotations

from swaa.graders.base import Grade, Grader, Question
from swaa.graders.choice import Choice
from swaa.graders.judge import Judge
from swaa.graders.normal import holds, normalise
from swaa.graders.regex import Regex
from swaa.graders.registry import get_grader, grade, grader_names, parse_grader, register_grader
from swaa.graders.strings import AllFound, AnyFound, Exact, Recall
from swaa.graders.token_f1 import TokenF1

__all__ = [
    "AllFound",
    "AnyFound",
    "Choice",
    "Exact",
    "Grade",
    "Grader",
    "Judge",
    "Question",
    "Recall",
    "Regex",
    "TokenF1",
    "get_grader",
    "grade",
    "grader_names",
    "holds",
    "normalise",
    "parse_grader",
    "register_grader",
]

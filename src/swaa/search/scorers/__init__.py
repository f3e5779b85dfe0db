"""Scorers: which units should keep full attention. One frozen dataclass each, known by its name."""

from swaa.search.scorers.attention import GateGradient, HeadGate, LazyRatio
from swaa.search.scorers.base import Scorer
from swaa.search.scorers.controls import Fixed, Random
from swaa.search.scorers.greedy import Greedy
from swaa.search.scorers.one_unit import AddOne, DropOne
from swaa.search.scorers.registry import get_scorer, parse_scorer, register_scorer, scorer_names

__all__ = [
    "AddOne",
    "DropOne",
    "Fixed",
    "GateGradient",
    "Greedy",
    "HeadGate",
    "LazyRatio",
    "Random",
    "Scorer",
    "get_scorer",
    "parse_scorer",
    "register_scorer",
    "scorer_names",
]

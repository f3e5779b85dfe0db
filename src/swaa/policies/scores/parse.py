"""Scores from what a user writes: a Python expression in a string, or mappings and lists from YAML."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from swaa.errors import UserError, invalid, unknown
from swaa.policies.parse import check_arguments
from swaa.policies.scores.base import Scores
from swaa.policies.scores.registry import RESERVED, get_score, score_names
from swaa.policies.selector import every, select

_FUNCTIONS: dict[str, Callable[..., Any]] = {"every": every, "select": select}
_METHODS = ("on_layers", "on_heads")
_EXAMPLE = "Write an expression such as 'ALiBi() + SoftCap(30.0)'."
_MAX_TEXT = 20_000


def parse_scores(spec: str | Mapping[str, Any] | Sequence[Any] | Scores) -> Scores:
    """The score modifications that ``spec`` describes: an expression, a mapping or list from YAML, or scores already.

    Expressions are read, never executed: names, ``+``, ``.on_layers``, ``.on_heads`` and ``every``. Lists are sums
    (what comes first is applied first) of mappings as :func:`swaa.scores_to_list` makes them, or of expressions.

    Raises:
        UserError: the text is no such expression, a name or key is unknown, or a value is refused.
    """
    if isinstance(spec, Scores):
        return spec
    if isinstance(spec, str):
        return _parse_text(spec)
    if isinstance(spec, Mapping):
        return _parse_mapping(spec)
    if isinstance(spec, list | tuple) and spec:
        return reduce(add, map(parse_scores, spec))
    raise invalid("scores", accepted="an expression, a mapping or a list of these", got=spec, mend=_EXAMPLE)


def _parse_text(text: str) -> Scores:
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError("too long")
        value = _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        reason = f" ({error.msg}, column {error.offset})" if isinstance(error, SyntaxError) else ""
        raise invalid("scores", accepted="an expression", got=text[:200], mend=f"{_EXAMPLE}{reason}") from None
    if isinstance(value, Scores):
        return value
    mend = f"Call a score modification by name, such as ALiBi(). Known: {', '.join(score_names())}."
    raise invalid("scores", accepted="an expression", got=text, mend=mend)


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.List(items) | ast.Tuple(items):  # a tuple, as the fields of a modification are
            return tuple(_evaluate(item) for item in items)
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case ast.BinOp(left, ast.Add(), right):
            return _scores(left) + _scores(right)
        case ast.Call(ast.Name(name), args, keywords):
            return _call(name, _FUNCTIONS[name] if name in _FUNCTIONS else _class(name), args, keywords)
        case ast.Call(ast.Attribute(target, name), args, keywords):
            if name not in _METHODS:
                raise unknown("method", name, _METHODS)
            return _call(name, getattr(_scores(target), name), args, keywords)
        case ast.Name(name):
            _class(name)  # an unknown name says so first
            raise invalid("scores", accepted="a score modification", got=name, mend=f"Give its values: {name}(…).")
    mend = "Use names, +, .on_layers, .on_heads and every."
    raise invalid("scores", accepted="an expression", got=ast.unparse(node), mend=mend)


def _scores(node: ast.expr) -> Scores:
    value = _evaluate(node)
    if isinstance(value, Scores):
        return value
    raise invalid("scores", accepted="a score modification", got=value, mend="'+' and scopes act on these.")


def _class(name: str) -> Callable[..., Any]:
    if name not in score_names():
        raise unknown("score modification", name, (*score_names(), *_FUNCTIONS))
    return get_score(name)


def _call(name: str, function: Callable[..., Any], args: list[ast.expr], keywords: list[ast.keyword]) -> Any:
    values = [_evaluate(arg) for arg in args]
    named = {word.arg or "**": _evaluate(word.value) for word in keywords}  # '**' is no parameter: refused
    check_arguments(name, function, *values, **named)
    return function(*values, **named)


def _parse_mapping(spec: Mapping[str, Any]) -> Scores:
    if "score" not in spec:
        mend = "Write 'score: NAME', with its fields, and layers or heads, beside it."
        raise invalid("scores", accepted="a mapping with the key 'score'", got=dict(spec), mend=mend)
    mod = get_score(str(spec["score"]))
    known = [field.name for field in dataclasses.fields(mod)]
    values = {}
    for key, value in spec.items():
        if key in known:
            values[key] = tuple(value) if isinstance(value, list) else value
        elif key not in RESERVED:
            raise unknown(f"key of score modification {mod.__name__}", key, (*known, *RESERVED))
    check_arguments(mod.__name__, mod, **values)
    scores: Scores = mod(**values)
    if "layers" in spec:
        scores = scores.on_layers(spec["layers"])
    return scores.on_heads(spec["heads"]) if "heads" in spec else scores

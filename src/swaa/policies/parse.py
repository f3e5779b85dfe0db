"""Policies from what a user writes: a Python expression in a string, or dicts and lists from YAML."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swaa.errors import UserError, invalid, unknown
from swaa.policies.base import AttentionPolicy
from swaa.policies.compositor import Rule, rule, stack
from swaa.policies.registry import find, pattern_names, policy_names
from swaa.policies.selector import every, select

_FUNCTIONS: dict[str, Callable[..., Any]] = {"stack": stack, "rule": rule, "every": every, "select": select}
_METHODS = ("in_phase", "on_layers", "on_heads")
_NODE_KINDS = ("policy", "union", "intersection", "complement", "scope", "stack")
_WHERE = ("layers", "phase", "heads")
_MAX_TEXT = 20_000


def parse_policy(spec: str | Mapping[str, Any] | AttentionPolicy) -> AttentionPolicy:
    """The policy that ``spec`` describes: an expression, a mapping from YAML, or a policy already.

    Expressions are read, never executed: names of policies and patterns, ``|``, ``&``, ``~``, the three scopes,
    ``stack``, ``rule`` and ``every``. Mappings are what :func:`swaa.policy_to_dict` makes; a string may stand for any
    of their parts.

    Raises:
        UserError: the text is no such expression, a name or key is unknown, or a value is refused.
    """
    if isinstance(spec, AttentionPolicy):
        return spec
    if isinstance(spec, str):
        return _parse_text(spec)
    if isinstance(spec, Mapping):
        return _parse_mapping(spec)
    mend = "Write an expression such as 'SlidingWindow(128) | SinkTokens(4)'."
    raise invalid("policy", accepted="an expression or a mapping", got=spec, mend=mend)


def _parse_text(text: str) -> AttentionPolicy:
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError("too long")
        value = _evaluate(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        reason = f" ({error.msg}, column {error.offset})" if isinstance(error, SyntaxError) else ""
        mend = f"Write for example 'SlidingWindow(128) | SinkTokens(4)'.{reason}"
        raise invalid("policy", accepted="a policy expression", got=text[:200], mend=mend) from None
    if isinstance(value, AttentionPolicy):
        return value
    known = ", ".join(sorted((*policy_names(), *pattern_names())))
    mend = f"Call a policy by name, such as SlidingWindow(128). Known: {known}."
    raise invalid("policy", accepted="a policy expression", got=text, mend=mend)


def _evaluate(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.List(items) | ast.Tuple(items):  # a tuple, as the fields of a policy are
            return tuple(_evaluate(item, text) for item in items)
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case ast.UnaryOp(ast.Invert(), operand):
            return ~_policy(operand, text)
        case ast.BinOp(left, ast.BitOr(), right):
            return _policy(left, text) | _policy(right, text)
        case ast.BinOp(left, ast.BitAnd(), right):
            return _policy(left, text) & _policy(right, text)
        case ast.Call(ast.Name(name), args, keywords):
            function = _FUNCTIONS[name] if name in _FUNCTIONS else find(name, others=_FUNCTIONS)
            return _call(name, function, args, keywords, text)
        case ast.Call(ast.Attribute(target, name), args, keywords):
            if name not in _METHODS:
                raise unknown("method", name, _METHODS)
            return _call(name, getattr(_policy(target, text), name), args, keywords, text)
        case ast.Name(name):
            find(name, others=_FUNCTIONS)  # an unknown name says so first
            raise invalid("policy", accepted="a policy", got=name, mend=f"Give its values: {name}(…).")
    mend = "Use policy names, | & ~, .in_phase, .on_layers, .on_heads, stack, rule and every."
    raise invalid("policy", accepted="a policy expression", got=ast.unparse(node), mend=mend)


def _policy(node: ast.expr, text: str) -> AttentionPolicy:
    value = _evaluate(node, text)
    if isinstance(value, AttentionPolicy):
        return value
    raise invalid("policy", accepted="a policy", got=value, mend="Operators and scopes act on policies.")


def _call(name: str, function: Callable[..., Any], args: list[ast.expr], keywords: list[ast.keyword], text: str) -> Any:
    values = [_evaluate(arg, text) for arg in args]
    named = {word.arg or "**": _evaluate(word.value, text) for word in keywords}  # '**' is no parameter: refused
    check_arguments(name, function, *values, **named)
    return function(*values, **named)


def check_arguments(name: str, function: Callable[..., Any], *values: Any, **named: Any) -> None:
    """Refuse a call with a wrong number of arguments, or with unknown names."""
    signature = inspect.signature(function)
    try:
        signature.bind(*values, **named)
    except TypeError as error:
        given = ", ".join([*map(repr, values), *(f"{key}={value!r}" for key, value in named.items())])
        wanted = ", ".join(
            str(parameter.replace(annotation=parameter.empty)) for parameter in signature.parameters.values()
        )
        raise UserError(f"{name}({given}): {error}. Write {name}({wanted}).") from None


def _parse_mapping(spec: Mapping[str, Any]) -> AttentionPolicy:
    # a policy's own fields stand beside its name, and may have the name of another kind
    kinds = ["policy"] if "policy" in spec else [kind for kind in _NODE_KINDS if kind in spec]
    if len(kinds) != 1:
        near = next(iter(spec), "nothing") if not kinds else ", ".join(kinds)
        mend = f"Use exactly one of {', '.join(_NODE_KINDS)} as a key."
        raise invalid("policy", accepted="a mapping of one kind", got=near, mend=mend)
    kind = kinds[0]
    rest = {str(key): value for key, value in spec.items() if key != kind}
    if kind == "policy":
        return _parse_leaf(str(spec[kind]), rest)
    _refuse_unknown_keys(kind, rest)
    if kind == "complement":
        return ~parse_policy(spec[kind])
    if kind == "scope":
        return _parse_scope(spec[kind], rest)
    parts = spec[kind]
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise invalid(f"policy.{kind}", accepted="a list", got=parts, mend="Write one policy a line, each after '- '.")
    if kind == "stack":
        return stack(*[_parse_rule(part) for part in parts])
    policies = [parse_policy(part) for part in parts]
    result = policies[0]
    for policy in policies[1:]:
        result = result | policy if kind == "union" else result & policy
    return result


def _parse_leaf(name: str, parameters: dict[str, Any]) -> AttentionPolicy:
    function = find(name)
    accepted = inspect.signature(function).parameters
    for key in parameters:
        if key not in accepted:
            raise unknown(f"key of policy {name}", key, accepted)
    values = {key: _as_tuples(value) for key, value in parameters.items()}
    check_arguments(name, function, **values)
    return function(**values)


def _as_tuples(value: Any) -> Any:
    """Lists as tuples, which policies can be compared and hashed with."""
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _parse_scope(inside: Any, rest: dict[str, Any]) -> AttentionPolicy:
    otherwise = parse_policy(rest["otherwise"]) if "otherwise" in rest else None
    chosen = [key for key in _WHERE if key in rest]
    if len(chosen) != 1 and (otherwise is not None or not chosen):
        mend = "Give one of layers, phase and heads; several only without 'otherwise'."
        raise invalid("policy.scope", accepted="a place", got=chosen, mend=mend)
    policy = parse_policy(inside)
    for key in chosen:
        method = policy.in_phase if key == "phase" else policy.on_layers if key == "layers" else policy.on_heads
        policy = method(rest[key], otherwise=otherwise)
    return policy


def _parse_rule(part: Any) -> Rule:
    if not isinstance(part, Mapping) or "rule" not in part:
        mend = "Write '- rule: …' with layers, phase or heads beside it."
        raise invalid("policy.stack", accepted="a list of rules", got=part, mend=mend)
    where = {str(key): value for key, value in part.items() if key != "rule"}
    for key in where:
        if key not in _WHERE:
            raise unknown("key of a rule", key, (*_WHERE, "rule"))
    return rule(parse_policy(part["rule"]), **where)


def _refuse_unknown_keys(kind: str, rest: dict[str, Any]) -> None:
    known = (*_WHERE, "otherwise") if kind == "scope" else ()
    for key in rest:
        if key not in known:
            raise unknown(f"key beside '{kind}'", key, known)

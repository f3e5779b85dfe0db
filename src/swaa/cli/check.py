"""``swaa check``: the proof of a policy, one line a check."""

from __future__ import annotations

import argparse
import inspect
from typing import TYPE_CHECKING, Any

from swaa.cli.common import add_plugins, make_console, say
from swaa.errors import UserError, invalid, unknown

if TYPE_CHECKING:
    from swaa.cli.common import Subparsers


def add_check(subparsers: Subparsers) -> None:
    """``swaa check TARGET | --all``"""
    parser = subparsers.add_parser("check", help="prove a policy: every mask, kernel and cache against its definition")
    target = "package.module:Class, my_policy.py:Class, a registered name or an expression"
    parser.add_argument("target", metavar="TARGET", nargs="?", help=target)
    parser.add_argument("--all", action="store_true", help="check every registered policy and pattern")
    oracle = "your own definition as a loop, oracle(policy, q, k) -> bool (package.module:function or file.py:function)"
    parser.add_argument("--oracle", metavar="FUNCTION", help=oracle)
    parser.add_argument("--no-flex", action="store_true", help="do not compile FlexAttention (saves some seconds)")
    add_plugins(parser)
    parser.set_defaults(handler=check)


def check(args: argparse.Namespace) -> int:
    """Print each check as it ends, then what failed; the exit code is 1 if something did."""
    if (args.target is None) == (not args.all):
        raise invalid("TARGET", accepted="a policy, or --all", got=args.target, mend="Give one of the two.")
    if args.all and args.oracle:
        raise invalid("--oracle", accepted="a TARGET beside it", got="--all", mend="Check the policies one by one.")
    from swaa.policies import load_plugin

    for plugin in args.plugin:
        load_plugin(plugin)
    oracle = None if args.oracle is None else _named(args.oracle, "--oracle")
    targets = _registered() if args.all else [_target(args.target)]
    from swaa.testing import check_policy

    console, reports = make_console(), []
    for target in targets:
        say(console, str(getattr(target, "__name__", None) or getattr(target, "name", None) or target))
        report = check_policy(
            target, oracle=oracle, flex=not args.no_flex, progress=lambda outcome: say(console, f"  {outcome}")
        )
        reports.append(report)
        for line in report.explained():
            say(console, line)
    if args.all:
        failed = [report.subject for report in reports if not report.ok]
        say(console, f"\n{len(reports)} checked; {', '.join(failed) if failed else 'none'} failed.")
    return 0 if all(report.ok for report in reports) else 1


def _registered() -> list[Any]:
    """All policies and patterns."""
    from swaa.policies.registry import get_pattern, get_policy, pattern_names, policy_names

    return [*map(get_policy, policy_names()), *map(get_pattern, pattern_names())]


def _target(text: str) -> Any:
    """A policy class, a pattern or a composed policy from what stands on the command line.

    Raises:
        UserError: there is none of that name, or the expression is none.
    """
    from swaa.policies import parse_policy
    from swaa.policies.registry import get_pattern, get_policy, pattern_names, policy_names, unknown_policy

    place, colon, name = text.rpartition(":")
    if colon and name.isidentifier() and "(" not in place:
        found = _named(text, "TARGET")
        return get_pattern(name) if inspect.isfunction(found) and name in pattern_names() else found
    if text.endswith(".py"):
        raise invalid("TARGET", accepted="a class of the file", got=text, mend=f"Write {text}:NAME.")
    if not text.isidentifier():
        return parse_policy(text)
    if text in pattern_names():
        return get_pattern(text)
    if text not in policy_names():
        raise unknown_policy(text)
    return get_policy(text)


def _named(text: str, field: str) -> Any:
    """What ``package.module:name`` or ``file.py:name`` names.

    Raises:
        UserError: the file, module or name is not there, or importing fails.
    """
    from swaa.policies import load_plugin

    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        accepted = "package.module:name or file.py:name"
        raise invalid(field, accepted=accepted, got=text, mend="Write for example my_policy.py:MyPolicy.")
    module = load_plugin(place)
    if not hasattr(module, name):
        raise UserError(f"{field}: {unknown('name', name, [one for one in vars(module) if not one.startswith('_')])}")
    return getattr(module, name)

"""No healthy policy is accused: everything registered passes, and Flex is compiled for a few."""

from __future__ import annotations

import pytest

import swaa
from swaa.compiler.plan import has_cpp_compiler
from swaa.policies import get_policy, policy_names
from swaa.policies.registry import get_pattern, pattern_names
from swaa.testing import check_policy


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_passes(name: str) -> None:
    report = check_policy(get_policy(name), flex=False)
    assert report.ok, str(report)
    assert not [outcome for outcome in report.outcomes if outcome.status == "warning"], str(report)


@pytest.mark.parametrize("name", pattern_names())
def test_every_pattern_passes(name: str) -> None:
    """Their parts are proven above; here what composing adds. `swaa check NAME` makes all checks."""
    only = ("readable", "dense mask", "verdicts sound", "retention", "round trip", "padding", "packing", "otherwise")
    report = check_policy(get_pattern(name), flex=False, only=only)
    assert report.ok, str(report)


@pytest.mark.skipif(not has_cpp_compiler(), reason="FlexAttention needs a C++ compiler on CPU")
def test_flex_is_compiled() -> None:
    report = check_policy("(SlidingWindow(3) | SinkTokens(2)).in_phase('prefill')", only=["FlexAttention"])
    assert {outcome.check: outcome.status for outcome in report.outcomes}["FlexAttention"] == "ok", str(report)


@pytest.mark.parametrize(
    "policy", [swaa.SlidingWindow(4), "~SlidingWindow(4) & SinkTokens(3)", {"policy": "SinkTokens", "num_tokens": 3}]
)
def test_instances_expressions_and_mappings(policy: object) -> None:
    assert check_policy(policy, flex=False)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (7, "policy: expected a policy, got 7. Give a class derived from swaa.Predicate"),
        ("Slidingwindow(3)", "unknown policy 'Slidingwindow'. Did you mean 'SlidingWindow'?"),
    ],
)
def test_what_is_no_policy_is_refused(policy: object, message: str) -> None:
    with pytest.raises(swaa.UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
        check_policy(policy)


def test_an_oracle_of_a_composition_is_refused() -> None:
    with pytest.raises(swaa.UserError, match="oracle: expected none, as this is a composition"):
        check_policy("SlidingWindow(3) | SinkTokens(1)", oracle=lambda policy, q, k: True)


def test_a_report_raises_for_a_test_and_prints_itself() -> None:
    report = check_policy(swaa.SinkTokens(2), flex=False)
    assert report.require() is report
    assert str(report).splitlines()[0] == "SinkTokens(2)"
    assert str(report).splitlines()[-1] == "SinkTokens(2): 25 checks, none failed."

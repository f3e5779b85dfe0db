"""The compositor: a policy as an ordered stack of rules over layers, phases and heads."""

from __future__ import annotations

from dataclasses import dataclass

from swaa.errors import invalid
from swaa.policies.base import AttentionPolicy, check_phase, from_normal_form
from swaa.policies.piecewise import Phase, scoped
from swaa.policies.selector import EVERYTHING, IndexSet, select


@dataclass(frozen=True)
class Rule:
    """One line of a stack: a policy and where it applies. Build it with :func:`rule`."""

    policy: AttentionPolicy
    layers: IndexSet
    phase: Phase | None
    heads: IndexSet

    @property
    def is_default(self) -> bool:
        """Does the rule apply everywhere?"""
        return self.layers == EVERYTHING and self.phase is None and self.heads == EVERYTHING


def rule(policy: AttentionPolicy, *, layers: object = None, phase: str | None = None, heads: object = None) -> Rule:
    """A rule for :func:`stack`: ``policy`` on these layers, in this phase, on these heads; all of them by default."""
    if not isinstance(policy, AttentionPolicy):
        raise invalid("rule.policy", accepted="an attention policy", got=policy, mend="Write the policy first.")
    return Rule(
        policy,
        EVERYTHING if layers is None else select(layers, field="rule.layers"),
        None if phase is None else check_phase(phase),
        EVERYTHING if heads is None else select(heads, field="rule.heads"),
    )


def stack(*rules: Rule) -> AttentionPolicy:
    """The policy of the first rule that matches; the last rule is the default.

    >>> from swaa import FullAttention, SlidingWindow
    >>> stack(rule(FullAttention(), phase="decode"), rule(SlidingWindow(8)))
    SlidingWindow(8).in_phase('prefill')

    Raises:
        UserError: there is no rule, or the last one does not apply everywhere.
    """
    if not all(isinstance(part, Rule) for part in rules):
        bad = next(part for part in rules if not isinstance(part, Rule))
        raise invalid("stack", accepted="rules", got=bad, mend="Wrap each policy: stack(rule(SlidingWindow(8))).")
    if not rules or not rules[-1].is_default:
        last = "no rule" if not rules else "a last rule that does not apply everywhere"
        raise invalid(
            "stack",
            accepted="rules of which the last is the default",
            got=last,
            mend="End with a rule without layers, phase and heads, such as rule(FullAttention()).",
        )
    form = rules[-1].policy.normal_form
    for part in reversed(rules[:-1]):
        form = scoped(part.policy.normal_form, form, layers=part.layers, phase=part.phase, heads=part.heads)
    return from_normal_form(form)

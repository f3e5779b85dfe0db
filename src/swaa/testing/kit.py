"""``check_policy``: the whole proof of a policy, as named checks."""

from __future__ import annotations

from collections.abc import Callable, Collection

from swaa.errors import UserError, invalid
from swaa.reading import check_choice
from swaa.testing import algebra, attention, content, far, generation, masks, values
from swaa.testing.diagnosis import raised, refused
from swaa.testing.findings import FAILED, CheckReport, Failure, Note, Outcome, skipped
from swaa.testing.integers import Refused
from swaa.testing.reading import Oracle
from swaa.testing.subject import Subject, subject_of

Check = Callable[[Subject], Failure | Note]

FIRST: dict[str, Check] = {"value": algebra.value, "readable": values.readable, "purity": values.purity}
"""Where one of these fails, nothing else can be known."""

CHECKS: dict[str, Check] = {
    "conventions": values.conventions,
    "oracle": values.oracle,
    "implications": algebra.implications,
    "dense mask": masks.dense_masks,
    "kernel mask": masks.kernel_masks,
    "verdicts sound": masks.verdicts,
    "verdicts exact": masks.exactness,
    "far positions": far.far_positions,
    "causality": attention.causality,
    "retention": masks.retention,
    "round trip": values.round_trip,
    "padding": masks.padded,
    "padding, attention": attention.unpadded,
    "packing": masks.packed,
    "phase scopes": masks.phases,
    "head scopes": masks.heads,
    "layer scopes": masks.layers,
    "otherwise": masks.otherwise,
    "SDPA dense": attention.dense,
    "SDPA blockwise": attention.blockwise,
    "FlexAttention": attention.flex,
    "generate()": generation.generates,
}

BY_CONTENT: dict[str, Check] = {
    "value": algebra.value,
    "round trip": values.round_trip,
    "padding": content.padded,
    "packing": content.packed,
    "SDPA dense": content.dense,
    "SDPA blockwise": content.blockwise,
    "generate()": generation.generates,
}
"""What can be asked of a policy that depends on queries and keys."""

_NO_MASK = "it chooses by queries and keys, so there is no mask of positions"


def check_policy(
    policy: object,
    *,
    oracle: Oracle | None = None,
    flex: bool = True,
    only: Collection[str] = (),
    progress: Callable[[Outcome], None] | None = None,
) -> CheckReport:
    """Prove a policy: that what it says of one pair at a time is what every part of swaa makes of it.

    Args:
        policy: a class derived from :class:`swaa.Predicate` (all its ``examples()`` are checked, alone and composed),
            an instance, an expression or its dict form, or a registered pattern.
        oracle: the author's own loop, ``oracle(policy, q, k) -> bool`` over plain ints, for a predicate. Without it,
            the check knows what ``visible`` says and not what it was meant to say.
        flex: compile FlexAttention for one small example (4 to 7 seconds on CPU).
        only: names of checks; the others are left out. By default all are made.
        progress: called with each outcome as it comes.

    Returns:
        The report; ``report.ok`` tells whether nothing failed, ``report.require()`` raises for a test.

    Raises:
        UserError: ``policy`` is none, or has no examples; ``oracle`` is no function; ``only`` names no check.
    """
    for name in only:
        check_choice("only", name, [*FIRST, *CHECKS])
    if oracle is not None and not callable(oracle):
        raise invalid("oracle", accepted="a function oracle(policy, q, k) -> bool", got=oracle, mend="Give its name.")
    subject = subject_of(policy, oracle=oracle, flex=flex)
    outcomes: list[Outcome] = []

    def note(name: str, check: Check) -> None:
        if only and name not in only:
            return
        result = _carried_out(name, check, subject)
        if isinstance(result, Failure):
            outcomes.append(Outcome(name, FAILED, failure=result))
        else:
            outcomes.append(Outcome(name, result.status, result.detail))
        if progress is not None:
            progress(outcomes[-1])

    if subject.by_content:
        for name in (*FIRST, *CHECKS):
            note(name, BY_CONTENT.get(name, lambda _: skipped(_NO_MASK)))
        return CheckReport(subject.name, tuple(outcomes))
    for name, check in FIRST.items():
        note(name, check)
        if outcomes and outcomes[-1].failure:
            break
    doubted = outcomes[-1].check if outcomes and outcomes[-1].failure else None
    for name, check in CHECKS.items():
        note(name, check if doubted is None else lambda _: skipped(f"{doubted} failed"))
    return CheckReport(subject.name, tuple(outcomes))


def _carried_out(name: str, check: Check, subject: Subject) -> Failure | Note:
    """The check's result; whatever the author's code raises is a failure with the author's line."""
    try:
        return check(subject)
    except Refused as error:
        return refused(error)
    except UserError as error:
        return Failure("refused by swaa", str(error), "Mend what the message names.")
    except Exception as error:
        return raised(error, f"the check {name!r} ended with an error")

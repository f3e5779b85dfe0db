"""Answers that a regular expression reads."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.errors import UserError
from swaa.graders import Question, Regex, grade, parse_grader

NINE = Question("", ("9", "nine"))


def test_without_a_group_the_pattern_decides() -> None:
    assert Regex(r"\bnine\b").grade("It is nine.", NINE).score == 1
    assert Regex(r"\bnine\b").grade("It is ninety.", NINE).score == 0
    assert Regex(r"\ANINE", flags="i").grade("nine", NINE).score == 1
    assert Regex(r"^nine$", flags="im").grade("It is\nNine\n.", NINE).score == 1
    assert Regex(r"^nine$").grade("It is\nnine\n.", NINE).score == 0


def test_a_group_is_compared_with_the_references() -> None:
    grader = Regex(r"#+ *([^\n#]+)", group=1)
    right = grader.grade("#### 8\n#### 'Nine'. ", NINE)
    assert (right.score, right.found, right.missing, right.verdict) == (1.0, ("nine",), ("9",), "'Nine'. ")
    first = Regex(r"#+ *([^\n#]+)", group=1, take="first").grade("#### 8\n#### 9", NINE)
    assert (first.score, first.verdict) == (0.0, "8")
    none = grader.grade("9", NINE)
    assert (none.score, none.verdict, none.missing) == (0.0, None, ("9", "nine"))
    named = parse_grader({"name": "regex", "pattern": r"=(?P<value>\d+)", "group": "value"})
    assert named.grade("x=9", NINE).all_correct
    assert parse_grader(named.to_dict()) == named
    unset = Regex("(9)?x", group=1).grade("x", NINE)
    assert (unset.score, unset.verdict) == (0.0, None)


@given(
    pattern=st.text(alphabet="ab.*?+|^$", min_size=1, max_size=6).filter(str.strip),
    text=st.text(alphabet="ab\n", max_size=8),
)
@settings(max_examples=settings.default.max_examples // 8)
def test_agrees_with_python(pattern: str, text: str) -> None:
    try:
        expected = re.search(pattern, text) is not None
    except re.error:
        return
    assert (Regex(pattern).grade(text, NINE).score == 1) == expected


@pytest.mark.parametrize("group", [None, 0])
def test_a_pattern_that_takes_for_ever_is_stopped(group: int | None) -> None:
    grader = Regex(r"(a|aa)+$", group=group, timeout=0.2)
    begin = time.monotonic()
    slow, quick = grader.grade_all([("a" * 80 + "b", NINE), ("aaa", NINE)])
    assert time.monotonic() - begin < 5
    assert slow.score is None
    assert slow.error == r"the pattern '(a|aa)+$' took longer than 0.2 s on this answer"
    assert not slow.all_correct
    assert quick.error is None
    assert quick.score == (1 if group is None else 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "regex.pattern: this field is missing"),
        ({"pattern": "(9"}, r"regex.pattern: '\(9' is no regular expression: missing \) at position 2. Mend it there."),
        ({"pattern": ""}, "regex.pattern: expected a non-empty string"),
        ({"pattern": 9}, "regex.pattern: expected a non-empty string"),
        ({"pattern": "9", "flags": "iq"}, "regex.flags: expected letters of imsx, got 'iq'. Write flags: i."),
        (
            {"pattern": "9", "group": 1},
            r"regex.group: expected the name of a group, or an int in \[0, 0\], got 1. 0 is",
        ),
        ({"pattern": "9", "group": True}, "regex.group: expected the name of a group"),
        ({"pattern": "(?P<value>9)", "group": "valu"}, "regex.group: unknown group 'valu'. Did you mean 'value'?"),
        ({"pattern": "9", "take": "frist"}, "regex.take: unknown value 'frist'. Did you mean 'first'?"),
        ({"pattern": "9", "timeout": 0}, r"regex.timeout: expected a number in \(0, 3600\], got 0."),
    ],
)
def test_mistakes(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_grader({"name": "regex", **values})
    with pytest.raises(UserError, match="regex.pattern: this field is missing"):
        grade("regex", "9", ["9"])

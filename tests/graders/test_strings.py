"""Graders that look for references."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.errors import UserError
from swaa.graders import Grade, grade, holds, normalise

FIFTH = settings(max_examples=settings.default.max_examples // 5)

LOOKERS = ("recall", "all_found", "any_found", "exact")


class TestHolds:
    @pytest.mark.parametrize(
        ("text", "reference"),
        [
            ("The number is 12345.", "12345"),
            ("12345", "12345"),
            ("=12345,", "12345"),
            ("1,234,567", "1234567"),
            ("It is 12,345.", "12345"),
            ("12345,67890", "67890"),
            ("12345,67890", "12345"),
            ("９８７６", "9876"),  # noqa: RUF001  # full-width digits are meant
            ("100, 200", "100"),
            ("12, 345", "12"),
            ("12, 345", "345"),
            ("12345,678", "12345"),
            ("12345,678", "678"),
            ("It is 12,345, or so", "12345"),
            ("12345", "12,345"),
            ("1,200.50 euros", "1200.50"),
            ("1200.50", "1,200.50"),
            ("it is -42.", "-42"),
            ("it is \u221242.", "-42"),
            ("from 10-42", "42"),
            ("(3)-42", "42"),
            ("A-42", "42"),
            ("so--42", "42"),
            ("- 42", "42"),
            ("I don\u2019t", "don't"),
            ("I don't", "don\u2019t"),
            ("a \u201cbig\u201d dog", 'a "big" dog'),
            ("it is 3.14.", "3.14"),
            ("The APPLE fell", "apple"),
            ("new\n york", "New York"),
            ("我在北京。", "北京"),
            ("xcat cat", "cat"),
            ("STRASSE", "straße"),
        ],
    )
    def test_found(self, text: str, reference: str) -> None:
        assert holds(text, reference)

    @pytest.mark.parametrize(
        ("text", "reference"),
        [
            ("9123456", "12345"),
            ("123456", "12345"),
            ("912345", "12345"),
            ("12345678", "1234567"),
            ("42.5", "42"),
            ("0.42", "42"),
            ("4,2", "42"),
            ("1,2345", "12345"),
            ("a12345", "12345"),
            ("12345th", "12345"),
            ("category", "cat"),
            ("snake_cat", "cat"),
            ("12,345 people", "12"),
            ("12,345 people", "345"),
            ("It is 12,345, or so", "12"),
            ("100,200", "200"),
            ("1,234,567", "1,234"),
            ("1,234,567", "234,567"),
            ("1,200.50", "1,200"),
            ("1,200.50", "200.50"),
            ("-42", "42"),
            ("(-42)", "42"),
            ("x = -0.5", "0.5"),
            ("\u221242", "42"),
            ("-1,234", "1,234"),
            ("42", "-42"),
            ("10-42", "-42"),
            ("A-42", "-42"),
            ("", "1"),
        ],
    )
    def test_not_found(self, text: str, reference: str) -> None:
        assert not holds(text, reference)

    @FIFTH
    @given(number=st.integers(0, 10**9), other=st.integers(0, 10**12))
    def test_a_number_holds_only_itself(self, number: int, other: int) -> None:
        assert holds(f"it is {other}!", str(number)) == (number == other)

    @FIFTH
    @given(number=st.integers(0, 10**12))
    def test_thousands(self, number: int) -> None:
        assert holds(f"(about {number:,})", str(number))

    @FIFTH
    @given(number=st.integers(-(10**9), 10**9), other=st.integers(-(10**9), 10**9), part=st.integers(0, 999))
    def test_a_number_with_commas_and_sign_holds_only_itself(self, number: int, other: int, part: int) -> None:
        for looked_for in (number, other, part):
            assert holds(f"it is {number:,}, or so", f"{looked_for:,}") == (looked_for == number)
            assert holds(f"it is {number:,}.", str(looked_for)) == (looked_for == number)

    @FIFTH
    @given(text=st.text(max_size=80))
    def test_every_text_holds_itself(self, text: str) -> None:
        assert not normalise(text) or holds(text, text)
        assert normalise(normalise(text)) == normalise(text)


class TestGraders:
    @pytest.mark.parametrize(
        ("name", "text", "score"),
        [
            ("recall", "7 and 8", 1.0),
            ("recall", "8", 0.5),
            ("recall", "78", 0.0),
            ("all_found", "7 and 8", 1.0),
            ("all_found", "8", 0.0),
            ("any_found", "8", 1.0),
            ("any_found", "9", 0.0),
            ("exact", " '8.' ", 1.0),
            ("exact", "8 it is", 0.0),
        ],
    )
    def test_by_hand(self, name: str, text: str, score: float) -> None:
        assert grade(name, text, ["7", "8"]).score == score

    def test_says_what_was_found(self) -> None:
        assert grade("recall", "eight: 8", ("7", "8")) == Grade(0.5, found=("8",), missing=("7",))
        assert grade("exact", "8", ("7", "8")) == Grade(1.0, found=("8",), missing=("7",))
        assert not grade("recall", "8", ("7", "8")).all_correct
        assert grade("recall", "8 7", ("7", "8")).all_correct

    @given(
        text=st.text(alphabet="12 ,.ab", max_size=40),
        references=st.lists(st.text(alphabet="12ab", min_size=1, max_size=3), min_size=1, max_size=4),
    )
    @settings(max_examples=settings.default.max_examples // 4)
    def test_graders_agree(self, text: str, references: list[str]) -> None:
        grades = {name: grade(name, text, references) for name in LOOKERS}
        for one in grades.values():
            assert 0 <= one.score <= 1
            assert sorted(one.found + one.missing) == sorted(references)
        recall = grades["recall"].score
        assert grades["all_found"].score == (recall == 1)
        assert grades["any_found"].score == (recall > 0)
        assert grades["exact"].score <= grades["any_found"].score
        joined = grade("recall", f"{text} {' '.join(references)}", references)
        assert joined.all_correct


class TestMistakes:
    @pytest.mark.parametrize("references", [[], [""], ["7", "  "], "7"])
    def test_references(self, references: list[str]) -> None:
        with pytest.raises(UserError, match="references: expected a list of non-blank strings, got .* An empty refer"):
            grade("recall", "7", references)

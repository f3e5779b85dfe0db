"""Graders by name and as users write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from swaa.errors import UserError
from swaa.graders import Grade, Grader, Question, get_grader, grade, grader_names, parse_grader, register_grader
from swaa.graders import registry as known


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(known, "_graders", dict(known._graders))


@dataclass(frozen=True)
class Shouting(Grader):
    """A user's own grader."""

    name: ClassVar[str] = "shouting"
    loudness: int = 1

    def grade(self, text: str, question: Question) -> Grade:
        return Grade(float(text.endswith("!" * self.loudness)))


@pytest.mark.usefixtures("own_registry")
class TestRegister:
    def test_a_users_own(self) -> None:
        assert register_grader(Shouting) is Shouting
        assert get_grader("shouting") is Shouting
        assert "shouting" in grader_names()
        assert grade("shouting", "yes!", ["a"]).all_correct
        loud = parse_grader({"name": "shouting", "loudness": 2})
        assert loud == Shouting(2)
        assert [one.score for one in loud.grade_all([("a!!", Question("", ("x",))), ("a!", Question("", ("x",)))])] == [
            1,
            0,
        ]
        loud.check()
        register_grader(Shouting)  # a module that is imported again

    def test_a_taken_name(self) -> None:
        taken = type("Taken", (Shouting,), {"name": "recall", "__module__": "here"})
        with pytest.raises(
            UserError, match=r"grader name 'recall' is taken by swaa.graders.strings.Recall; here.Taken"
        ):
            register_grader(dataclass(frozen=True)(taken))

    @pytest.mark.parametrize(
        "make", [lambda: type("Loose", (Grader,), {"name": "loose"}), lambda: type("Mute", (), {})]
    )
    def test_no_frozen_dataclass(self, make: object) -> None:
        with pytest.raises(UserError, match="grader: expected a frozen dataclass with a name, got '(Loose|Mute)'. Set"):
            register_grader(make())  # type: ignore[operator]


class TestParse:
    def test_all_known_by_name_go_through_plain_values(self) -> None:
        for name in grader_names():
            if name in {"judge", "regex"}:  # they have parameters without default
                continue
            grader = parse_grader(name)
            assert grader.name == name
            assert parse_grader(grader) is grader
            assert parse_grader(grader.to_dict()) == grader

    def test_unknown_name(self) -> None:
        with pytest.raises(UserError, match="unknown grader 'recal'. Did you mean 'recall'?"):
            parse_grader("recal")
        with pytest.raises(UserError, match="unknown grader 'recal'. Did you mean 'recall'?"):
            grade("recal", "7", ["7"])

    def test_unknown_parameter(self) -> None:
        with pytest.raises(UserError, match="unknown field 'recall.share'"):
            parse_grader({"name": "recall", "share": 1})

    @pytest.mark.parametrize("value", [3, {}, {"name": 3}, ["recall"], None])
    def test_neither_name_nor_mapping(self, value: object) -> None:
        with pytest.raises(UserError, match="grader: expected the name of a grader, or a mapping .* known: all_found"):
            parse_grader(value)  # type: ignore[arg-type]

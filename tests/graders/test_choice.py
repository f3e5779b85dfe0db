"""Letters of multiple-choice answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.errors import UserError
from swaa.graders import Choice, Question, parse_grader
from swaa.graders.choice import find_letter

LETTERS = ("A", "B", "C", "D")
NOUNS = ("dog", "house", "major key", "vitamin", "person who sings", "bit of luck", "day")
BEFORE = ("", "Let me think. ", "A dog barks in a house.\n", "I saw a cat; it is a cat.\n\n", "It is not a trick. ")
AFTER = ("", ".", "\n", ", because a dog barks.", " because a dog barks.", ".\nThat was a question.")
ANNOUNCEMENTS = (
    "The correct answer is {}",
    "answer: {}",
    "**Answer:** {}",
    "Answer = {}",
    "My final choice is {}",
    "the answer would be option {}",
    "The answer is: {}",
    "I choose {}",
    "I'd go with {}",
    "so it must be {}",
)
DRESSES = ("{}", "({})", "**{}**", "[{}]", "`{}`", "({}", '"{}"')


SENTENCES = [
    ("The correct option is D", "D"),
    ("The most suitable option is **D**.", "D"),
    ("Correct: D", "D"),
    ("The answer is clearly C.", "C"),
    ("The answer is most likely B.", "B"),
    ("So the answer is definitely B", "B"),
    ("The answer is, of course, (b)", "B"),
    ("It is clearly B.", "B"),
    ("Therefore, (C) is correct and (D) is not.", "C"),
    ("(D) is wrong, (C) fits", "C"),
    ("My answer is not A but B", "B"),
    ("The answer is not (A), but rather (B).", "B"),
    ("It is not A but B", "B"),
    ("<answer>B</answer>", "B"),
    ("<answer>b</answer>\nC was near", "B"),
    ("<final_answer> B </final_answer>", "B"),
    ("Answer\uff1aB", "B"),
    ("Answer: \uff08\uff22\uff09", "B"),
    ("It\u2019s \u201cB\u201d.", "B"),
    ("B) is wrong; A) is right", "A"),
    ("B is clearly wrong. A is clearly right.", "A"),
    ("A) is right; B) is wrong", "A"),
    ("I don't think the answer is A. I think C fits.", None),
    ("I don\u2019t believe that the correct option is A.", None),
    ("I doubt that it is A.", None),
    ("If A is correct, then B is wrong.", None),
    ("If the answer is A, pigs fly. So the answer is B.", "B"),
    ("It is not A so the answer is B", "B"),
    ("The answer is hardly B.", None),
    ("The answer isn't B.", None),
    ("The answer is B is wrong.", None),
    ("Another option is a dog.", None),
    ("That is correct: a dog barks.", None),
    ("The answer is clearly a dog.", None),
    ("Either A is right or B is right.", None),
]
"""What models write, and the letter that they name."""


class TestSentences:
    @pytest.mark.parametrize(("text", "letter"), SENTENCES)
    def test_letter(self, text: str, letter: str | None) -> None:
        assert find_letter(text, LETTERS) == letter


class TestFound:
    @pytest.mark.parametrize(
        "text",
        [
            "B",
            "b",
            "B.",
            " (b) ",
            "**B**",
            "**B.**",
            "\\boxed{B}",
            "$\\boxed{B}$",
            "The correct answer is (B)",
            "The correct answer is (B).",
            "The correct answer is B: Paris",
            "answer: b",
            "Answer: **B**",
            "**Answer**: B",
            "The answer is A. No, wait. The answer is B, after all.",
            "Answer: A\nFinal answer: (b) Paris",
            "The final answer is $\\boxed{B}$.",
            "Paris is the capital of France.\n\nB",
            "Paris is the capital of France.\n(B)\nThat is a fact.",
            "B) Paris",
            "B. Paris",
            "(B) Paris",
            "(b) Paris",
            "b) Paris, a city",
            "**B:** Paris",
            "**B. Paris**",
            "B - Paris",
            "B\nParis",
            "B is correct.",
            "B is the right answer, because A is a river.",
            "B, because Paris is a city.",
            "I choose B.",
            "I would pick option B here",
            "It is B.",
            "It's (b).",
            "Of all these, (B) fits, as it is a city.",
            "Of these, **B** fits.",
            "The answer is not A. It is option B.",
            "Option A is wrong. Option B fits. Option C is wrong.",
            "I would not choose A. I'd go with B instead.",
            "The answer is\n\nB",
        ],
    )
    def test_b(self, text: str) -> None:
        assert find_letter(text, LETTERS) == "B"

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "A",
                "a",
                "(a)",
                "a.",
                "A)",
                "answer: a",
                "The answer is A",
                "The answer is a.",
                "A is correct",
                "A. A dog",
            ),
            *(
                "The answer is A because of a dog.",
                "a) a dog",
                "The answer is (a) a dog",
                "Answer: A\nA dog.",
                "I choose A.",
            ),
        ],
    )
    def test_a(self, text: str) -> None:
        assert find_letter(text, LETTERS) == "A"

    @given(
        before=st.sampled_from(BEFORE),
        announcement=st.sampled_from(ANNOUNCEMENTS),
        dress=st.sampled_from(DRESSES),
        letter=st.sampled_from("ABCDabcd"),
        after=st.sampled_from(AFTER),
    )
    @settings(max_examples=settings.default.max_examples // 8)
    def test_announced(self, before: str, announcement: str, dress: str, letter: str, after: str) -> None:
        text = before + announcement.format(dress.format(letter)) + after
        assert find_letter(text, LETTERS) == letter.upper()

    @given(text=st.text(alphabet="ABab .:()*\n", max_size=30))
    @settings(max_examples=settings.default.max_examples // 4)
    def test_whatever_comes(self, text: str) -> None:
        letter = find_letter(text, ("A", "B"))
        assert letter in {"A", "B", None}
        assert letter is None or letter in text.upper()


class TestNotFound:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "I do not know.",
            "a dog",
            "A dog barks.",
            "A dog",
            "The answer is a dog.",
            "Answer: A dog",
            "answer: a dog",
            "It is a dog.",
            "This is a test of a thing.",
            "Take vitamin C and plan B.",
            "The answer is 42.",
            "The answer is Britain",
            "The answer is B-flat",
            "The answer is not B.",
            "(A) dog\n(B) cat",
            "A. dog\nB. cat\nC. cow",
            "Either (A) or (C).",
            "B is wrong.",
            "Don't choose B.",
            "Answer: E",
            "Answer:",
        ],
    )
    def test_none(self, text: str) -> None:
        assert find_letter(text, LETTERS) is None

    @given(
        parts=st.lists(
            st.tuples(
                st.sampled_from(("It is", "The answer is", "I choose", "Answer:", "There was", "", "(Not", "option")),
                st.sampled_from(("a", "A")),
                st.sampled_from(NOUNS),
                st.sampled_from((".", ".\n", "!", "; or so.")),
            ),
            max_size=5,
        )
    )
    @settings(max_examples=settings.default.max_examples // 8)
    def test_articles(self, parts: list[tuple[str, str, str, str]]) -> None:
        """An upper-case article stands only where a sentence begins."""
        text = " ".join(
            f"{lead} {article if not lead or lead.endswith(':') else 'a'} {noun}{end}".strip()
            for lead, article, noun, end in parts
        )
        assert find_letter(text, LETTERS) is None


class TestGrade:
    def test_scores_and_says_the_letter(self) -> None:
        question = Question("", ("B",))
        right, wrong, none = Choice().grade_all([("(b)", question), ("C", question), ("Well.", question)])
        assert (right.score, right.found, right.missing, right.verdict) == (1.0, ("B",), (), "B")
        assert (wrong.score, wrong.found, wrong.missing, wrong.verdict) == (0.0, (), ("B",), "C")
        assert (none.score, none.verdict, none.error) == (0.0, "none", None)

    @pytest.mark.parametrize("reference", ["B", "b", "(B)", "B.", "**b**"])
    def test_references_in_marks(self, reference: str) -> None:
        assert Choice().grade("answer: b", Question("", (reference,))).all_correct

    def test_letters_of_ones_own(self) -> None:
        grader = parse_grader({"name": "choice", "letters": ["1", "2", "3"]})
        assert grader.grade("The answer is 2.", Question("", ("2",))).all_correct
        assert grader.grade("The answer is 2.5", Question("", ("2",))).verdict == "none"
        many = Choice(tuple("abcdefghij"))
        assert many.letters == tuple("ABCDEFGHIJ")
        assert many.grade("I choose J.", Question("", ("J",))).all_correct
        assert many.grade("The answer is I think unclear.", Question("", ("I",))).verdict == "none"
        assert many.grade("The answer is I.", Question("", ("I",))).all_correct

    def test_mistakes(self) -> None:
        with pytest.raises(
            UserError, match="references: expected one of the letters A, B, C, D, got 'Paris'. Give the"
        ):
            Choice().grade("B", Question("", ("Paris",)))
        for letters in (["A"], ["A", "a"], "ABC", ["AB", "C"], ["A", 2], ["A", "é"]):
            with pytest.raises(UserError, match="choice.letters: expected a list of at least two different letters"):
                parse_grader({"name": "choice", "letters": letters})

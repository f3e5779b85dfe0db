"""F1 of words, against an oracle that counts with loops."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.graders import grade

WORDS = st.lists(
    st.sampled_from(("the", "a", "An", "Cat", "cat", "sat", "on", "mat", "mat.", "(on)", "--", "7")), max_size=7
)


def plain(text: str) -> list[str]:
    kept = []
    for word in text.lower().split():
        letters = "".join(letter for letter in word if letter.isalnum())
        if letters and letters not in {"a", "an", "the"}:
            kept.append(letters)
    return kept


def f1_by_loops(text: str, reference: str) -> float:
    said, wanted = plain(text), plain(reference)
    left, shared = list(wanted), 0
    for word in said:
        if word in left:
            left.remove(word)
            shared += 1
    if not said or not wanted:
        return 1.0 if said == wanted else 0.0
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


@given(said=WORDS, wanted=st.lists(WORDS.filter(bool), min_size=1, max_size=3))
@settings(max_examples=settings.default.max_examples // 8)
def test_the_best_over_the_references(said: list[str], wanted: list[list[str]]) -> None:
    references = [" ".join(one) for one in wanted]
    expected = [f1_by_loops(" ".join(said), one) for one in references]
    graded = grade("token_f1", " ".join(said), references)
    assert graded.score == pytest.approx(max(expected), abs=1e-12)
    assert graded.all_correct == (max(expected) == 1)
    assert graded.found == tuple(one for one, score in zip(references, expected, strict=True) if score == 1)


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("The cat sat.", "cat sat", 1.0),
        ("a cat", "the CAT", 1.0),
        ("cat cat", "cat", 2 / 3),
        ("the cat sat on the mat", "cat", 2 / 5),
        ("don't", "dont", 1.0),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("a", "the", 1.0),
        ("“cat”, ｃａｔ", "cat cat", 1.0),  # noqa: RUF001  # marks and letters of other forms are meant
        ("theory", "the ory", 0.0),
        ("1,234", "1234", 1.0),
    ],
)
def test_by_hand(text: str, reference: str, score: float) -> None:
    assert grade("token_f1", text, [reference]).score == pytest.approx(score)

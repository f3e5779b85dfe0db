"""The parts under the needle tasks: draws, fitting, placing."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.tasks.draws import Draws, spread
from swaa.tasks.fitting import Padding, largest
from swaa.tasks.placing import Needle, place, words_of

TENTH = settings(max_examples=settings.default.max_examples // 10)


class TestDraws:
    def test_are_golden(self) -> None:
        draws = Draws("needle", 7)
        assert [draws.below(1000) for _ in range(5)] == [917, 969, 475, 127, 924]
        assert "".join(draws.shuffled("abcdef")) == "fbecad"

    def test_keys_give_their_own_streams(self) -> None:
        keys = [(0,), (1,), ("0",), (0, 1), (1, 0), ("a", "b"), ("ab",)]
        assert len({Draws(*key).word() for key in keys}) == len(keys)

    def test_are_even(self) -> None:
        draws = Draws(0)
        counts = Counter(draws.below(7) for _ in range(7000))
        assert all(850 < counts[value] < 1150 for value in range(7))
        firsts = Counter(tuple(draws.shuffled("abc")) for _ in range(6000))
        assert len(firsts) == 6
        assert all(850 < count < 1150 for count in firsts.values())

    def test_a_bound_that_does_not_divide_the_word_is_unbiased(self) -> None:
        draws, bound = Draws(2), 3 << 62  # without rejection the lowest third would come twice as often
        low = sum(draws.below(bound) < 1 << 62 for _ in range(3000))
        assert 850 < low < 1150

    def test_fractions_are_below_one(self) -> None:
        draws = Draws(1)
        fractions = [draws.fraction() for _ in range(1000)]
        assert 0 <= min(fractions) < 0.01 < 0.99 < max(fractions) < 1

    @TENTH
    @given(start=st.integers(0, 2**64 - 1), number=st.integers(1, 200))
    def test_spread_leaves_no_wide_gap(self, start: int, number: int) -> None:
        points = sorted(spread(start, index) for index in range(number))
        around = [*points, points[0] + 1]
        assert 0 <= points[0] <= points[-1] < 1
        assert max(b - a for a, b in pairwise(around)) <= 2 / number


class TestLargest:
    @TENTH
    @given(
        steps=st.lists(st.integers(0, 9), min_size=1, max_size=80),
        target=st.integers(0, 500),
        guess=st.floats(0.5, 20),
    )
    def test_is_the_last_that_fits(self, steps: list[int], target: int, guess: float) -> None:
        def count(size: int) -> int:
            return sum(steps[:size])

        size, tokens = largest(count, target, 0, guess=guess, limit=len(steps))
        assert tokens == count(size) <= target
        assert tokens == target or size == len(steps) or count(size + 1) > target

    def test_even_growth_takes_few_calls(self) -> None:
        calls = []
        size, tokens = largest(lambda n: calls.append(n) or 50 + 11 * n, 131_072, 50, guess=12.0)
        assert (size, tokens) == (11_911, 131_071)
        assert len(calls) <= 5


class TestPlace:
    HAY = ("aaaa.", "bbbb bb.", "cc.", "dddd d ddd.")

    def test_by_hand(self) -> None:
        context = place([Needle("X!", 1.0), Needle("Y!", 0.3), Needle("Z!", 0.3)], self.HAY, Padding(3, 2, ("so",)))
        assert context.text == "aaaa. Y! Z! bbbb bb. cc. dddd d so X!"
        assert [context.text[start:end] for start, end in context.spans] == ["X!", "Y!", "Z!"]
        assert context.depths == (1.0, 5 / 25, 5 / 25)

    @TENTH
    @given(depths=st.lists(st.floats(0, 1), max_size=6), num=st.integers(0, 3), words=st.integers(0, 3))
    def test_loses_nothing(self, depths: list[float], num: int, words: int) -> None:
        needles = [Needle(f"N{index}!", depth) for index, depth in enumerate(depths)]
        context = place(needles, self.HAY, Padding(num, words, ("so",) * words))
        for needle, (start, end), depth in zip(needles, context.spans, context.depths, strict=True):
            assert context.text[start:end] == needle.sentence
            assert num == 0 or abs(depth - needle.depth) <= 0.5
        bare = context.text
        for start, end in sorted(context.spans, reverse=True):
            bare = bare[:start] + bare[end + 1 :]
        rest = "".join(words_of(self.HAY[num])[:words])
        assert bare.strip() == " ".join([*self.HAY[:num], *filter(None, [rest]), *["so"] * words])

    @pytest.mark.parametrize(("sentence", "count"), [("one two", 2), ("x" * 41, 3), ("a  b", 2), ("", 0)])
    def test_words(self, sentence: str, count: int) -> None:
        assert len(words_of(sentence)) == count

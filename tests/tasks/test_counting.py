"""Counting tasks: the words are counted again from the prompt; lengths, spans, knobs and mistakes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.errors import UserError
from swaa.tasks import CommonWords, Example, FrequentWords, task_from_dict
from swaa.tasks.counting import Mixture, list_words
from swaa.tasks.draws import Draws
from swaa.tasks.words import ADJECTIVES, LIST_WORDS, NOUNS, VALUE_WORDS
from tasks.counters import make, pieces, thirds, words

few = settings(max_examples=settings.default.max_examples // 20)
counters = st.sampled_from([words, thirds])


def text_of(example: Example) -> str:
    """What stands between heading and question."""
    return example.prompt.split("\n\n")[1]


def check_spans(example: Example) -> None:
    """Each span reaches from the first to the last place where its word stands in the text."""
    text = text_of(example)
    begin = example.prompt.index(text)
    for word, (start, end), depth in zip(
        example.references, example.metadata["spans"], example.metadata["depths"], strict=True
    ):
        places = [match.start() for match in re.finditer(rf"\b{word}\b", text)]
        assert example.prompt[start:end].endswith(word)
        assert end == begin + places[-1] + len(word)
        assert begin + places[0] - start <= len("12345. ")  # in the list, a number stands before it
        assert start <= begin + places[0]
        assert depth == pytest.approx((start - begin) / len(text), abs=1e-5)


class TestCommonWords:
    @few
    @given(data=st.data(), count=counters, seed=st.integers(0, 2**40))
    def test_counting_again_finds_the_answer(self, data: st.DataObject, count: Callable, seed: int) -> None:
        uncommon = data.draw(st.integers(1, 4))
        common = data.draw(st.integers(uncommon + 1, 12))
        task = CommonWords(data.draw(st.integers(1, 8)), freq_common=common, freq_uncommon=uncommon)
        length = data.draw(st.integers(500, 3000))
        (example,) = make(task, length, seed=seed, count=count)
        found = re.findall(r"(\d+)\. ([a-z]+)", text_of(example))
        assert text_of(example) == " ".join(f"{number}. {word}" for number, word in found)
        assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))

        counts = Counter(word for _, word in found)
        best = [word for word, times in counts.items() if times == max(counts.values())]
        assert sorted(best) == list(example.references)
        assert example.answer.rpartition(" are " if len(best) > 1 else " is ")[2] == ", ".join(sorted(best))
        assert {counts[word] for word in best} == {common}
        others = sorted((times for word, times in counts.items() if word not in best), reverse=True)
        assert others[:-1] == [uncommon] * (len(others) - 1)  # the last one fills up
        assert len(others) == example.metadata["num_uncommon"]
        assert count(example.prompt, example.answer_prefix) == length == example.metadata["tokens"]
        check_spans(example)

    def test_words_stand_all_over_the_list(self) -> None:
        (example,) = make(CommonWords(num_common=1, freq_common=40), 1500)
        order = re.findall(r"[a-z]+", text_of(example))
        places = [place for place, word in enumerate(order) if word == example.references[0]]
        halves = sum(place < len(order) / 2 for place in places)
        assert 8 <= halves <= 32

    def test_real_words_come_first_and_none_twice(self) -> None:
        real = ADJECTIVES + NOUNS + VALUE_WORDS + LIST_WORDS
        drawn = list(islice(list_words(Draws(0)), 5000))
        assert len(set(real)) == len(real)
        assert sorted(drawn[: len(real)]) == sorted(real)
        assert len(set(drawn)) == 5000
        assert all(re.fullmatch(r"[a-z]+", word) for word in drawn)

    def test_too_short_says_the_shortest(self) -> None:
        with pytest.raises(UserError, match=r"length of common_words: expected at least (\d+) tokens, for the least"):
            make(CommonWords(), 500)


class TestFrequentWords:
    @few
    @given(
        num=st.integers(1, 5),
        alpha=st.floats(1, 2.5),
        size=st.integers(20, 400),
        letters=st.integers(3, 8),
        count=counters,
        length=st.integers(1500, 3000),
        seed=st.integers(0, 2**40),
    )
    def test_counting_again_finds_the_answer(
        self, num: int, alpha: float, size: int, letters: int, count: Callable, length: int, seed: int
    ) -> None:
        task = FrequentWords(num, alpha=alpha, vocab_size=size, word_length=letters)
        (example,) = make(task, length, seed=seed, count=count)
        counts = Counter(text_of(example).split(" "))
        assert counts.pop("...") >= max(counts.values())
        ranked = sorted(counts.items(), key=lambda item: -item[1])
        assert [word for word, _ in ranked[:num]] == list(example.references)
        assert [times for _, times in ranked[:num]] == example.metadata["counts"]
        times = [number for _, number in ranked[: num + 1]]
        assert all(more > less for more, less in pairwise(times))
        assert all(re.fullmatch(rf"[a-z]{{{letters}}}", word) for word in counts)
        assert count(example.prompt, example.answer_prefix) == length == example.metadata["tokens"]
        check_spans(example)

    @pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
    def test_frequencies_follow_the_law(self, alpha: float) -> None:
        (example,) = make(FrequentWords(alpha=alpha), 20_000)
        counts = Counter(text_of(example).split())
        for place, word in enumerate(example.references):
            expected = counts["..."] * (place + 2) ** -alpha
            assert counts[word] == pytest.approx(expected, abs=2)

    def test_too_short_says_the_shortest(self) -> None:
        with pytest.raises(UserError, match=r"length of frequent_words: expected at least \d+ tokens, .* alpha"):
            make(FrequentWords(), 60)


@pytest.mark.parametrize("task", [CommonWords(4, 6, 2), FrequentWords()], ids=lambda task: task.name)
def test_lengths_are_exact_with_a_real_tokenizer(task: CommonWords | FrequentWords) -> None:
    for length in range(900, 908):
        (example,) = make(task, length, count=pieces)
        assert pieces(example.prompt, example.answer_prefix) == length


@few
@given(counts=st.lists(st.integers(0, 5), max_size=6), more=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_a_mixture_keeps_its_order_when_more_comes(counts: list[int], more: list[int]) -> None:
    bigger = [number + extra for number, extra in zip(counts + [0] * (6 - len(counts)), more, strict=True)]
    small, large = Mixture(1).order(counts), Mixture(1).order(bigger)
    assert Counter(large) == Counter({item: number for item, number in enumerate(bigger) if number})
    again = Mixture(1)
    again.order(bigger)
    assert again.order(counts) == small
    places = iter(large)
    assert all(item in places for item in small)  # a subsequence


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "common_words", "num_common": 0}, "common_words.num_common: expected an int >= 1, got 0."),
        ({"name": "common_words", "num_common": 101}, "common_words.num_common: expected at most 100, got 101."),
        (
            {"name": "common_words", "freq_common": 3},
            "common_words.freq_common: expected more than freq_uncommon, 3, got 3.",
        ),
        ({"name": "common_words", "freq_uncommon": 0}, "common_words.freq_uncommon: expected an int >= 1, got 0."),
        ({"name": "frequent_words", "alpha": 0}, "frequent_words.alpha: expected a number in (0, 4], got 0."),
        ({"name": "frequent_words", "alpha": "2"}, "frequent_words.alpha: expected a number in (0, 4], got '2'."),
        ({"name": "frequent_words", "vocab_size": 4}, "frequent_words.vocab_size: expected an int >= 5, got 4."),
        (
            {"name": "frequent_words", "word_length": 2},
            "frequent_words.vocab_size: expected at most 338 with word_length 2, got 1000.",
        ),
        (
            {"name": "frequent_words", "alpha": 4.0, "num_asked": 60},
            "frequent_words.alpha: expected one with which the first 60 words differ in frequency, got 4.0.",
        ),
    ],
)
def test_mistakes(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        task_from_dict(values)

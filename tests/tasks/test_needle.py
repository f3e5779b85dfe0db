"""Needle tasks: exact length, depths, counts, determinism, and what a user can get wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.errors import UserError
from swaa.tasks import (
    NeedleMultikey,
    NeedleMultiquery,
    NeedleMultivalue,
    NeedleSingle,
    task_from_dict,
    task_names,
)
from swaa.tasks.draws import Draws
from swaa.tasks.haystack import open_haystack, split_sentences
from swaa.tasks.needle import NeedleTask
from swaa.tasks.words import ADJECTIVES, NOUNS, PLACES, SUBJECTS, VALUE_WORDS, VERBS
from tasks.counters import make, thirds, words

TASKS: list[NeedleTask] = [NeedleSingle(), NeedleMultikey(), NeedleMultivalue(), NeedleMultiquery()]
by_name = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def pairs(prompt: str, prefix: str) -> int:
    """Two tokens a word: an odd number of tokens is out of reach."""
    return 2 * words(prompt, prefix)


tokenizers = pytest.mark.parametrize("count", [words, thirds], ids=lambda count: count.__name__)


class TestLength:
    @tokenizers
    @by_name
    @settings(max_examples=30, deadline=None)
    @given(length=st.integers(250, 6000), seed=st.integers(0, 2**40))
    def test_is_exact(self, task: NeedleTask, count: Callable, length: int, seed: int) -> None:
        (example,) = make(task, length, seed=seed, count=count)
        assert count(example.prompt, example.answer_prefix) == length
        assert example.metadata["tokens"] == example.metadata["length"] == length

    @pytest.mark.parametrize("length", [400, 401])
    def test_is_the_longest_below_where_the_tokenizer_cannot_hit_it(self, length: int) -> None:
        for example in make(NeedleMultikey(), length, number=5, count=pairs):
            assert example.metadata["tokens"] == pairs(example.prompt, example.answer_prefix) == 400

    @pytest.mark.parametrize("haystack", ["noise", "topics"])
    @pytest.mark.parametrize("length", [300, 900, 8000, 131_072])
    @tokenizers
    def test_asks_the_tokenizer_few_times(self, haystack: str, length: int, count: Callable) -> None:
        calls = 0

        def counting(prompt: str, prefix: str) -> int:
            nonlocal calls
            calls += 1
            return count(prompt, prefix)

        examples = make(NeedleMultikey(haystack=haystack), length, number=3, count=counting)
        assert [example.metadata["tokens"] for example in examples] == [length] * 3
        assert calls <= 3 * 25

    @by_name
    def test_shorter_than_the_question_says_the_shortest(self, task: NeedleTask) -> None:
        with pytest.raises(
            UserError, match=rf"length of {task.name}: expected at least \d+ tokens, for the n"
        ) as error:
            make(task, 30)
        shortest = int(re.findall(r"at least (\d+)", str(error.value))[0])
        (example,) = make(task, shortest, seed=0) if task.num_needles == 1 else [None]
        assert shortest > 30
        assert example is None or example.metadata["tokens"] == shortest

    def test_endless_tokenizers_end(self) -> None:
        (example,) = make(NeedleSingle(), 50, count=lambda prompt, prefix: 7)
        assert example.metadata["tokens"] == 7


class TestDepth:
    @pytest.mark.parametrize("haystack", ["noise", "topics"])
    @pytest.mark.parametrize("depth", [0, 0.1, 0.25, 0.5, 0.9, 1])
    @by_name
    def test_is_within_a_sentence_of_the_asked_one(self, task: NeedleTask, depth: float, haystack: str) -> None:
        for example in make(replace(task, depth=depth, haystack=haystack), 1500, number=4):
            size = len(example.prompt)
            for reached, (start, end) in zip(example.metadata["depths"], example.metadata["spans"], strict=True):
                assert abs(reached - depth) * size <= 170
                needles = (task.num_needles + 1) * (end - start + 1)
                assert depth * (size - 2 * needles) - 350 <= start <= depth * size + needles

    def test_ends_are_exact(self) -> None:
        (first,) = make(NeedleMultikey(num_keys=2, depth=0))
        (last,) = make(NeedleSingle(depth=1.0))
        assert first.metadata["depths"] == [0.0]
        assert last.metadata["depths"] == [1.0]
        context, _, _ = last.prompt.rpartition("\n\n")
        assert context.endswith(f"{last.references[0]}.")

    def test_is_spread_evenly_by_default(self) -> None:
        examples = make(NeedleMultikey(), 3000, number=24)
        quarters = [int(4 * example.metadata["depths"][0]) for example in examples]
        assert all(5 <= quarters.count(quarter) <= 7 for quarter in range(4))

    def test_spread_reaches_every_needle(self) -> None:
        examples = make(NeedleMultiquery(num_queries=4), 3000, number=6)
        for place in range(4):
            depths = [example.metadata["depths"][place] for example in examples]
            assert max(depths) - min(depths) > 0.5


class TestNeedles:
    COUNTS = (
        (NeedleSingle(), 1, 1),
        (NeedleMultikey(num_keys=6), 6, 1),
        (NeedleMultivalue(num_values=3), 3, 3),
        (NeedleMultiquery(num_queries=5), 5, 5),
    )

    @pytest.mark.parametrize("value_type", ["numbers", "words"])
    @pytest.mark.parametrize(("task", "hidden", "asked"), COUNTS, ids=lambda value: getattr(value, "name", ""))
    def test_numbers_of_them(self, task: NeedleTask, hidden: int, asked: int, value_type: str) -> None:
        for example in make(replace(task, value_type=value_type), 500, number=8):
            facts = re.findall(r"The (?:number|word) for the (\w+ \w+) is (\w+)\.", example.prompt)
            keys, values = [key for key, _ in facts], [value for _, value in facts]
            assert len(facts) == len(set(values)) == hidden
            assert len(set(keys)) == (1 if isinstance(task, NeedleMultivalue) else hidden)
            assert len(example.references) == asked
            assert len(example.metadata["distractor_spans"]) == hidden - asked
            for value in values:
                assert example.prompt.casefold().count(value) == 1
                assert value not in example.answer_prefix
            for key in keys:
                mentions = example.prompt.count(key) - keys.count(key)
                assert mentions == (key in example.metadata["keys"])  # in the question

    @by_name
    def test_spans_reply_and_references_agree(self, task: NeedleTask) -> None:
        for example in make(task, number=8):
            sentences = [example.prompt[start:end] for start, end in example.metadata["spans"]]
            assert example.answer_prefix + example.answer + "." == " ".join(sentences)
            assert example.answer.startswith(f" {example.metadata['keys'][0]} is")
            assert example.answer.endswith(example.references[-1])
            for sentence, key, value in zip(sentences, example.metadata["keys"], example.references, strict=True):
                assert sentence == f"The number for the {key} is {value}."
            for start, end in example.metadata["distractor_spans"]:
                assert re.fullmatch(r"The number for the \w+ \w+ is \d{7}\.", example.prompt[start:end])

    def test_several_values_are_asked_in_the_order_of_the_text(self) -> None:
        for example in make(NeedleMultivalue(num_values=4), number=8):
            assert example.metadata["spans"] == sorted(example.metadata["spans"])

    def test_a_real_text_never_holds_the_value(self, tmp_path: Path) -> None:
        kept = VALUE_WORDS[:5]
        file = tmp_path / "hay.txt"
        file.write_text(f"These stand here: {', '.join(VALUE_WORDS[5:])}. " * 3)
        task = NeedleMultikey(haystack="file", haystack_file=str(file), value_type="words")
        assert all(set(example.references) <= set(kept) for example in make(task, 600, number=10))
        with pytest.raises(UserError, match="expected at most 5 words that 'file' does not hold itself, got 6. Use"):
            make(replace(task, num_keys=6), 600)

    def test_a_number_drawn_twice_is_used_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        below = Draws.below
        monkeypatch.setattr(Draws, "below", lambda draws, bound: below(draws, min(bound, 4)))
        for example in make(NeedleMultivalue(num_values=4), number=3):
            assert len(set(example.references)) == 4

    def test_lists_of_words_do_not_overlap(self) -> None:
        noise = " ".join(SUBJECTS + VERBS + PLACES).casefold()
        lists = ADJECTIVES + NOUNS + VALUE_WORDS
        assert len(set(lists)) == len(lists)
        assert len(ADJECTIVES) == len(NOUNS)
        assert not [word for word in VALUE_WORDS + NOUNS if word in noise]
        assert not [(value, word) for value in VALUE_WORDS for word in lists if value in word and value != word]


class TestDeterminism:
    GOLDEN = "b6eae405b660275e11d159dd12e163a7a739e015ae3f7764c22cd8b5490ce459"

    def test_the_bytes_are_golden(self) -> None:
        """Equal on every platform and Python version; only a change of wording may change it."""
        varied = [*TASKS, NeedleMultikey(value_type="words", num_keys=8), NeedleMultiquery(depth=0.3)]
        examples = [asdict(example) for task in varied for example in make(task, 500, number=3, seed=7, count=thirds)]
        for example in examples:
            del example["reasoning"]  # came later, and is made of the prompt's own sentences: see below
        digest = hashlib.sha256(json.dumps(examples, sort_keys=True).encode()).hexdigest()
        assert digest == self.GOLDEN

    @by_name
    def test_more_examples_begin_with_the_same(self, task: NeedleTask) -> None:
        assert make(task, number=7)[:3] == make(task, number=3)

    @by_name
    def test_seeds_lengths_and_parameters_have_their_own_examples(self, task: NeedleTask) -> None:
        variants = [make(task, number=3), make(task, number=3, seed=1), make(task, 401, number=3)]
        variants.append(make(replace(task, value_type="words"), number=3))
        examples = [example for variant in variants for example in variant]
        assert len({example.id for example in examples}) == len({example.prompt for example in examples}) == 12

    def test_examples_are_made_one_at_a_time(self) -> None:
        made = NeedleSingle().examples(length=200, num_examples=10**9, seed=0, count_tokens=words)
        assert len(list(islice(made, 2))) == 2

    @by_name
    def test_metadata_is_json(self, task: NeedleTask) -> None:
        (example,) = make(task)
        assert json.loads(json.dumps(example.metadata)) == example.metadata


class TestHaystack:
    def test_file(self, tmp_path: Path) -> None:
        file = tmp_path / "hay.txt"
        file.write_text("Ein Satz über Bäume.\n\nNoch einer! Und ein dritter?", encoding="utf-8")
        (example,) = make(NeedleSingle(haystack="file", haystack_file=str(file)), 300)
        origin = example.metadata["haystack"]
        assert origin["kind"] == "file"
        assert origin["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert origin["rounds"] > 5
        assert "Noch einer! Und ein dritter? Ein Satz über Bäume." in example.prompt

    def test_the_same_text_elsewhere_gives_the_same_examples(self, tmp_path: Path) -> None:
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text("One sentence. Two sentences.")
        one, two = (make(NeedleSingle("file", str(tmp_path / name))) for name in ("a.txt", "b.txt"))
        assert one == two

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, r"haystack_file: expected the path of a text file, got '.*hay.txt'. Check the path"),
            (
                b" \n\n",
                r"haystack_file: expected a file with text in it, .* The file is empty; name another one.",
            ),
            (
                b"ok \xff\xfe",
                r"haystack_file: expected a UTF-8 text file, .* Byte 3 is not UTF-8; save the file",
            ),
        ],
    )
    def test_bad_files(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        file = tmp_path / "hay.txt"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            make(NeedleSingle(haystack="file", haystack_file=str(file)))

    def test_topics_are_recorded_by_their_hash(self) -> None:
        topics = open_haystack("topics")
        (example,) = make(NeedleSingle(haystack="topics"), 5000)
        assert example.metadata["haystack"] == {"kind": "topics", "sha256": topics.sha256, "rounds": 1}
        assert len(topics.sentences) > 2000

    @settings(max_examples=100)
    @given(text=st.text(alphabet=" \nab.!?。木", max_size=600))
    def test_splitting_loses_nothing_but_white_space(self, text: str) -> None:
        sentences = split_sentences(text)
        assert all(0 < len(sentence) <= 160 for sentence in sentences)
        assert "".join("".join(sentences).split()) == "".join(text.split())


class TestParameters:
    @by_name
    def test_round_trip(self, task: NeedleTask) -> None:
        for variant in (task, replace(task, depth=0.25, value_type="words", haystack="topics")):
            assert task_from_dict(variant.to_dict()) == variant
            assert task_from_dict(json.loads(json.dumps(variant.to_dict()))) == variant

    def test_names_and_labels(self) -> None:
        assert {task.name for task in TASKS} <= set(task_names())
        assert NeedleMultikey().label == "needle_multikey"
        assert NeedleMultikey(num_keys=8, depth=0.5).label == "needle_multikey(depth=0.5, num_keys=8)"

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"name": "needle_multikye"}, "unknown task 'needle_multikye'. Did you mean 'needle_multikey'?"),
            ({}, "task.name: expected the name of a task, got None. Add it; known: common_words, "),
            (
                {"num_kyes": 3},
                "unknown field 'needle_multikey.num_kyes'. Did you mean 'needle_multikey.num_keys'?",
            ),
            ({"num_keys": 1}, "needle_multikey.num_keys: expected an int >= 2, got 1."),
            (
                {"num_keys": 257},
                "needle_multikey.num_keys: expected at most 256 with value_type 'numbers', got 257.",
            ),
            (
                {"num_keys": 80, "value_type": "words"},
                "needle_multikey.num_keys: expected at most 70 with value_type 'words', got 80. Hide",
            ),
            ({"depth": 1.5}, "needle_multikey.depth: expected a number in [0, 1], got 1.5."),
            ({"depth": "0.5"}, "needle_multikey.depth: expected a number in [0, 1], got '0.5'."),
            ({"haystack": "nois"}, "needle_multikey.haystack: unknown value 'nois'. Did you mean 'noise'?"),
            ({"value_type": "word"}, "'word'. Did you mean 'words'?"),
            ({"haystack": "file"}, "needle_multikey.haystack_file: expected a non-empty string, got None."),
            ({"haystack_file": "x.txt"}, "got 'x.txt'. Add haystack: file, or remove haystack_file."),
        ],
    )
    def test_mistakes(self, values: dict[str, object], message: str) -> None:
        given = values if not values or "name" in values else {"name": "needle_multikey"} | values
        with pytest.raises(UserError, match=re.escape(message)):
            task_from_dict(given)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_reasoning_copies_every_needle_in_the_order_of_the_text(task: NeedleTask) -> None:
    for example in make(task, 500, number=4, seed=3, count=thirds):
        spans = [*example.metadata["spans"], *example.metadata["distractor_spans"]]
        copied = [example.prompt[begin:end] for begin, end in sorted(map(tuple, spans))]
        assert example.reasoning.split("\n") == copied
        assert all(reference in example.reasoning for reference in example.references)

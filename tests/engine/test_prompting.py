from __future__ import annotations

import copy
from typing import Any

import pytest

from swaa.engine.prompting import count_tokens, prepare, render
from swaa.errors import UserError
from swaa.tasks import Example


def example(answer: str = " 42", prefix: str = "It is") -> Example:
    return Example("e", "Question?", prefix, answer, ("42",))


def test_the_chat_template_is_applied_once(tokenizer: Any) -> None:
    assert render(tokenizer, "Question?", "It is") == "<|user|>Question?</s><|assistant|>It is"
    prompt = prepare(tokenizer, example())
    assert tokenizer.decode(list(prompt.ids)) == prompt.text
    assert prompt.ids.count(tokenizer.convert_tokens_to_ids("<|assistant|>")) == 1


def test_without_a_chat_template_the_prompt_stands_as_it_is(tokenizer: Any) -> None:
    plain = copy.copy(tokenizer)
    plain.chat_template = None
    assert render(plain, "Question?", "It is") == "Question?\nIt is"


def test_the_answer_follows_the_prompt(tokenizer: Any) -> None:
    prompt = prepare(tokenizer, example())
    assert tokenizer.decode(list(prompt.answer_ids)) == " 42"
    assert count_tokens(tokenizer, "Question?", "It is") == len(prompt.ids)


def test_an_answer_that_would_change_the_prompt_is_tokenised_apart() -> None:
    """A tokenizer that merges the prompt's last letter with the answer's first."""

    class Merging:
        chat_template = None

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in text.replace("ab", "\u00e6")]}

    prompt = prepare(Merging(), example(answer="b", prefix="a"))
    assert prompt.ids[-1] == ord("a")
    assert prompt.answer_ids == (ord("b"),)


def test_an_answer_without_tokens_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="example e: its answer '' has no tokens. Give it an answer."):
        prepare(tokenizer, example(answer=""))

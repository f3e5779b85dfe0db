"""Tokenizers for tests of lengths: two that count in one line, and a real one, trained here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from swaa.tasks import Example, Task
from swaa.tasks.words import FILLERS

TEMPLATE = 20  # tokens of an imagined chat template


def words(prompt: str, prefix: str) -> int:
    """One token a word."""
    return TEMPLATE + len(f"{prompt} {prefix}".split())


def thirds(prompt: str, prefix: str) -> int:
    """One token for every three characters, whatever they are: a token spans words."""
    return TEMPLATE - -len(prompt + prefix) // 3


def pieces(prompt: str, prefix: str) -> int:
    """A byte-pair encoding of 500 pieces, such as models have, but small."""
    return TEMPLATE + len(_tokenizer().encode(f"{prompt}\n{prefix}").ids)


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(FILLERS * 20), __doc__ or ""], trainer)
    return tokenizer


def make(task: Task, length: int = 400, number: int = 1, seed: int = 0, count: Callable = words) -> list[Example]:
    return list(task.examples(length=length, num_examples=number, seed=seed, count_tokens=count))

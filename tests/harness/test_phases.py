"""Log-likelihoods and generation under a policy, against a token-by-token computation under a mask built by loops.

The reference runs a second copy of the model without swaa: one forward pass for each token that is scored, no cache, no
padding, no batch. Prompts are bytes, so that what a context and a continuation hold is plain to see.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.conftest import make_model, make_tokenizer
from harness.conftest import asked
from hf.reference import SIX, Composition, Mutation, reference
from swaa import SlidingWindow
from swaa.harness import SwaaLM

Answer = tuple[float, bool]
RIGHT = Mutation()
PREFIX = 1  # the end-of-sequence token, which stands for an empty context


@functools.cache
def ours() -> SwaaLM:
    return SwaaLM(make_model(), tokenizer=make_tokenizer(), max_length=64)


@functools.cache
def plain() -> Any:
    return make_model()


def next_token(tokens: list[int]) -> torch.Tensor:
    """[V]: log-probabilities of the token after these, by whatever attention is in force."""
    with torch.no_grad():
        return plain()(torch.tensor([tokens]), use_cache=False).logits[0, -1].float().log_softmax(-1)


def token_by_token(
    prompt: list[int], answer: list[int], composition: Composition, mutation: Mutation = RIGHT
) -> Answer:
    """(log-likelihood, greedy?) of an answer whose tokens decode."""
    total, greedy = 0.0, True
    with reference(plain(), composition.meaning, prompt=len(prompt), mutation=mutation):
        for done, token in enumerate(answer):
            logprobs = next_token(prompt + answer[:done])
            total += float(logprobs[token])
            greedy = greedy and int(logprobs.argmax()) == token
    return total, greedy


def encoded(text: str) -> list[int]:
    return list(make_tokenizer().encode(text, add_special_tokens=False))


def assert_close(found: list[Answer], expected: list[Answer]) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=2e-4)


@st.composite
def pairs(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Contexts and continuations of two letters: many read the same tokens, and split them elsewhere."""
    letters = st.text("ab", max_size=9)
    return draw(st.lists(st.tuples(letters, st.text("ab", min_size=1, max_size=4)), min_size=1, max_size=5))


@given(pairs(), st.sampled_from(SIX), st.integers(1, 4), st.booleans())
@settings(max_examples=settings.default.max_examples // 50)
def test_a_continuation_is_scored_as_it_would_be_decoded(
    asked_for: list[tuple[str, str]], composition: Composition, batch_size: int, share: bool
) -> None:
    lm = ours()
    lm.batch_size_per_gpu, lm.logits_cache = batch_size, share
    with lm.handle.using(composition.policy):
        found = lm.loglikelihood([asked("loglikelihood", *pair) for pair in asked_for], disable_tqdm=True)
    expected = [
        token_by_token(encoded(context) or [PREFIX], encoded(continuation), composition)
        for context, continuation in asked_for
    ]
    assert_close(found, expected)


def test_the_reference_tells_a_prompt_that_is_one_token_longer() -> None:
    """What the property above would see, if the first decoding token were taken for prompt."""
    composition = SIX[2]
    prompt, answer = encoded("abbabaabba"), encoded("abab")
    right = token_by_token(prompt, answer, composition)
    assert right[0] != pytest.approx(token_by_token(prompt, answer, composition, Mutation(prompt=1))[0], abs=0.01)


@pytest.mark.parametrize("composition", SIX, ids=str)
def test_requests_that_read_the_same_tokens_keep_their_own_prompts(composition: Composition) -> None:
    """The same bytes split in three ways, longest continuation first and last, and one with another last token."""
    lm = ours()
    lm.batch_size_per_gpu, lm.logits_cache = 4, True
    asked_for = [("abcdabcdab", "cdab"), ("abcdabcda", "bcdab"), ("abcdabcdabcd", "ab"), ("abcdabcdabcd", "ac")]
    with lm.handle.using(composition.policy):
        found = lm.loglikelihood([asked("loglikelihood", *pair) for pair in asked_for], disable_tqdm=True)
    assert_close(found, [token_by_token(encoded(one), encoded(two), composition) for one, two in asked_for])


@pytest.mark.parametrize("composition", [SIX[1], SIX[4]], ids=str)
def test_a_rolling_text_is_all_prompt(composition: Composition) -> None:
    """A text of 25 bytes in windows of 10: each token is predicted once, from the window's tokens before it."""
    lm, text = ours(), "the quick brown fox jumps"
    tokens = encoded(text)
    assert len(tokens) == 25
    before = [PREFIX, *tokens]
    windows = [(before[0:10], tokens[0:10]), (before[10:20], tokens[10:20]), (before[15:25], tokens[20:25])]
    expected = 0.0
    for read, predicted in windows:
        for back in range(len(predicted)):
            with reference(plain(), composition.meaning):
                logprobs = next_token(read[: len(read) - back])
            expected += float(logprobs[predicted[-1 - back]])
    lm._max_length, lm.batch_size_per_gpu = 10, 2
    try:
        with lm.handle.using(composition.policy):
            (found,) = lm.loglikelihood_rolling([asked("loglikelihood_rolling", text)], disable_tqdm=True)
    finally:
        lm._max_length = 64
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("composition", SIX, ids=str)
def test_what_is_generated_decodes(composition: Composition) -> None:
    """Prompts of unequal lengths in one batch, so padded on the left."""
    lm, new = ours(), 6
    prompts = ["abcabcabcabc", "hello", "the sea the sea"]
    lm.batch_size_per_gpu = 3
    options = {"until": [], "max_gen_toks": new, "do_sample": False}
    with lm.handle.using(composition.policy):
        found = lm.generate_until([asked("generate_until", one, options) for one in prompts], disable_tqdm=True)
    for prompt, text in zip(prompts, found, strict=True):
        tokens = encoded(prompt)
        with reference(plain(), composition.meaning, prompt=len(tokens)):
            for _ in range(new):
                tokens.append(int(next_token(tokens).argmax()))
        assert text == lm.tokenizer.decode(tokens[-new:], skip_special_tokens=True)


def test_a_policy_for_decoding_acts_on_continuations_and_not_on_rolling_text() -> None:
    """Stock ``hf`` scores a continuation in its context's forward pass, where a policy for decoding does nothing."""
    lm = ours()
    lm.batch_size_per_gpu = 1
    request, text = asked("loglikelihood", "abcabcabcabc", "abcabc"), asked("loglikelihood_rolling", "abcabcabc")

    def figures(policy: Any) -> tuple[float, float]:
        with lm.handle.using(policy):
            (answer,) = lm.loglikelihood([request], disable_tqdm=True)
            return answer[0], lm.loglikelihood_rolling([text], disable_tqdm=True)[0]

    full, decoding = figures("FullAttention()"), figures(SlidingWindow(2).in_phase("decode"))
    assert abs(full[0] - decoding[0]) > 0.1
    assert full[1] == pytest.approx(decoding[1], abs=1e-4)

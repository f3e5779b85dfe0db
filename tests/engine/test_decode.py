from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from swaa.engine.batch import Batch, Sample, collate
from swaa.engine.decode import Generation, generate, nucleus, prefill, teacher_forced
from swaa.engine.prompting import Prompt
from swaa.hf import apply_policy
from swaa.policies import AttentionPolicy, FullAttention, SinkTokens, SlidingWindow
from swaa.recipe import Decoding, Recipe
from swaa.tasks import Example, get_task

WINDOW, SINKS = 8, 2
POLICIES = {
    "FA": FullAttention(),
    "sink": SlidingWindow(WINDOW) | SinkTokens(SINKS),
    "sink + FA decode": (SlidingWindow(WINDOW) | SinkTokens(SINKS)).in_phase("prefill"),
    "SWA decode": SlidingWindow(WINDOW).in_phase("decode"),
}
PROMPTS = [[7 + (11 * i * i + 3 * i * n) % 250 for i in range(n)] for n in (41, 30, 12, 5)]


def visible(name: str, q: int, k: int, prompt: int) -> bool:
    """The policies above, written again as a human would: the oracle shares no code with them."""
    if k > q:
        return False
    near, sink, decoding = q - k < WINDOW, k < SINKS, q >= prompt
    return {
        "FA": True,
        "sink": near or sink,
        "sink + FA decode": near or sink or decoding,
        "SWA decode": near or not decoding,
    }[name]


def oracle_logits(model: Any, name: str, ids: Sequence[int], prompt: int) -> Tensor:
    """``[V]`` logits after ``ids``, without cache, batch or padding, under a mask written as loops."""
    n = len(ids)
    mask = torch.full((1, 1, n, n), torch.finfo(torch.float32).min)
    for q in range(n):
        for k in range(n):
            if visible(name, q, k, prompt):
                mask[0, 0, q, k] = 0
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), attention_mask=mask, use_cache=False).logits[0, -1]


def batch_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], policy: AttentionPolicy) -> Batch:
    task = get_task("needle_single")()
    samples = [
        Sample(
            task,
            len(ids),
            Example(f"e{len(ids)}", "", "", "x", ("x",)),
            Prompt("", tuple(ids), tuple(answer)),
        )
        for ids, answer in zip(prompts, answers, strict=True)
    ]
    return collate(Recipe("r", policy), samples, pad=0)


def oracle_greedy(model: Any, name: str, prompt: Sequence[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(oracle_logits(model, name, ids, len(prompt)).argmax()))
    return ids[len(prompt) :]


def run(model: Any, tokenizer: Any, batch: Batch, decoding: Decoding) -> Generation:
    with torch.no_grad(), apply_policy(model, batch.recipe.policy):
        return generate(model, tokenizer, batch, prefill(model, batch), decoding)


@pytest.mark.parametrize("name", POLICIES)
def test_generated_tokens_are_those_of_a_step_by_step_oracle(model: Any, tokenizer: Any, name: str) -> None:
    expected = [oracle_greedy(model, name, prompt, 6) for prompt in PROMPTS]
    batch = batch_of(PROMPTS, [[9]] * 4, POLICIES[name])
    made = run(model, tokenizer, batch, Decoding(max_new_tokens=6))
    assert made.texts == [tokenizer.decode(before_end(tokens)) for tokens in expected]


def before_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(1)] if 1 in tokens else tokens


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 100])
@pytest.mark.parametrize("name", POLICIES)
def test_a_prompt_read_in_chunks_is_the_prompt(model: Any, name: str, chunk_size: int) -> None:
    batch = batch_of(PROMPTS, [[9, 8, 7]] * 4, POLICIES[name])
    with torch.no_grad(), apply_policy(model, POLICIES[name]):
        whole, read = prefill(model, batch), prefill(model, batch, chunk_size)
        torch.testing.assert_close(read.logits, whole.logits, atol=1e-4, rtol=1e-4)
        expected, forced = teacher_forced(model, batch, whole), teacher_forced(model, batch, read)
    assert forced.nll == pytest.approx(expected.nll, abs=1e-4)


def test_the_policies_differ_on_these_prompts(model: Any) -> None:
    """Otherwise the tests around this one would pass for a loop that ignores the policy."""
    logits = {name: oracle_logits(model, name, [*PROMPTS[0], 9, 8], len(PROMPTS[0])) for name in POLICIES}
    names = list(logits)
    for first in names:
        for second in names[names.index(first) + 1 :]:
            assert (logits[first] - logits[second]).abs().max() > 1e-3, (first, second)


@pytest.mark.parametrize("name", POLICIES)
def test_teacher_forced_scores_are_those_of_a_step_by_step_oracle(model: Any, tokenizer: Any, name: str) -> None:
    """Two answers are the model's own, two are not; answers of different lengths share a batch."""
    answers = [oracle_greedy(model, name, prompt, steps) for prompt, steps in zip(PROMPTS, (5, 1, 3, 4), strict=True)]
    answers[2][1] = (answers[2][1] + 1) % 260  # wrong in the middle, under decode
    answers[3][0] = (answers[3][0] + 1) % 260  # wrong at the first token, under prefill
    exact, nll = [], []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        steps = [
            oracle_logits(model, name, [*prompt, *answer[:i]], len(prompt)).log_softmax(-1) for i in range(len(answer))
        ]
        exact.append(all(int(step.argmax()) == token for step, token in zip(steps, answer, strict=True)))
        nll.append(-sum(float(step[token]) for step, token in zip(steps, answer, strict=True)) / len(answer))
    assert exact == [True, True, False, False]
    batch = batch_of(PROMPTS, answers, POLICIES[name])
    with torch.no_grad(), apply_policy(model, POLICIES[name]):
        read = prefill(model, batch)
        forced = teacher_forced(model, batch, read)
        again = generate(model, tokenizer, batch, read, Decoding(max_new_tokens=3))
    assert forced.exact == exact
    assert forced.nll == pytest.approx(nll, abs=1e-4)
    alone = run(model, tokenizer, batch, Decoding(max_new_tokens=3))
    assert again.texts == alone.texts, "scoring must leave the prefill as it was"


@pytest.mark.parametrize(
    "decoding", [Decoding(max_new_tokens=8), Decoding(max_new_tokens=8, temperature=1.5, top_p=0.9)]
)
def test_the_batch_changes_nothing(model: Any, tokenizer: Any, decoding: Decoding) -> None:
    policy = POLICIES["sink + FA decode"]
    answers = [[9, 8, 7], [9], [100, 101], [50, 51, 52, 53]]
    together = batch_of(PROMPTS, answers, policy)
    alone = [batch_of([prompt], [answer], policy) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    with torch.no_grad(), apply_policy(model, policy):
        forced = [teacher_forced(model, one, prefill(model, one)) for one in alone]
        all_forced = teacher_forced(model, together, prefill(model, together))
    assert run(model, tokenizer, together, decoding).texts == [
        run(model, tokenizer, one, decoding).texts[0] for one in alone
    ]
    assert all_forced.exact == [one.exact[0] for one in forced]
    assert all_forced.nll == pytest.approx([one.nll[0] for one in forced], abs=1e-4)


def test_draws_follow_the_seed(model: Any, tokenizer: Any) -> None:
    batch = batch_of(PROMPTS, [[9]] * 4, FullAttention())
    hot = [
        run(model, tokenizer, batch, Decoding(max_new_tokens=8, temperature=2.0, seed=seed)).texts for seed in (0, 0, 1)
    ]
    assert hot[0] == hot[1]
    assert hot[0] != hot[2]


def test_a_draw_follows_the_distribution() -> None:
    """10,000 draws from three tokens: shares within four standard errors of the softmax."""
    from swaa.engine.decode import _Chooser

    logits = torch.tensor([[0.0, 1.0, 2.0]])
    choose = _Chooser(Decoding(temperature=2.0), batch_of([[5]], [[9]], FullAttention()))
    drawn = torch.tensor([int(choose(logits)) for _ in range(10_000)])
    for token, share in enumerate((logits / 2.0).softmax(-1)[0].tolist()):
        error = math.sqrt(share * (1 - share) / 10_000)
        assert (drawn == token).float().mean() == pytest.approx(share, abs=4 * error)


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    assert nucleus(logits, 0.6).isfinite().tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]
    assert nucleus(logits, 0.4).isfinite().sum(1).tolist() == [1, 1]
    assert nucleus(logits, 1.0).isfinite().all()


def test_a_sample_ends_at_a_stop_string_or_at_the_end_token(model: Any, tokenizer: Any) -> None:
    batch = batch_of(PROMPTS, [[9]] * 4, FullAttention())
    free = run(model, tokenizer, batch, Decoding(max_new_tokens=8))
    text = max(free.texts, key=len)
    row, stop = free.texts.index(text), text[2]
    stopped = run(model, tokenizer, batch, Decoding(max_new_tokens=8, stop=(stop,)))
    assert stopped.texts[row] == text[: text.index(stop) + 1], "kept as it came, the stop string included"
    assert stopped.num_tokens[row] < free.num_tokens[row]
    ended = oracle_greedy(model, "FA", PROMPTS[0], 4)
    model.generation_config.eos_token_id = [1, ended[2]]
    made = run(model, tokenizer, batch_of(PROMPTS[:1], [[9]], FullAttention()), Decoding(max_new_tokens=8))
    cut = ended.index(ended[2])
    assert made.texts == [tokenizer.decode(ended[:cut])]
    assert made.num_tokens == [cut + 1]


def test_times_are_of_the_parts(model: Any, tokenizer: Any) -> None:
    batch = batch_of(PROMPTS, [[9]] * 4, FullAttention())
    with torch.no_grad(), apply_policy(model, FullAttention()):
        read = prefill(model, batch)
        assert read.seconds > 0
        assert generate(model, tokenizer, batch, read, Decoding(max_new_tokens=1)).step_seconds is None
        made = generate(model, tokenizer, batch, prefill(model, batch), Decoding(max_new_tokens=3))
    assert made.step_seconds is not None
    assert made.step_seconds > 0

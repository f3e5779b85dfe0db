"""Replies that reason: the token loop against one that is written here, without cache, batch or padding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa.engine.batch import Batch, Sample, collate
from swaa.engine.decode import Generation, generate, prefill
from swaa.engine.prompting import Prompt, count_tokens, prepare, render
from swaa.engine.reply import Reply
from swaa.errors import UserError
from swaa.hf import apply_policy
from swaa.policies import FullAttention, SinkTokens, SlidingWindow
from swaa.prompting import Prompting
from swaa.recipe import Decoding, Recipe
from swaa.tasks import Example, get_task

PROMPTS = ["Where is the key, and who has it?", "What?", "How many ferries leave at noon on a day in May?"]
END = 1  # the end-of-sequence token
POLICY = SlidingWindow(8) | SinkTokens(2)

COT = Prompting("chain_of_thought", instruction="Think.", marker="So:")


def samples_of(tokenizer: Any, prompting: Prompting, prefix: str = " it is") -> list[Sample]:
    made = []
    for number, text in enumerate(PROMPTS):
        example = Example(f"e{number}", text, prefix, " x", ("x",))
        prompt = prepare(tokenizer, example, prompting)
        made.append(Sample(get_task("needle_single")(), len(prompt.ids), example, prompt, prompting))
    return made


@dataclass
class Oracle:
    """What a reply must be."""

    tokens: list[int]
    ending: str
    closed: bool


def oracle(
    next_token: Callable[[list[int]], int],
    decode: Callable[[Sequence[int]], str],
    encode: Callable[[str], list[int]],
    *,
    prompting: Prompting,
    prefix: str,
    decoding: Decoding,
) -> Oracle:
    """One token after another; what the budget writes is written whole, and cut to ``max_new_tokens`` at last."""
    tokens: list[int] = []
    answer: int | None = None if prompting.reasons else 0
    ending, closed = "cut", False
    while len(tokens) < decoding.max_new_tokens and ending == "cut":
        chosen = next_token(tokens)
        spent = prompting.budget is not None and len(tokens) >= prompting.budget
        if answer is None and prompting.budget is not None and (spent or chosen == END):
            closing = f"\n{prompting.marker} {prefix}".rstrip() if prompting.name == "chain_of_thought" else (
                f"\n{prompting.marker}\n\n{prefix}"
            )  # fmt: skip
            tokens += encode(closing)
            answer, closed = len(tokens), spent
            continue
        tokens.append(chosen)
        if chosen == END:
            ending = "end"
        elif answer is None:
            lines = decode(tokens).lower().split("\n")
            if any(line.lstrip(" \t*_#>-").startswith(prompting.marker.lower()) for line in lines):
                answer = len(tokens)
        else:
            said = decode(tokens[answer:])
            if prompting.reasons:  # blank lines before the answer are none of it
                said = said.lstrip()
            if any(stop in said for stop in decoding.stop):
                ending = "stop"
    return Oracle(tokens[: decoding.max_new_tokens], ending, closed)


def model_oracle(model: Any, tokenizer: Any, sample: Sample, decoding: Decoding) -> Oracle:
    """The oracle on the model, which reads everything anew for every token."""

    def next_token(tokens: list[int]) -> int:
        ids = torch.tensor([[*sample.prompt.ids, *tokens]])
        with torch.no_grad():
            return int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prefix = sample.example.answer_prefix
    told = {"prompting": sample.prompting, "prefix": prefix, "decoding": decoding}
    return oracle(next_token, tokenizer.decode, encode, **told)


def run(model: Any, tokenizer: Any, samples: Sequence[Sample], decoding: Decoding, policy: Any = POLICY) -> Generation:
    batch: Batch = collate(Recipe("r", policy, samples[0].prompting, decoding), samples, pad=0)
    with torch.no_grad(), apply_policy(model, policy):
        return generate(model, tokenizer, batch, prefill(model, batch), decoding)


def check(tokenizer: Any, made: Generation, expected: Sequence[Oracle]) -> None:
    assert made.num_tokens == [len(one.tokens) for one in expected]
    assert made.texts == [tokenizer.decode([token for token in one.tokens if token != END]) for one in expected]
    assert made.endings == [one.ending for one in expected]
    assert made.closed == [one.closed for one in expected]


def budgeted(budget: int | None, **fields: Any) -> Prompting:
    return Prompting("chain_of_thought", instruction="Think.", marker=fields.pop("marker", "So:"), budget=budget)


# ---------------------------------------------------------------------------------------------- with the tiny model


@pytest.mark.parametrize("budget", [0, 1, 5, 12, None])
def test_greedy_generation_under_a_budget_is_that_of_the_naive_loop(model: Any, tokenizer: Any, budget: Any) -> None:
    """The closing has twelve tokens, so that a budget of 12 leaves no room for an answer."""
    decoding = Decoding(max_new_tokens=24)
    samples = samples_of(tokenizer, budgeted(budget))
    expected = [model_oracle(model, tokenizer, sample, decoding) for sample in samples]
    made = run(model, tokenizer, samples, decoding, FullAttention())
    check(tokenizer, made, expected)
    forced = ["\nSo:  it is" in text for text in made.texts]
    assert forced == made.closed == [budget in (0, 1, 5, 12)] * len(samples)
    assert all(made.num_tokens[row] > 12 + (budget or 0) for row in range(3) if budget in (0, 1, 5)), (
        "an answer follows"
    )


def test_the_forced_tokens_are_read_by_the_model(model: Any, tokenizer: Any) -> None:
    """With budget 0 the answer is what the model says to the prompt with the closing written after it."""
    sample = samples_of(tokenizer, budgeted(0))[0]
    closing = "\nSo:  it is"
    made = run(model, tokenizer, [sample], Decoding(max_new_tokens=len(closing) + 6), FullAttention())
    read = Prompt("", (*sample.prompt.ids, *tokenizer(closing)["input_ids"]), (9,))
    plain = Sample(sample.task, 1, sample.example, read)
    after = run(model, tokenizer, [plain], Decoding(max_new_tokens=6), FullAttention())
    assert made.texts[0] == closing + after.texts[0]


def test_an_end_before_the_marker_makes_the_model_answer(model: Any, tokenizer: Any) -> None:
    """Where there is a budget; the model's third token is made its end-of-sequence token."""
    sample = samples_of(tokenizer, budgeted(None))[0]
    free = model_oracle(model, tokenizer, sample, Decoding(max_new_tokens=6)).tokens
    end = free[2]
    assert end not in free[:2]
    model.generation_config.eos_token_id = [END, end]
    without = run(model, tokenizer, [sample], Decoding(max_new_tokens=30), FullAttention())
    assert without.endings == ["end"]
    assert without.num_tokens == [3]
    forced = samples_of(tokenizer, budgeted(20))[0]
    made = run(model, tokenizer, [forced], Decoding(max_new_tokens=30), FullAttention())
    assert made.texts[0].startswith(tokenizer.decode(free[:2]) + "\nSo:  it is")
    assert made.closed == [False], "the budget was not spent"
    assert made.num_tokens[0] > 2 + len("\nSo:  it is")


@pytest.mark.parametrize("budget", [None, 0, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_rows_in_different_states_are_the_rows_alone(
    model: Any, tokenizer: Any, budget: int | None, temperature: float
) -> None:
    """One row closes its reasoning, one ends, one stops: each as if it were alone, under a sliding policy."""
    samples = samples_of(tokenizer, budgeted(budget))
    decoding = Decoding(max_new_tokens=18, temperature=temperature, stop=("a", "e", "\n"))
    plain = run(model, tokenizer, samples, decoding)
    ids = tokenizer(plain.texts[1], add_special_tokens=False)["input_ids"]
    model.generation_config.eos_token_id = [END, ids[-2]]
    together = run(model, tokenizer, samples, decoding)
    alone = [run(model, tokenizer, [sample], decoding) for sample in samples]
    assert together.texts == [one.texts[0] for one in alone]
    assert together.endings == [one.endings[0] for one in alone]
    assert together.num_tokens == [one.num_tokens[0] for one in alone]
    assert together.closed == [one.closed[0] for one in alone]


# ---------------------------------------------------------------------------------------------- token by token


def replay(
    tokenizer: Any, prompting: Prompting, chosen: Sequence[int], decoding: Decoding, prefix: str = ""
) -> tuple[Reply, list[int]]:
    """A reply that is offered these tokens, whatever it writes."""
    sample = samples_of(tokenizer, prompting, prefix)[0]
    reply = Reply(tokenizer, sample, decoding, {END})
    written = []
    for token in chosen:
        if not reply.running or len(reply.tokens) == decoding.max_new_tokens:
            break
        written.append(reply.take(token))
    return reply, written


def letters(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text in which ``$`` is the end-of-sequence token."""
    return [END if letter == "$" else tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in text]


SAID = st.lists(st.sampled_from(["a", ".", "\n", " ", "$", "A:", "a:", "A: b.", "\nA:\n\nb"]), max_size=12).map("".join)


@settings(max_examples=settings.default.max_examples // 10)
@given(
    said=SAID,
    name=st.sampled_from(["direct", "chain_of_thought"]),
    budget=st.none() | st.integers(0, 12),
    stop=st.lists(st.sampled_from([".", "\n", "b.", "a"]), max_size=2, unique=True),
    prefix=st.sampled_from(["", "It"]),
    limit=st.integers(1, 40),
)
def test_any_reply_is_that_of_the_loop(
    tokenizer: Any, said: str, name: str, budget: int | None, stop: list[str], prefix: str, limit: int
) -> None:
    """Whatever is chosen: the offer at each place is the same, whether it is taken or not."""
    offered = letters(tokenizer, said.ljust(40, "a"))
    prompting = Prompting() if name == "direct" else Prompting(name, marker="A:", budget=budget)
    decoding = Decoding(max_new_tokens=limit, stop=tuple(stop))
    expected = oracle(
        lambda tokens: offered[len(tokens)],
        tokenizer.decode,
        lambda text: letters(tokenizer, text),
        prompting=prompting,
        prefix=prefix,
        decoding=decoding,
    )
    reply, written = replay(tokenizer, prompting, offered, decoding, prefix)
    assert reply.tokens == written == expected.tokens
    assert reply.ending == expected.ending
    assert reply.closed == expected.closed
    assert reply.running == (expected.ending == "cut")


def test_stop_strings_hold_after_the_marker_only(tokenizer: Any) -> None:
    decoding = Decoding(max_new_tokens=60, stop=("\n", "."))
    said = "One.\nTwo.\nSo: 42.\nmore"
    reply, _ = replay(tokenizer, COT, letters(tokenizer, said), decoding)
    assert reply.text == "One.\nTwo.\nSo: 42."
    assert reply.ending == "stop"
    direct, _ = replay(tokenizer, Prompting(), letters(tokenizer, said), decoding)
    assert direct.text == "One."
    never, _ = replay(tokenizer, COT, letters(tokenizer, "One.\nTwo.\nThree"), decoding)
    assert never.ending == "cut"


@pytest.mark.parametrize("said", ["Hm.\nSo:\n42\nmore", "Hm.\nso: \n\n 42\nmore", "Hm.\nSO:42\nmore"])
def test_an_answer_on_a_line_of_its_own_is_not_stopped_before_it_begins(tokenizer: Any, said: str) -> None:
    reply, _ = replay(tokenizer, COT, letters(tokenizer, said), Decoding(max_new_tokens=60, stop=("\n",)))
    assert reply.ending == "stop"
    assert COT.final(reply.text, cut=False).text == "42"


def test_an_answer_after_native_thinking_is_not_stopped_before_it_begins(tokenizer: Any) -> None:
    thinking = Prompting("thinking")
    sample = Sample(
        get_task("needle_single")(), 1, Example("e", "Q", "", "x", ("x",)), Prompt("", (5,), (9,)), thinking
    )
    reply = Reply(tokenizer, sample, Decoding(max_new_tokens=60, stop=("\n",)), {END})
    for token in letters(tokenizer, "Hm.\n</think>\n\n42\nmore"):
        if reply.running:
            reply.take(token)
    assert reply.text == "Hm.\n</think>\n\n42\n"


@pytest.mark.parametrize("marker", ["答案은:", "Réponse définitive :", "Lösung:", "🅰️🅱️🆎"])
def test_a_marker_of_many_bytes_is_seen_in_a_tokenizer_of_bytes(tokenizer: Any, marker: str) -> None:
    prompting = Prompting("chain_of_thought", marker=marker)
    ids = tokenizer(f"Hm.\n{marker} 42.\nmore", add_special_tokens=False)["input_ids"]
    reply, _ = replay(tokenizer, prompting, ids, Decoding(max_new_tokens=99, stop=("\n",)))
    assert reply.text == f"Hm.\n{marker} 42.\n"
    assert prompting.final(reply.text, cut=False).text == "42."


# ---------------------------------------------------------------------------------------------- native thinking

SWITCH = (
    "<|user|>{{ messages[0].content }}</s><|assistant|>"
    "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
)


class Beginning:
    """A tokenizer as Llama's, which begins every text with a token of its own if it is let."""

    bos = "<|user|>"

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self._tokenizer, self.chat_template = copy.deepcopy(tokenizer), template
        self._tokenizer.chat_template = template
        self.asked = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": [2, *ids] if add_special_tokens else ids}

    def apply_chat_template(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        return self._tokenizer.apply_chat_template(*args, **options)

    def decode(self, *args: Any) -> Any:
        return self._tokenizer.decode(*args)


WAYS = [Prompting(), COT, Prompting("thinking")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_the_chat_template_is_applied_exactly_once(tokenizer: Any, way: Prompting) -> None:
    own = Beginning(tokenizer, SWITCH)
    prompt = prepare(own, Example("e", "Who?", "It is", " x", ("x",)), way)
    assert own.asked == 1
    assert prompt.text.count("<|assistant|>") == prompt.text.count("<|user|>") == 1
    assert [prompt.ids.count(token) for token in (1, 2, 3)] == [1, 1, 1], "nor is a token of its own put before it"
    assert own.decode(list(prompt.ids)) == prompt.text
    count = count_tokens(own, way.ask("Who?"), way.reply_prefix("It is"))
    if not way.thinks:
        assert count == len(prompt.ids)


def test_the_three_ways_of_asking(tokenizer: Any) -> None:
    own = Beginning(tokenizer, SWITCH)
    direct, cot, thinking = (render(own, "Who?", "It is", way) for way in WAYS)
    assert direct == "<|user|>Who?</s><|assistant|><think>\n\n</think>\n\nIt is"
    assert cot == "<|user|>Who?\n\nThink.</s><|assistant|><think>\n\n</think>\n\n"
    assert thinking == "<|user|>Who?</s><|assistant|><think>\n"
    always = Beginning(tokenizer, "<|user|>{{ messages[0].content }}</s><|assistant|><think>{{ '\n' }}")
    assert render(always, "Who?", "It is", WAYS[2]) == thinking


@pytest.mark.parametrize("template", [None, "<|user|>{{ messages[0].content }}</s><|assistant|>"])
def test_a_model_that_cannot_think_is_not_asked_to(tokenizer: Any, template: str | None) -> None:
    own = Beginning(tokenizer, template)
    message = r"prompting 'thinking': the model's chat template has no switch .*enable_thinking.* chain_of_thought"
    with pytest.raises(UserError, match=message):
        prepare(own, Example("e", "Who?", "", "x", ("x",)), Prompting("thinking"))
    assert own.asked == 0


def test_without_a_template_a_token_of_the_beginning_is_written_once(tokenizer: Any) -> None:
    own = Beginning(tokenizer, None)
    prompt = prepare(own, Example("e", "Who?", "It is", " x", ("x",)), COT)
    assert prompt.text == "Who?\n\nThink.\n"
    assert prompt.ids.count(2) == 1
    assert prompt.ids[0] == 2

"""From conversations to tokens: the prompt as generation has it, the answers' spans, and each token's phase."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa.engine.prompting import prepare, render_turns
from swaa.engine.tuning.samples import NO_TARGET, TrainingSample, fit, make_sample
from swaa.errors import UserError
from swaa.tasks import Example, NeedleMultikey
from swaa.tasks.conversations import Conversation, Turn

CHAT = Conversation(
    "chat",
    (
        *(Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello.")),
        *(Turn("user", "What is it?"), Turn("assistant", "It is 42")),
    ),
    answer_prefix="It is",
)

# what the templates of well-known models do, in small
HIDING = (  # Qwen3: the reply opens with an empty thought, which is taken away once it is history
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}[]{% endif %}"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}[]{% endif %}{% endif %}"
)
OPENING = (  # GLM: a turn ends where the next one begins
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TRIMMING = (  # Llama 3
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPACED = (  # Mistral: a space before the reply which the prompt does not have
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|assistant|>"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
ENDED_TWICE = (  # SmolLM2, Qwen2: a line end behind the token that ends the turn
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING = (  # Qwen3's thinking models: the prompt for a reply opens a thought, and a reply that is given has one
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
    "({{ m.content.split(')')[0].lstrip('(') | trim if ')' in m.content }})\n{{ m.content.split(')')[-1] | trim }}"
    "{% else %}{{ m.content }}{% endif %}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>({% endif %}"
)
FORGETTING = (  # DeepSeek R1: thoughts are cut out of every reply that is given
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split(')')[-1] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REFUSING = "{{ raise_exception('no system turns') }}"


def with_template(tokenizer: Any, template: str | None) -> Any:
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


def shown(tokenizer: Any, sample: TrainingSample) -> str:
    """The whole text, every answer in «»."""
    text = ""
    for index, token in enumerate([*sample.ids, None]):
        text += "".join("»" for _, end in sample.answers if end == index)
        text += "".join("«" for start, _ in sample.answers if start == index)
        text += "" if token is None else tokenizer.decode([token])
    return text


def phases(sample: TrainingSample) -> tuple[list[bool], list[int]]:
    """The rule, token by token: (decodes, target)."""
    decodes, targets = [], []
    for here in range(len(sample.ids)):
        together, follows = False, False
        for start, end in sample.answers:
            together = together or (start <= here < end and start <= here + 1 < end)
            follows = follows or start <= here + 1 < end
        decodes.append(together)
        targets.append(sample.ids[here + 1] if follows else -100)
    return decodes, targets


def test_each_turn_of_the_assistant_is_an_answer_with_its_end(tokenizer: Any) -> None:
    sample = make_sample(tokenizer, CHAT)
    assert sample.id == "chat"
    assert shown(tokenizer, sample) == (
        "<|system|>Be kind.</s><|user|>Hi</s><|assistant|>«Hello.</s>»"
        "<|user|>What is it?</s><|assistant|>It is« 42</s>»"
    )
    assert sample.num_answer_tokens == len("Hello.") + 1 + len(" 42") + 1


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "Hi\n«Yes.</s>»\nAnd?\nNo«.</s>»"),
        (ENDED_TWICE, "<|user|>Hi</s>\n<|assistant|>«Yes.</s>»\n<|user|>And?</s>\n<|assistant|>No«.</s>»"),
        (OPENING, "<|user|>Hi<|assistant|>«Yes.<|user|>»And?<|assistant|>No«.</s>»"),
        (SPACED, "<|user|>Hi<|assistant|>« Yes.</s>»<|user|>And?<|assistant|>No«.</s>»"),
        (TRIMMING, "<|user|>\nHi</s><|assistant|>\n«Yes.</s>»<|user|>\nAnd?</s><|assistant|>\nNo«.</s>»"),
    ],
)  # fmt: skip
def test_an_answer_ends_where_its_template_ends_it(tokenizer: Any, template: str | None, expected: str) -> None:
    """The last one, too, where only the next turn would; and there is none after the end."""
    changed = with_template(tokenizer, template)
    turns = (Turn("user", "Hi"), Turn("assistant", "Yes."), Turn("user", "And?"), Turn("assistant", "No."))
    assert shown(changed, make_sample(changed, Conversation("c", turns, "No"))) == expected


def test_a_reply_that_the_template_trims_is_trained_on_as_the_template_writes_it(tokenizer: Any) -> None:
    changed = with_template(tokenizer, TRIMMING)
    turns = (Turn("user", "Hi"), Turn("assistant", " Yes.\n"))
    assert shown(changed, make_sample(changed, Conversation("c", turns))).endswith("<|assistant|>\n«Yes.</s>»")
    prefilled = make_sample(changed, Conversation("c", turns, " Y"))
    assert shown(changed, prefilled).endswith("<|assistant|>\n Y«es.\n</s>»")


TEMPLATES = {
    "own": "own",
    "none": None,
    "hiding": HIDING,
    "opening": OPENING,
    "trimming": TRIMMING,
    "spaced": SPACED,
    "ended twice": ENDED_TWICE,
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("prefix", ["It is", " It is ", ""])
def test_a_single_turns_prompt_is_the_one_that_generation_has(tokenizer: Any, template: str, prefix: str) -> None:
    changed = tokenizer if template == "own" else with_template(tokenizer, template)
    example = Example("e", "Question?", prefix, "42.", ("42",))
    sample, prompt = make_sample(changed, Conversation.of_example(example)), prepare(changed, example)
    ((start, end),) = sample.answers
    assert sample.ids[:start] == prompt.ids
    assert end == len(sample.ids)
    lead = 1 if template == SPACED and not prefix else 0  # the space is the template's
    assert sample.ids[start + lead : -1] == prompt.answer_ids
    assert sample.ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "reply", "prefix", "expected"),
    [
        (THINKING, "so)42", "", "(«so)42</s>»"),  # another spelling than the template's own
        (THINKING, "so)\n42", "", "(«so)\n42</s>»"),
        (THINKING, "(so)\n42", "", "(«so)\n42</s>»"),  # the prompt has opened the thought already
        (THINKING, "42", "", "(«42</s>»"),
        (THINKING, "so)42", "so)", "(so)«42</s>»"),
        (THINKING, "()42", "()", "(()«42</s>»"),  # a prefix stands as it is, as when answers are generated
        (FORGETTING, "so)42", "", "«so)42</s>»"),
        (FORGETTING, "(so)42", "(", "(«so)42</s>»"),
        (FORGETTING, "42", "4", "4«2</s>»"),
    ],
)
def test_a_reply_that_the_template_rewrites_is_trained_on_as_it_is_given(
    tokenizer: Any, template: str, reply: str, prefix: str, expected: str
) -> None:
    changed = with_template(tokenizer, template)
    sample = make_sample(changed, Conversation("c", (Turn("user", "Hi"), Turn("assistant", reply)), prefix))
    line_end = "\n" if template == THINKING else ""
    assert shown(changed, sample) == f"<|user|>Hi</s>{line_end}<|assistant|>{expected}"
    prompt = prepare(changed, Example("e", "Hi", prefix, "?", ("?",)))
    assert sample.ids[: sample.answers[0][0]] == prompt.ids


def test_a_special_token_in_the_answer_does_not_end_it(tokenizer: Any) -> None:
    turns = (Turn("user", "Hi"), Turn("assistant", "a<|user|>b"))
    sample = make_sample(tokenizer, Conversation("c", turns))
    assert shown(tokenizer, sample).endswith("<|assistant|>«a<|user|>b</s>»")


def test_an_answer_that_would_change_the_prompt_is_tokenised_apart() -> None:
    """A tokenizer that merges the prompt's last letter with the answer's first, and the answer's with the next turn."""

    class Merging:
        chat_template = None
        eos_token = "$"
        all_special_tokens = ("$",)

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            first = [0] if add_special_tokens else []
            return {"input_ids": first + [ord(letter) for letter in text.replace("ab", "\u00e6").replace("$\n", "%")]}

    turns = (Turn("user", "q"), Turn("assistant", "cab"), Turn("user", "r"), Turn("assistant", "ab"))
    sample = make_sample(Merging(), Conversation("c", turns, "a"))
    marks = "".join(chr(token) if token else "^" for token in sample.ids)
    assert marks == "^q\nc\u00e6$\nr\nab$"
    assert [marks[start:end] for start, end in sample.answers] == ["c\u00e6$", "b$"]


def test_an_answer_that_keeps_the_prompt_is_tokenised_with_it() -> None:
    """A tokenizer that marks the beginning of a text, as SentencePiece does; an answer begins none."""

    class Marking:
        chat_template = None
        eos_token = "$"
        all_special_tokens = ("$",)

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in f"_{text}"]}

    turns = (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b"))
    sample = make_sample(Marking(), Conversation("c", turns))
    assert "".join(map(chr, sample.ids)) == "_q\na$\nr\nb$"


def test_what_follows_a_part_that_was_tokenised_apart_is_tokenised_with_that_one() -> None:
    """As above, and it merges the first answer's end with the line end behind it."""

    class Both:
        chat_template = None
        eos_token = "$"
        all_special_tokens = ("$",)

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            marked = f"{'^' if add_special_tokens else ''}_{text}"
            return {"input_ids": [ord(letter) for letter in marked.replace("$\n", "%")]}

    turns = (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b"))
    sample = make_sample(Both(), Conversation("c", turns))
    assert "".join(map(chr, sample.ids)) == "^_q\na$_\nr\nb$"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    changed = with_template(tokenizer, HIDING)
    message = (
        "conversation chat: the chat template rewrites earlier turns once turn 4 follows, so that they cannot be "
        "trained on as they are generated. Train each turn as its own conversation."
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make_sample(changed, CHAT)
    apart = Conversation("last", CHAT.turns[-2:], CHAT.answer_prefix)
    assert shown(changed, make_sample(changed, apart)) == "<|user|>What is it?</s><|assistant|>[]It is« 42</s>»"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (HIDING.replace("loop.last %}[]", "loop.last %}()"), "chat: the chat template rewrites earlier turns once"),
        (OPENING.replace("{{ m.content }}", "{{ m.content | upper }}"), "turn 3: the chat template writes this reply"),
        (REFUSING, "chat: the chat template refuses the turns system, user (no system turns). Give it turns that it"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_write_the_turns_is_refused(tokenizer: Any, template: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_sample(with_template(tokenizer, template), CHAT)
    assert str(caught.value).startswith("conversation chat: ")
    assert message in str(caught.value)


def test_a_mistake_inside_a_template_is_not_hidden(tokenizer: Any) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        render_turns(with_template(tokenizer, "{{ 1 + none }}"), [Turn("user", "Hi")], reply=True)


@pytest.mark.parametrize("template", [None, OPENING])
def test_an_answer_that_nothing_ends_is_refused(tokenizer: Any, template: str | None) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template, changed.eos_token = template, None
    with pytest.raises(UserError, match="chat: nothing ends a reply: .* Give the tokenizer an eos_token"):
        make_sample(changed, CHAT)


def test_an_answer_without_tokens_is_refused(tokenizer: Any) -> None:
    class Dropping:
        """Loses the letters of its choice, as a normaliser may lose marks of width zero."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: Any) -> Any:
            return tokenizer(text.replace("\u200b", ""), **options)

    turns = (Turn("user", "Hi"), Turn("assistant", "\u200b"))
    with pytest.raises(UserError, match="^conversation c: turn 2: its answer '.*' has no tokens. Give it an answer.$"):
        make_sample(Dropping(), Conversation("c", turns))


def test_the_default_model_ends_its_turn_and_no_more(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    sample = make_sample(tokenizer, CHAT)
    assert shown(tokenizer, sample) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "«Hello.<|im_end|>»\n<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
        "It is« 42<|im_end|>»"
    )
    messages = [{"role": turn.role, "content": turn.content} for turn in CHAT.turns]
    whole = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]
    assert list(sample.ids) == whole[:-1]  # without the line end behind the last turn
    task = NeedleMultikey(num_keys=4)
    for example in task.examples(
        length=300, num_examples=3, seed=1, count_tokens=lambda *text: len("".join(text)) // 4
    ):
        prompt, sample = prepare(tokenizer, example), make_sample(tokenizer, Conversation.of_example(example))
        assert sample.ids == (*prompt.ids, *prompt.answer_ids, tokenizer.eos_token_id)
        assert sample.answers == ((len(prompt.ids), len(sample.ids)),)


@st.composite
def samples(draw: st.DrawFn) -> TrainingSample:
    """Any spans, touching ones too."""
    ids = draw(st.lists(st.integers(0, 99), min_size=2, max_size=30))
    edges = sorted(draw(st.sets(st.integers(1, len(ids)), min_size=2, max_size=6)))
    spans = [span for span in pairwise(edges) if draw(st.booleans())]
    return TrainingSample("s", tuple(ids), tuple(spans or [(edges[0], edges[1])]))


@given(sample=samples())
def test_phase_and_target_follow_the_rule(sample: TrainingSample) -> None:
    decodes, targets = phases(sample)
    assert sample.decode_mask == decodes
    assert sample.targets == targets
    assert sample.num_answer_tokens == sum(target != NO_TARGET for target in targets)


def test_phase_and_target_of_a_small_sample() -> None:
    """Two prompt tokens, an answer of three, one more prompt token, an answer of one."""
    sample = TrainingSample("s", (10, 11, 12, 13, 14, 15, 16), ((2, 5), (6, 7)))
    assert sample.decode_mask == [False, False, True, True, False, False, False]
    assert sample.targets == [-100, 12, 13, 14, -100, 16, -100]


@pytest.mark.parametrize("answers", [(), ((0, 2),), ((1, 1),), ((2, 4),), ((2, 3), (1, 2)), ((1, 3), (2, 3))])
def test_spans_that_cannot_be_are_refused(answers: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="sample s: .* are no spans in order of 3 tokens"):
        TrainingSample("s", (1, 2, 3), answers)


def of_length(length: int) -> TrainingSample:
    return TrainingSample(f"n{length}", (7,) * length, ((1, 2),))


def test_samples_that_are_too_long_are_refused_or_dropped_by_name() -> None:
    given = [of_length(length) for length in (9, 2, 5, 6, 4, 7)]
    assert fit(given, 9, "error") == (given, ())
    kept, dropped = fit(given, 5, "drop")
    assert [len(sample) for sample in kept] == [2, 5, 4]
    assert dropped == ("n9", "n6", "n7")
    message = (
        "max_length: 4 of 6 samples have more than 4 tokens (n9, n5, n6, ...); the longest, n9, has 9. Raise "
        "max_length, up to the model's context, or say too_long: drop to train on the others."
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        fit(given, 4, "error")
    with pytest.raises(UserError, match=r"1 of 1 samples have more than 4 tokens \(n9\); .* or give shorter conversat"):
        fit(given[:1], 4, "drop")
    with pytest.raises(UserError, match="too_long: unknown value 'dorp'. Did you mean 'drop'?"):
        fit(given, 9, "dorp")

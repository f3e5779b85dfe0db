"""Training on samples of several turns: ``decode_mask`` tells the phase token by token, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel

import oracle
import swaa
from hf.batches import CLOSE, padded, rows_of
from hf.reference import SIX, Composition, reference
from hf.zoo import ARCHITECTURES, BY_TYPE, Architecture
from strategies import ZOO_ATOMS, build, recipes
from swaa import FullAttention, SinkTokens, SlidingWindow, every, rule, stack
from swaa.compiler import plan
from swaa.hf.prompt import BOOKS

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # of transformers 6

FA_DECODE = next(composition for composition in SIX if composition.name == "sinks_fa_decode_half_layers")
PHASE_FREE = next(composition for composition in SIX if composition.name == "sinks")
TWO_SPARSE = Composition(
    "each_phase_sparse",
    stack(
        rule(FullAttention(), layers=every(2, start=1)),
        rule(SlidingWindow(2) | SinkTokens(3), phase="decode"),
        rule(SlidingWindow(4) | SinkTokens(1)),
    ),
    lambda at: at.layer % 2 == 1 or ((at.window(2) or at.sinks(3)) if at.decodes else (at.window(4) or at.sinks(1))),
    by_phase=True,
)
COMPOSITIONS = pytest.mark.parametrize("composition", [FA_DECODE, TWO_SPARSE], ids=str)
MODELS = pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt_oss", "gemma2"])
KERNELS = pytest.mark.parametrize("kernel", ["dense", "blockwise", "auto"])
GRADIENTS = {"atol": 2e-4, "rtol": 1e-3}

Turns = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sample:
    """A row of turns, each a prompt and an answer, by the rule of fine-tuning."""

    row: Tensor
    decodes: tuple[bool, ...]
    targets: tuple[int, ...]

    @classmethod
    def of(cls, row: Tensor, turns: Turns) -> Sample:
        """``turns``: tokens of each turn's prompt and answer."""
        answer_of = [
            number if part else None for number, turn in enumerate(turns) for part in (0, 1) for _ in range(turn[part])
        ]
        assert len(answer_of) == len(row)
        decodes, targets = [], []
        for place, mine in enumerate(answer_of):
            following = answer_of[place + 1] if place + 1 < len(row) else None
            decodes.append(mine is not None and mine == following)
            targets.append(-100 if following is None else int(row[place + 1]))
        return cls(row, tuple(decodes), tuple(targets))


TURNS: tuple[Turns, ...] = (((5, 4), (3, 5)), ((4, 6),), ((2, 3), (4, 1), (1, 4)), ((3, 9),))
LENGTHS = tuple(sum(map(sum, turns)) for turns in TURNS)
SAMPLES = tuple(Sample.of(row, turns) for row, turns in zip(rows_of(*LENGTHS), TURNS, strict=True))
PACK = ((0, 1), (2, 3))
assert LENGTHS == (17, 10, 15, 12)
assert len({sum(LENGTHS[i] for i in row) for row in PACK}) == 1


@cache
def model_of(model_type: str) -> PreTrainedModel:
    return BY_TYPE[model_type].build()


def batch_of(samples: Sequence[Sample], side: str = "right") -> tuple[dict[str, Tensor], Tensor]:
    """A padded batch [B, S], and its targets. What is said of padding is nonsense on purpose."""
    batch = padded([sample.row for sample in samples], side=side, extra=2)
    real = batch["attention_mask"].bool()
    decodes, targets = torch.ones_like(real), torch.full_like(batch["input_ids"], -100)
    for b, sample in enumerate(samples):
        decodes[b, real[b]], targets[b, real[b]] = torch.tensor(sample.decodes), torch.tensor(sample.targets)
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    return batch | {"decode_mask": decodes, "position_ids": positions}, targets


def pack_of(rows: Sequence[Sequence[Sample]]) -> tuple[dict[str, Tensor], Tensor]:
    """Packed rows of one length, and their targets."""
    batch = {
        "input_ids": torch.stack([torch.cat([sample.row for sample in row]) for row in rows]),
        "position_ids": torch.stack([torch.cat([torch.arange(len(s.row)) for s in row]) for row in rows]),
        "decode_mask": torch.tensor([[flag for sample in row for flag in sample.decodes] for row in rows]),
    }
    return batch, torch.tensor([[target for sample in row for target in sample.targets] for row in rows])


def laid_out(layout: str) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    """The samples as one batch, its targets, and where each sample's tokens stand in [B * S]."""
    if layout == "packed":
        batch, targets = pack_of([[SAMPLES[i] for i in row] for row in PACK])
        return batch, targets, list(torch.arange(targets.numel()).split(LENGTHS))
    batch, targets = batch_of(SAMPLES, side=layout)
    slots = torch.arange(targets.numel()).view_as(targets)
    return batch, targets, [slots[b, real.bool()] for b, real in enumerate(batch["attention_mask"])]


LAYOUTS = pytest.mark.parametrize("layout", ["right", "left", "packed"])


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the answers' tokens."""
    return cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100)


@cache
def one_by_one(model_type: str, composition: Composition) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """The logits of each sample [T, V], the loss and its gradients, by the loops."""
    model = model_of(model_type)
    logits = []
    for sample in SAMPLES:
        native = BY_TYPE[model_type].native
        with reference(model, composition.meaning, decodes=sample.decodes, native=native):
            logits.append(model(sample.row.unsqueeze(0), use_cache=False).logits[0])
    targets = torch.cat([torch.tensor(sample.targets) for sample in SAMPLES])
    loss = loss_of(torch.cat(logits), targets)
    return [one.detach() for one in logits], loss.detach(), gradients(model, loss)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], **close: float) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], **close, msg=lambda text, name=name: f"{name}: {text}")


@MODELS
@KERNELS
@COMPOSITIONS
@LAYOUTS
def test_a_batch_is_its_samples_one_by_one(
    model_type: str, kernel: str, composition: Composition, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plan.BLOCK_SIZES, "blockwise", (8, 4))  # several blocks, in rows as short as these
    logits, loss, expected = one_by_one(model_type, composition)
    model = model_of(model_type)
    batch, targets, places = laid_out(layout)
    with swaa.apply_policy(model, composition.policy, kernel=kernel):
        out = model(**batch, use_cache=False).logits
        got_loss = loss_of(out, targets)
        got = gradients(model, got_loss)
        for sample, place in zip(SAMPLES, places, strict=True):
            alone = model(sample.row.unsqueeze(0), decode_mask=torch.tensor([sample.decodes]), use_cache=False).logits[
                0
            ]
            torch.testing.assert_close(out.flatten(0, 1)[place], alone, **CLOSE)
    for place, wanted in zip(places, logits, strict=True):
        torch.testing.assert_close(out.flatten(0, 1)[place], wanted, **CLOSE)
    torch.testing.assert_close(got_loss, loss, atol=1e-5, rtol=1e-5)
    assert_same(got, expected, **GRADIENTS)


def test_the_samples_can_tell_phases_apart() -> None:
    """Else the tests here would prove nothing: neither all prompt nor a mask shifted by one gives these logits."""
    logits, _, _ = one_by_one("llama", FA_DECODE)
    model = model_of("llama")
    with swaa.apply_policy(model, FA_DECODE.policy), torch.no_grad():
        for sample, wanted in zip(SAMPLES, logits, strict=True):
            mask = torch.tensor([sample.decodes])
            for wrong in (torch.zeros_like(mask), mask.roll(1, -1), mask.roll(-1, -1)):
                got = model(sample.row.unsqueeze(0), decode_mask=wrong, use_cache=False).logits[0]
                assert (got - wanted).abs().max() > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_every_architecture(architecture: Architecture) -> None:
    """What a model makes of it is right, or refused: never lost on the way."""
    model, sample = architecture.build(), SAMPLES[0]
    ids, mask = sample.row.unsqueeze(0), torch.tensor([sample.decodes])
    with swaa.apply_policy(model, FA_DECODE.policy), torch.no_grad():
        if architecture.drops_kwargs:
            with pytest.raises(swaa.UserError, match="the policy differs by phase, but this model does not pass"):
                model(ids, decode_mask=mask)
            return
        out = model(ids, decode_mask=mask).logits
    with reference(model, FA_DECODE.meaning, decodes=sample.decodes, native=architecture.native), torch.no_grad():
        torch.testing.assert_close(out, model(ids, use_cache=False).logits, **CLOSE)


# --- any turns, any policy ---


@st.composite
def some_turns(draw: st.DrawFn) -> Turns:
    return tuple(draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any), min_size=1, max_size=3)))


@settings(max_examples=max(20, settings.default.max_examples // 40))
@given(
    st.lists(some_turns(), min_size=1, max_size=3),
    recipes(oracle.Model(3, 4), ZOO_ATOMS),
    st.sampled_from(["right", "left", "packed"]),
    st.sampled_from(["dense", "blockwise", "auto"]),
)
def test_any_turns_under_any_policy(turns: list[Turns], recipe: oracle.Recipe, layout: str, kernel: str) -> None:
    model, sizes = model_of("llama"), oracle.Model(3, 4)
    recipe = oracle.Union(
        (recipe, oracle.Atom("SlidingWindow", (1,)))
    )  # the reference's softmax needs something to see
    rows = rows_of(*[sum(map(sum, one)) for one in turns])
    samples = [Sample.of(row, one) for row, one in zip(rows, turns, strict=True)]
    batch, _ = pack_of([samples]) if layout == "packed" else batch_of(samples, side=layout)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(plan.BLOCK_SIZES, "blockwise", (4, 4))
        try:
            handle = swaa.apply_policy(model, build(recipe), kernel=kernel)
        except swaa.UserError as error:
            if "chooses no" not in str(error):
                raise
            reject()
        with handle:
            out = model(**batch, use_cache=False).logits
    real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(batch["decode_mask"])

    def meaning(at: Any) -> bool:
        return oracle.sees(recipe, sizes, at.layer, at.head, "decode" if at.decodes else "prefill", at.q, at.k)

    parts = out[real].split([len(row) for row in rows])
    for sample, got in zip(samples, parts, strict=True):
        with reference(model, meaning, decodes=sample.decodes), torch.no_grad():
            torch.testing.assert_close(got, model(sample.row.unsqueeze(0), use_cache=False).logits[0], **CLOSE)


# --- training sees what generation sees ---


def generated_logits(model: PreTrainedModel, sample: Sample, turns: Turns) -> Tensor:
    """[T - 1, V]: each prompt read at once, with the end of the answer before it; then the answer token by token."""
    cache, logits, fed, end = DynamicCache(), [], 0, 0
    for number, (prompt, answer) in enumerate(turns):
        begins = end + prompt
        if number:
            swaa.declare_prompt(cache, torch.tensor([begins]))
        steps = [(fed, begins), *((place, place + 1) for place in range(begins, begins + answer - 1))]
        for start, stop in steps:
            out = model(sample.row[start:stop].unsqueeze(0), past_key_values=cache, use_cache=True)
            logits.append(out.logits[0])
            fed = stop
        end = begins + answer
    return torch.cat(logits)


@MODELS
@pytest.mark.parametrize(
    ("composition", "evict"), [(FA_DECODE, True), (FA_DECODE, False), (TWO_SPARSE, False)], ids=str
)
@LAYOUTS
def test_training_sees_what_decoding_by_turns_sees(
    model_type: str, composition: Composition, evict: bool, layout: str
) -> None:
    model = model_of(model_type)
    batch, _, places = laid_out(layout)
    with swaa.apply_policy(model, composition.policy, evict=evict), torch.no_grad():
        trained = model(**batch, use_cache=False).logits.flatten(0, 1)
        for sample, turns, place in zip(SAMPLES, TURNS, places, strict=True):
            generated = generated_logits(model, sample, turns)
            torch.testing.assert_close(trained[place][:-1], generated, **CLOSE)


@MODELS
@COMPOSITIONS
def test_training_sees_what_generate_sees(model_type: str, composition: Composition) -> None:
    model, prompts, new = model_of(model_type), rows_of(9, 5, seed=4), 7
    with swaa.apply_policy(model, composition.policy), torch.no_grad():
        out = model.generate(
            **padded(prompts), max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        samples = [
            Sample.of(torch.cat([prompt, answer]), ((len(prompt), new),))
            for prompt, answer in zip(prompts, out.sequences[:, -new:], strict=True)
        ]
        seen = torch.stack(out.logits, 1)
        batch, _ = batch_of(samples)
        trained = model(**batch, use_cache=False).logits
    for b, prompt in enumerate(prompts):
        torch.testing.assert_close(trained[b, len(prompt) - 1 : len(prompt) + new - 1], seen[b], **CLOSE)


# --- gradient checkpointing ---


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layout", ["right", "packed"])
@COMPOSITIONS
def test_gradient_checkpointing(composition: Composition, layout: str, reentrant: bool) -> None:
    model = BY_TYPE["llama"].build().train()
    batch, targets, _ = laid_out(layout)
    with swaa.apply_policy(model, composition.policy) as handle:
        plain_loss = loss_of(model(**batch, use_cache=False).logits, targets)
        plain = gradients(model, plain_loss)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        loss = loss_of(model(**batch, use_cache=False).logits, targets)
        with handle.using(SlidingWindow(2)):  # a pass keeps its policy for its backward, which computes it again
            saved = gradients(model, loss)
    assert torch.equal(loss, plain_loss)
    assert_same(saved, plain)


# --- caches ---


@pytest.mark.parametrize("given", [{}, {"past_key_values": DynamicCache}], ids=["own cache", "given cache"])
def test_a_cache_filled_by_a_mask_goes_on_once_a_prompt_is_declared(given: dict[str, Any]) -> None:
    model, sample = model_of("llama"), SAMPLES[0]
    ids, mask = sample.row.unsqueeze(0), torch.tensor([sample.decodes])
    new = torch.tensor([[7, 8, 9]])
    with swaa.apply_policy(model, FA_DECODE.policy), torch.no_grad():
        options = {name: make() for name, make in given.items()}
        cache = model(ids[:, :14], decode_mask=mask[:, :14], logits_to_keep=3, **options).past_key_values
        assert not hasattr(cache, BOOKS), "it keeps every key"
        for following in (new, new[:, :1]):
            with pytest.raises(
                swaa.UserError,
                match=r"the decode_mask that this cache was filled with says nothing of further tokens. Say where: "
                r"swaa.declare_prompt",
            ):
                model(following, past_key_values=cache)
        swaa.declare_prompt(cache, 16)
        got = torch.cat(
            [model(new[:, :2], past_key_values=cache).logits, model(new[:, 2:], past_key_values=cache).logits], 1
        )
    decodes = (*sample.decodes[:14], False, False, True)
    with reference(model, FA_DECODE.meaning, decodes=decodes), torch.no_grad():
        expected = model(torch.cat([ids[:, :14], new], 1), use_cache=False).logits[:, 14:]
    torch.testing.assert_close(got, expected, **CLOSE)


def test_a_policy_without_phases_needs_no_declaration() -> None:
    model, sample = model_of("llama"), SAMPLES[0]
    ids, mask = sample.row.unsqueeze(0), torch.tensor([sample.decodes])
    with swaa.apply_policy(model, PHASE_FREE.policy) as handle, torch.no_grad():
        cache = model(ids[:, :9], decode_mask=mask[:, :9]).past_key_values
        got = torch.cat([model(ids[:, a:b], past_key_values=cache).logits for a, b in ((9, 10), (10, 14))], 1)
        with (
            handle.using(FA_DECODE.policy),  # what the mask left unsaid is still unsaid
            pytest.raises(swaa.UserError, match="the decode_mask that this cache was filled with"),
        ):
            model(ids[:, 14:15], past_key_values=cache)
    with reference(model, PHASE_FREE.meaning), torch.no_grad():
        torch.testing.assert_close(got, model(ids, use_cache=False).logits[:, 9:14], **CLOSE)


def test_nothing_can_be_added_to_packed_documents_declared_or_not() -> None:
    model = model_of("llama")
    batch, _, _ = laid_out("packed")
    with swaa.apply_policy(model, FA_DECODE.policy), torch.no_grad():
        cache = model(**batch).past_key_values
        swaa.declare_prompt(cache, 40)
        with pytest.raises(swaa.UserError, match="a cache filled with packed documents"):
            model(torch.tensor([[3], [3]]), past_key_values=cache)


def test_scoring_the_last_token_without_a_cache() -> None:
    """This is how generate(use_cache=False) looks, which is refused for not saying the phases."""
    model, sample = model_of("llama"), SAMPLES[0]
    ids, mask = sample.row.unsqueeze(0), torch.tensor([sample.decodes])
    with swaa.apply_policy(model, FA_DECODE.policy), torch.no_grad():
        got = model(ids, decode_mask=mask, use_cache=False, logits_to_keep=1).logits[0, -1]
        with pytest.raises(swaa.UserError, match="give prompt_lengths or decode_mask"):
            model(ids, use_cache=False, logits_to_keep=1)
    torch.testing.assert_close(got, one_by_one("llama", FA_DECODE)[0][0][-1], **CLOSE)


# --- what is refused ---

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])
MASK = torch.tensor([[False, False, True, True], [False, True, False, True]])


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (MASK[:1], r"bool of shape \[1, 4\] on cpu"),
        (MASK[:, :3], r"bool of shape \[2, 3\] on cpu"),
        (MASK.long(), r"int64 of shape \[2, 4\] on cpu"),
        (MASK.to("meta"), r"bool of shape \[2, 4\] on meta"),
        (MASK.tolist(), "list"),
    ],
    ids=["samples", "tokens", "dtype", "device", "type"],
)
def test_a_mask_that_does_not_fit(mask: Any, got: str) -> None:
    message = (
        rf"decode_mask: expected bool of shape \[2, 4\] on cpu, as the tokens are, got {got}. "
        r"Give True for each token that decodes as a query."
    )
    for policy in (FA_DECODE.policy, PHASE_FREE.policy):
        with swaa.apply_policy(model_of("llama"), policy), pytest.raises(swaa.UserError, match=message):
            model_of("llama")(IDS, decode_mask=mask)


def test_phases_told_twice() -> None:
    model = model_of("llama")
    with (
        swaa.apply_policy(model, FA_DECODE.policy),
        pytest.raises(swaa.UserError, match="decode_mask: expected no prompt_lengths beside it, got both, .* Give"),
    ):
        model(IDS, decode_mask=MASK, prompt_lengths=torch.tensor([2, 1]))


def filled(model: PreTrainedModel) -> Any:
    return model(IDS, past_key_values=DynamicCache()).past_key_values


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (filled, "a cache of 4 tokens"),
        (lambda model: swaa.declare_prompt(DynamicCache(), 2), "a cache with a declared prompt"),
        (swaa.PolicyCache, "a cache that drops keys"),
    ],
    ids=["filled", "declared", "evicting"],
)
def test_a_mask_beside_a_cache_of_another_mind(make: Any, found: str) -> None:
    model = model_of("llama")
    message = f"decode_mask: expected a forward pass without a cache, got {found}. Leave past_key_values out; where"
    with swaa.apply_policy(model, FA_DECODE.policy), torch.no_grad(), pytest.raises(swaa.UserError, match=message):
        model(IDS, decode_mask=MASK, past_key_values=make(model))

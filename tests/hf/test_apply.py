"""``apply_policy``: on and off again, nested, copied, saved; and the models that it refuses."""

from __future__ import annotations

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

import swaa
from hf import zoo
from hf.batches import CLOSE, padded, rows_of
from hf.reference import SIX, reference
from hf.zoo import BY_TYPE
from swaa.hf import spec
from swaa.hf.masks import plan_mask

BY_NAME = {composition.name: composition for composition in SIX}
NAIVE, SINKS, PHASED = BY_NAME["naive"], BY_NAME["sinks"], BY_NAME["sinks_fa_decode_half_layers"]
LENGTHS = (12, 7)


@pytest.fixture
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build()


def logits(model: torch.nn.Module, **kwargs: Any) -> Tensor:
    """[token, word], of the real tokens of a batch padded on the left."""
    batch = padded(rows_of(*LENGTHS))
    with torch.no_grad():
        return model(**(batch | kwargs)).logits[batch["attention_mask"].bool()]


def state(model: PreTrainedModel) -> tuple[object, ...]:
    """All that a policy changes."""
    hooks = [
        (name, len(module._forward_pre_hooks), len(module._forward_hooks)) for name, module in model.named_modules()
    ]
    tensors = sorted(model.state_dict())
    return model.config.to_dict(), model.config._attn_implementation, sorted(vars(model.config)), hooks, tensors


def test_a_share_of_the_heads_is_refused_where_the_policy_names_heads(model: PreTrainedModel) -> None:
    """Under tensor parallelism each process has some of the heads, and calls them 0, 1, ..."""
    heads = model.config.num_attention_heads
    with swaa.apply_policy(model, swaa.SlidingWindow(4)):
        model.config.num_attention_heads = 2 * heads
        logits(model)
    model.config.num_attention_heads = heads
    with swaa.apply_policy(model, swaa.SlidingWindow(4).on_heads(0)):
        model.config.num_attention_heads = 2 * heads
        with pytest.raises(swaa.UserError, match=f"only {heads} of the model's {2 * heads} are here"):
            logits(model)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_block_restores_the_model_exactly(model: PreTrainedModel, implementation: str) -> None:
    model.set_attn_implementation(implementation)
    before, was = logits(model), copy.deepcopy(state(model))
    with swaa.apply_policy(model, SINKS.policy) as handle:
        assert handle.policy == SINKS.policy
        assert swaa.saved_policy(model.config) == SINKS.policy
        assert (logits(model) - before).abs().max() > 0.1
    assert torch.equal(logits(model), before)
    assert state(model) == was
    assert swaa.saved_policy(model.config) is None


def test_an_error_inside_the_block_restores_the_model_too(model: PreTrainedModel) -> None:
    was = copy.deepcopy(state(model))
    with pytest.raises(KeyError), swaa.apply_policy(model, SINKS.policy):
        raise KeyError
    assert state(model) == was


def test_remove_works_once_and_then_does_nothing(model: PreTrainedModel) -> None:
    was = copy.deepcopy(state(model))
    handle = swaa.apply_policy(model, "SlidingWindow(5)")
    assert repr(handle) == "PolicyHandle(SlidingWindow(5))"
    handle.remove()
    handle.remove()
    assert repr(handle) == "PolicyHandle(SlidingWindow(5), removed)"
    assert state(model) == was


def test_a_removed_handle_leaves_a_later_policy_alone(model: PreTrainedModel) -> None:
    handle = swaa.apply_policy(model, NAIVE.policy)
    handle.remove()
    swaa.apply_policy(model, SINKS.policy)
    handle.remove()
    assert swaa.saved_policy(model.config) == SINKS.policy


def test_nested_policies_replace_each_other_and_come_back(model: PreTrainedModel) -> None:
    was = copy.deepcopy(state(model))
    with swaa.apply_policy(model, NAIVE.policy):
        outer = logits(model)
        with swaa.apply_policy(model, SINKS.policy):
            inner = logits(model)
        assert torch.equal(logits(model), outer)
    assert state(model) == was
    with swaa.apply_policy(model, SINKS.policy):
        assert torch.equal(logits(model), inner)
    assert (inner - outer).abs().max() > 0.1


def test_the_same_policy_twice_needs_two_removals_in_order(model: PreTrainedModel) -> None:
    first, second = swaa.apply_policy(model, NAIVE.policy), swaa.apply_policy(model, NAIVE.policy)
    with pytest.raises(swaa.UserError, match="another policy was applied on top of this one"):
        first.remove()
    second.remove()
    first.remove()
    assert swaa.saved_policy(model.config) is None


def test_removal_out_of_order_is_refused(model: PreTrainedModel) -> None:
    lower, upper = swaa.apply_policy(model, NAIVE.policy), swaa.apply_policy(model, SINKS.policy)
    expected = logits(model)
    with pytest.raises(
        swaa.UserError, match=r"SlidingWindow\(5\): another policy .* Remove policies in reverse order."
    ):
        lower.remove()
    assert torch.equal(logits(model), expected)
    upper.remove()
    lower.remove()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("SlidingWindow(4).on_layers([7])", "layer 7 is out of range: this model has 3 layers"),
        ("SlidingWindow(4).on_layers([-4])", "layer -4 is out of range"),
        ("SlidingWindow(4).on_heads([4])", "head 4 is out of range: this model has 4 heads"),
        ("SlidingWindow(0)", "SlidingWindow.window_size: expected an int >= 1"),
    ],
)
def test_what_the_model_lacks_is_refused_when_the_policy_is_applied(
    model: PreTrainedModel, policy: str, message: str
) -> None:
    was = copy.deepcopy(state(model))
    with pytest.raises(swaa.UserError, match=message):
        swaa.apply_policy(model, policy)
    assert state(model) == was


@dataclass(frozen=True, repr=False)
class Unregistered(swaa.Predicate):
    num_tokens: int

    def visible(self, q: swaa.Index, k: swaa.Index) -> swaa.Index:
        return k >= self.num_tokens

    @classmethod
    def examples(cls) -> list[Unregistered]:
        return []


def test_a_policy_that_is_not_registered_is_refused(model: PreTrainedModel) -> None:
    """The config holds names, so attention would run under whatever has the name."""
    before = state(model)
    with pytest.raises(swaa.UserError, match="unknown policy 'Unregistered'.* Put @swaa.register_policy on its class"):
        swaa.apply_policy(model, Unregistered(3))
    namesake = type("SinkTokens", (Unregistered,), {})
    with pytest.raises(swaa.UserError, match="SinkTokens.3.*: another class is registered under this name. Put"):
        swaa.apply_policy(model, namesake(3) | swaa.SlidingWindow(4))
    assert state(model) == before


def test_layers_on_one_other_device_share_their_masks(model: PreTrainedModel) -> None:
    with swaa.apply_policy(model, NAIVE.policy):
        plan = plan_mask(2, 3, 3, attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]), config=model.config)
    assert plan.to("cpu") is plan is plan.to(torch.float16)
    moved = plan.to("meta")
    assert moved is plan.to(torch.device("meta"))
    assert moved.device.type == moved.padding_BS.device.type == "meta"


def test_an_unknown_kernel_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(swaa.UserError, match="kernel: expected 'auto' or 'flex' or 'dense'|kernel: expected"):
        swaa.apply_policy(model, NAIVE.policy, kernel="flash")


SMALL = {"hidden_size": 32, "vocab_size": 40}
NO_DISPATCH = {
    "bloom": {"n_head": 4, "n_layer": 2},
    "falcon": {"num_attention_heads": 4, "num_hidden_layers": 2},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "gptj": {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4},
    "mamba": {"num_hidden_layers": 2},
}


@pytest.mark.parametrize("model_type", NO_DISPATCH)
def test_an_architecture_that_does_not_dispatch_is_refused(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **(SMALL | NO_DISPATCH[model_type]))
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        swaa.UserError, match=f"model type '{model_type}'.* computes attention in its own code"
    ) as error:
        swaa.apply_policy(model, NAIVE.policy)
    assert type(model).__name__ in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}),
        (
            "bart",
            {
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
            },
        ),
    ],
)
def test_an_encoder_and_decoder_is_refused(model_type: str, config: dict[str, int]) -> None:
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(model_type, vocab_size=40, **config))
    with pytest.raises(swaa.UserError, match=f"model type '{model_type}'.* has an encoder and cross attention"):
        swaa.apply_policy(model, NAIVE.policy)


def test_an_encoder_is_refused_at_the_latest_when_it_runs() -> None:
    config = AutoConfig.for_model("bert", **SMALL, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    model = AutoModel.from_config(config)
    with (
        pytest.raises(swaa.UserError, match="attention is not causal|bidirectional"),
        swaa.apply_policy(model, NAIVE.policy),
    ):
        model(torch.ones(1, 5, dtype=torch.long))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(swaa.UserError, match="model: expected a transformers model, got 'Linear'"):
        swaa.apply_policy(torch.nn.Linear(2, 2), NAIVE.policy)


def test_a_finished_mask_is_refused(model: PreTrainedModel) -> None:
    with (
        swaa.apply_policy(model, NAIVE.policy),
        pytest.raises(swaa.UserError, match="Pass a 2-d attention mask to the model"),
    ):
        logits(model, attention_mask=torch.ones(2, 1, 12, 12, dtype=torch.bool))


@pytest.mark.parametrize("by", ["argument", "config"])
def test_attention_weights_are_refused(model: PreTrainedModel, by: str) -> None:
    if by == "config":
        model.config.output_attentions = True
    with (
        swaa.apply_policy(model, NAIVE.policy),
        pytest.raises(swaa.UserError, match="output_attentions: expected False under a policy"),
    ):
        logits(model, **({"output_attentions": True} if by == "argument" else {}))


HYBRIDS = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
    },
}


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_layers_without_attention_are_refused_and_the_others_work(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **(zoo.SMALL | HYBRIDS[model_type]))
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(swaa.UserError, match=f"layer 0 of '{model_type}' is .*, not attention.*on_layers\\(\\[1\\]\\)"):
        swaa.apply_policy(model, NAIVE.policy)
    full = logits(model)
    with swaa.apply_policy(model, NAIVE.policy.on_layers([1])):
        ours = logits(model)
        out = model.generate(**padded(rows_of(*LENGTHS)), max_new_tokens=4, do_sample=False)
    assert (ours - full).abs().max() > 0.001
    with swaa.apply_policy(model, NAIVE.policy.on_layers([1])):
        again = model.generate(**padded(rows_of(*LENGTHS)), max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(out, again)


def test_the_implementation_set_by_hand_is_refused(model: PreTrainedModel) -> None:
    model.set_attn_implementation(spec.IMPLEMENTATION)
    with pytest.raises(swaa.UserError, match="Use swaa.apply_policy"):
        logits(model)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_keeps_the_policy_and_lets_go_of_it_alone(model: PreTrainedModel, duplicate: Any) -> None:
    full = logits(model)
    generate = {"max_new_tokens": 6, "do_sample": False}
    handle = swaa.apply_policy(model, PHASED.policy)
    expected, tokens = logits(model), model.generate(**padded(rows_of(*LENGTHS)), **generate)
    other = duplicate(model)
    assert torch.equal(logits(other), expected)
    assert torch.equal(other.generate(**padded(rows_of(*LENGTHS)), **generate), tokens)
    handle.remove()
    assert torch.equal(logits(model), full)
    assert torch.equal(logits(other), expected)


def test_two_models_of_one_config_share_the_policy() -> None:
    """The policy lives on the config object. So do not share it, or apply to both."""
    one = BY_TYPE["llama"].build()
    two = AutoModelForCausalLM.from_config(one.config)
    two.config = two.model.config = one.config
    for layer in two.model.layers:
        layer.self_attn.config = one.config
    full = logits(two)
    with swaa.apply_policy(one, SINKS.policy):
        assert (logits(two) - full).abs().max() > 0.01
    with (
        swaa.apply_policy(one, PHASED.policy),
        pytest.raises(swaa.UserError, match="runs without the hooks of swaa.apply_policy"),
    ):
        logits(two)
    with swaa.apply_policy(one, PHASED.policy), swaa.apply_policy(two, PHASED.policy):
        assert (logits(two) - full).abs().max() > 0.01
    assert torch.equal(logits(two), full)


def save(model: PreTrainedModel, folder: Path) -> Path:
    """A checkpoint with a tokenizer, which `swaa.load` wants."""
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    words = Words(WordLevel({f"w{index}": index for index in range(40)}, unk_token="w2"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", unk_token="w2").save_pretrained(folder)
    return folder


def test_a_saved_policy_comes_back_through_load(model: PreTrainedModel, tmp_path: Path) -> None:
    swaa.apply_policy(model, PHASED.policy)
    expected = model.generate(**padded(rows_of(*LENGTHS)), max_new_tokens=6, do_sample=False)
    loaded, _ = swaa.load(save(model, tmp_path), device="cpu")
    assert swaa.saved_policy(loaded.config) == PHASED.policy
    torch.testing.assert_close(logits(loaded), logits(model))
    loaded.generation_config.eos_token_id = None
    out = loaded.generate(**padded(rows_of(*LENGTHS)), max_new_tokens=6, do_sample=False)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_loading_without_swaa_says_once_that_the_policy_is_off(
    model: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, implementation: str
) -> None:
    full = logits(model)
    swaa.apply_policy(model, SINKS.policy)
    folder = save(model, tmp_path)
    with caplog.at_level(logging.WARNING, logger="swaa"):
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation)
        torch.testing.assert_close(logits(plain), full, **CLOSE)
        logits(plain)
        ours = [record.message for record in caplog.records if record.name.startswith("swaa")]
        assert ["attention policy, which is OFF" in message for message in ours] == [True]
        swaa.apply_policy(plain, swaa.saved_policy(plain.config))
        torch.testing.assert_close(logits(plain), logits(model), **CLOSE)
    assert len([record for record in caplog.records if record.name.startswith("swaa")]) == 1


def test_a_saved_policy_asked_for_as_an_implementation(model: PreTrainedModel, tmp_path: Path) -> None:
    """Without the hooks: right where they are not needed, refused where they are."""
    with swaa.apply_policy(model, SINKS.policy):
        expected, free = logits(model), save(model, tmp_path / "free")
    with swaa.apply_policy(model, PHASED.policy):
        phased = save(model, tmp_path / "phased")
    plain = AutoModelForCausalLM.from_pretrained(free, attn_implementation="swaa")
    torch.testing.assert_close(logits(plain), expected, **CLOSE)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    with pytest.raises(swaa.UserError, match="runs without the hooks of swaa.apply_policy"):
        plain(positions + 5, position_ids=positions, use_cache=False)
    with pytest.raises(swaa.UserError, match="the policy differs by phase, but .* runs without the hooks"):
        logits(AutoModelForCausalLM.from_pretrained(phased, attn_implementation="swaa"))


def test_threads_may_run_different_models_at_once() -> None:
    models = [BY_TYPE["llama"].build(seed) for seed in range(4)]
    policies = [NAIVE.policy, SINKS.policy, PHASED.policy, BY_NAME["by_heads"].policy]
    for one, policy in zip(models, policies, strict=True):
        swaa.apply_policy(one, policy)

    def run(one: PreTrainedModel) -> Tensor:
        return one.generate(**padded(rows_of(*LENGTHS)), max_new_tokens=6, do_sample=False)

    alone = [run(one) for one in models]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(run, models), alone))


def test_threads_may_share_a_model(model: PreTrainedModel) -> None:
    batches = [padded(rows_of(length, length - 4, seed=length)) for length in range(9, 15)]
    with swaa.apply_policy(model, PHASED.policy):

        def run(batch: dict[str, Tensor]) -> Tensor:
            return model.generate(**batch, max_new_tokens=6, do_sample=False)

        alone = [run(batch) for batch in batches]
        with ThreadPoolExecutor(3) as pool:
            assert all(map(torch.equal, pool.map(run, batches), alone))


def test_positional_arguments_of_the_decoder_are_understood(model: PreTrainedModel) -> None:
    batch = padded(rows_of(*LENGTHS))
    with swaa.apply_policy(model, PHASED.policy), torch.no_grad():
        expected = model.model(**batch).last_hidden_state
        assert torch.equal(model.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state, expected)


def test_embeddings_instead_of_tokens(model: PreTrainedModel) -> None:
    batch = padded(rows_of(*LENGTHS))
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach()
    with swaa.apply_policy(model, PHASED.policy):
        expected = logits(model)
        assert torch.equal(logits(model, input_ids=None, inputs_embeds=embeddings), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("applied", "backend"), [("before compiling", "inductor"), ("after a compiled run", "eager")])
def test_a_compiled_model_computes_the_same(applied: str, backend: str) -> None:
    """Kernels are made once, from the graphs; that a policy is seen to be new is a matter of the graphs alone."""
    model, plain = (BY_TYPE["llama"].build(num_hidden_layers=2) for _ in range(2))
    rows = rows_of(12, 12)
    ids = torch.stack(rows)
    prompts = torch.tensor([7, 9])
    torch.compiler.reset()
    with torch.no_grad():
        if applied == "before compiling":
            swaa.apply_policy(model, PHASED.policy)
        compiled = torch.compile(model, backend=backend)
        if applied == "after a compiled run":
            compiled(ids)
            swaa.apply_policy(compiled, PHASED.policy)
        out = {shift: compiled(ids, prompt_lengths=prompts + shift).logits for shift in (0, -3)}
    for shift, logits_of_rows in out.items():
        for row, prompt, got in zip(rows, prompts + shift, logits_of_rows, strict=True):
            with reference(plain, PHASED.meaning, prompt=int(prompt)), torch.no_grad():
                expected = plain(row.unsqueeze(0), use_cache=False).logits[0]
            torch.testing.assert_close(got, expected, **CLOSE)

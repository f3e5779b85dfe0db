"""Adapters: what they train and scale by, switching off, saving and loading, merging; each mistake with its message."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

import swaa
from hf.batches import padded, rows_of
from hf.trained import trainable_state
from hf.zoo import BY_TYPE
from swaa.hf.lora import adapter_off, add_lora, load_trainable_state, merged

POLICY = (swaa.SlidingWindow(4) | swaa.SinkTokens(1)).in_phase("prefill")
SAME = {"atol": 1e-5, "rtol": 1e-5}
TARGETS = {
    "llama": ("q_proj", "k_proj", "v_proj"),
    "qwen3": ("self_attn.q_proj", "o_proj", "model.layers.1.mlp.up_proj"),
    "qwen3_moe": ("q_proj", "k_proj", "v_proj"),
    "gpt_neox": ("query_key_value",),
    "phi3": ("qkv_proj", "o_proj"),
    "gpt2": ("c_attn",),
    "opt": ("all-linear",),
}
EACH = pytest.mark.parametrize("model_type", TARGETS)
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")  # of transformers 6
PROMPTS = torch.tensor([8, 3, 9])


def build(model_type: str = "llama") -> PreTrainedModel:
    """Without the model's own dropout; opt with its head tied to the embeddings."""
    overrides = {"opt": {"tie_word_embeddings": True, "dropout": 0.0}}.get(model_type, {})
    return BY_TYPE[model_type].build(**overrides)


def adapted(model_type: str = "llama", **options: object) -> nn.Module:
    given = {"r": 4, "targets": TARGETS[model_type], "seed": 5} | options
    return add_lora(build(model_type), **given)  # type: ignore[arg-type]


def batch() -> dict[str, Tensor]:
    whole = padded(rows_of(12, 7, 9), side="right")
    return whole | {"labels": whole["input_ids"].masked_fill(whole["attention_mask"] == 0, -100)}


def train(model: nn.Module, *, steps: int = 3, lr: float = 0.02, policy: object = POLICY) -> list[float]:
    """A few steps of Adam under a policy, with gradient checkpointing; the losses. Leaves the model in eval mode."""
    torch.manual_seed(0)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    with swaa.apply_policy(model, policy):  # type: ignore[arg-type]
        for _ in range(steps):
            loss = model(**batch(), use_cache=False, prompt_lengths=PROMPTS).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.gradient_checkpointing_disable()
    model.eval()
    return losses


@torch.no_grad()
def logits(model: nn.Module, policy: object = None) -> Tensor:
    """[B, T, V], of all but padding the prompts' and answers' logits."""
    inputs = padded(rows_of(12, 7, 9), side="right")
    if policy is None:
        return model(**inputs, use_cache=False).logits
    with swaa.apply_policy(model, policy):  # type: ignore[arg-type]
        return model(**inputs, use_cache=False, prompt_lengths=PROMPTS).logits


def differ(first: Tensor, second: Tensor) -> bool:
    return (first - second).abs().max().item() > 1e-2


# --- putting it on ---


@EACH
def test_only_the_adapter_of_the_named_layers_is_trained_and_learns(model_type: str) -> None:
    base = build(model_type)
    expected = set()
    for name, module in base.named_modules():
        linear = type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head"
        if linear and (model_type == "opt" or any(f".{name}".endswith(f".{end}") for end in TARGETS[model_type])):
            expected |= {f"base_model.model.{name}.lora_{letter}.default.weight" for letter in "AB"}
    frozen = {name: value.clone() for name, value in base.state_dict().items()}
    before = logits(base)
    model = add_lora(base, r=4, targets=TARGETS[model_type], seed=5)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected
    assert torch.equal(logits(model), before)
    losses = train(model, steps=8)
    assert losses[-1] < 0.9 * losses[0]
    for name, value in merged_names(model).items():
        assert torch.equal(value, frozen[name]), name
    assert all(bool(value.any()) for value in trainable_state(model).values())


def merged_names(model: nn.Module) -> dict[str, Tensor]:
    """The base model's weights inside the wrapper, by their own names."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if "lora_" not in name
    }


@pytest.mark.parametrize(("rslora", "scale"), [(True, 32 / math.sqrt(16)), (False, 32 / 16)])
def test_the_update_is_the_scaled_product(rslora: bool, scale: float) -> None:
    model = add_lora(build(), rslora=rslora).eval()
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    down, up = (letter["default"].weight.detach() for letter in (layer.lora_A, layer.lora_B))
    assert down.shape == (16, 32)
    assert layer.lora_dropout["default"].p == 0.1
    torch.nn.init.normal_(up)
    given = torch.randn(5, 32)
    expected = torch.zeros(5, up.shape[0])
    weight = layer.base_layer.weight
    for row in range(5):
        for out in range(up.shape[0]):
            update = sum(float(up[out, k] * (down[k] @ given[row])) for k in range(16))
            expected[row, out] = weight[out] @ given[row] + scale * update
    with torch.no_grad():
        torch.testing.assert_close(layer(given), expected, atol=1e-3, rtol=1e-4)
        plain = merged(model).get_submodule("model.layers.1.self_attn.q_proj")
        torch.testing.assert_close(plain(given), expected, atol=1e-3, rtol=1e-4)


def test_the_seed_makes_the_adapter_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    base = build()
    torch.manual_seed(9)
    first = trainable_state(add_lora(base, seed=1))
    assert torch.equal(torch.rand(1), expected)
    again, other = (trainable_state(add_lora(build(), seed=seed)) for seed in (1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize(("in_float32", "got"), [(True, torch.float32), (False, torch.bfloat16)])
def test_the_adapter_of_a_half_precision_model(in_float32: bool, got: torch.dtype) -> None:
    model = add_lora(build().bfloat16(), in_float32=in_float32)
    assert {value.dtype for value in trainable_state(model).values()} == {got}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert logits(model).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model_type", "targets", "message"),
    [
        (
            "llama",
            ("q_proj", "k_prj"),
            "unknown LoRA target 'k_prj'. Did you mean 'k_proj'. Known: all-linear, down_proj",
        ),
        (
            "llama",
            "qproj",
            "'qproj'. Did you mean 'q_proj'. Known: all-linear, down_proj, gate_proj, k_proj, lm_head, ",
        ),
        ("llama", ("proj",), "unknown LoRA target 'proj'"),
        ("llama", ("self_attn",), "unknown LoRA target 'self_attn'"),
        ("llama", ("q_proj", ""), "unknown LoRA target ''"),
        ("gpt_neox", ("q_proj", "query_key_value"), "unknown LoRA target 'q_proj'. .*dense_h_to_4h.*query_key_value"),
        ("qwen3_moe", ("q_proj", "gate_proj"), "unknown LoRA target 'gate_proj'"),  # its experts are no linear layers
        (
            "opt",
            ("q_proj", "lm_head"),
            "target 'lm_head': lm_head shares its weight with model.decoder.embed_tokens, so",
        ),
        ("llama", (), "targets: expected at least one target, got \\(\\). Name at least one linear layer"),
    ],
)
def test_a_target_that_cannot_be(model_type: str, targets: tuple[str, ...], message: str) -> None:
    model = build(model_type)
    with pytest.raises(swaa.UserError, match=message):
        add_lora(model, targets=targets)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_the_adapter_drops_out_only_in_a_model_that_trains(training: bool) -> None:
    model = add_lora(build().train(training), dropout=0.5)
    assert {module.training for module in model.modules()} == {training}


def test_a_target_names_whole_words_and_all_linear_spares_the_head() -> None:
    targeted = {name.split(".lora_")[0] for name in trainable_state(add_lora(build(), targets=["all-linear"]))}
    assert len(targeted) == 3 * 7
    assert not any("lm_head" in name for name in targeted)
    only = {name.split(".lora_")[0] for name in trainable_state(add_lora(build(), targets="layers.0.mlp.up_proj"))}
    assert only == {"base_model.model.model.layers.0.mlp.up_proj"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"r": 0}, "r: expected an int >= 1, got 0"),
        ({"r": True}, "r: expected an int >= 1, got True"),
        ({"r": 8.0}, "r: expected an int >= 1, got 8.0"),
        ({"alpha": 0}, "alpha: expected a number > 0, got 0"),
        ({"alpha": float("nan")}, "alpha: expected a number > 0, got nan"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"dropout": "0.1"}, "dropout: expected a number in .* got '0.1'"),
    ],
)
def test_bad_options(option: dict[str, object], message: str) -> None:
    with pytest.raises(swaa.UserError, match=message):
        add_lora(build(), **option)  # type: ignore[arg-type]


def test_a_second_adapter_and_a_model_of_another_kind_are_refused() -> None:
    with pytest.raises(swaa.UserError, match="already has an adapter. Merge it first"):
        add_lora(adapted())  # type: ignore[arg-type]
    with pytest.raises(swaa.UserError, match="model: expected a transformers model, got 'Linear'"):
        add_lora(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(swaa.UserError, match=r"which is not installed. Run: pip install 'swaa\[peft\]'"):
        add_lora(model)


# --- what is trained ---


def trained_size(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_counts() -> None:
    base = build("opt")
    tied = sum(value.numel() for name, value in base.state_dict().items() if name != "lm_head.weight")
    assert trained_size(base) == tied
    assert trained_size(add_lora(base, r=4)) == 3 * 3 * (32 * 4 + 4 * 32)


@EACH
def test_the_state_of_an_adapter_comes_back(model_type: str, tmp_path: Path) -> None:
    model = adapted(model_type)
    train(model)
    state = trainable_state(model)
    save_file(state, tmp_path / "state.safetensors")
    fresh = adapted(model_type, seed=6)
    assert differ(logits(fresh, POLICY), logits(model, POLICY))
    load_trainable_state(fresh, load_file(tmp_path / "state.safetensors"))
    assert torch.equal(logits(fresh, POLICY), logits(model, POLICY))


def test_the_state_of_full_fine_tuning_holds_tied_weights_once(tmp_path: Path) -> None:
    model = build("opt")
    train(model)
    state = trainable_state(model)
    assert "model.decoder.embed_tokens.weight" in state
    assert "lm_head.weight" not in state
    save_file(state, tmp_path / "state.safetensors")
    fresh = build("opt")
    load_trainable_state(fresh, load_file(tmp_path / "state.safetensors"))
    assert fresh.get_output_embeddings().weight is fresh.get_input_embeddings().weight
    assert torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            "17 tensors for a model that trains 18: 1 are missing, one of them '.*layers.0.self_attn.k_proj.lora_A",
        ),
        ("extra", "19 tensors for a model that trains 18: 1 are not trained by it, one of them 'another.weight'"),
        ("frozen", "1 are not trained by it, one of them 'base_model.model.lm_head.weight'"),
        ("shape", r"k_proj.lora_A.default.weight: expected shape \[4, 32\], got \[32, 4\]. Make the model as it was"),
        ("broadcast", r"expected shape \[4, 32\], got \[1, 32\]"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: str, message: str) -> None:
    model = adapted()
    before = trainable_state(model)
    state = {name: torch.ones_like(value) for name, value in before.items()}
    name = min(state)
    if change == "missing":
        del state[name]
    elif change in ("extra", "frozen"):
        state["another.weight" if change == "extra" else "base_model.model.lm_head.weight"] = torch.ones(40, 32)
    else:
        state[name] = state[name].t() if change == "shape" else state[name][:1]
    with pytest.raises(swaa.UserError, match=message):
        load_trainable_state(model, state)
    after = trainable_state(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.usefixtures("one_process")
def test_sharded_parameters_are_saved_whole_and_loaded_into_shards() -> None:
    model, other = adapted(), adapted(seed=6)
    state = trainable_state(model)
    fully_shard(other, mesh=init_device_mesh("cpu", (1,)))
    load_trainable_state(other, state)
    assert trained_size(other) == trained_size(model)
    back = trainable_state(other)
    assert back.keys() == state.keys()
    for name, value in back.items():
        assert type(value) is Tensor
        assert torch.equal(value, state[name])


# --- with and without ---


@EACH
@pytest.mark.parametrize("policy", [None, POLICY], ids=["full", "policy"])
def test_without_the_adapter_it_is_the_base_model_bit_for_bit(model_type: str, policy: object) -> None:
    model = adapted(model_type)
    train(model)
    expected, with_adapter = logits(build(model_type), policy), logits(model, policy)
    assert differ(expected, with_adapter)
    trained = trainable_state(model).keys()
    with adapter_off(model):
        assert torch.equal(logits(model, policy), expected)
        with adapter_off(model):
            assert torch.equal(logits(model, policy), expected)
        assert torch.equal(logits(model, policy), expected)
        assert trainable_state(model).keys() == trained
    assert torch.equal(logits(model, policy), with_adapter)


def test_the_adapter_comes_back_after_an_error() -> None:
    model = adapted()
    train(model)
    expected = logits(model)
    with pytest.raises(KeyError), adapter_off(model):
        raise KeyError
    assert torch.equal(logits(model), expected)


def test_a_frozen_adapter_stays_frozen() -> None:
    model = adapted().requires_grad_(False)
    with adapter_off(model):
        pass
    assert trained_size(model) == 0


def test_switching_off_between_forward_and_backward_does_not_touch_the_gradients() -> None:
    """A teacher without the adapter, asked after the student ran."""
    model = adapted()
    train(model)

    def gradients(*, teacher: bool) -> list[Tensor]:
        model.zero_grad()
        loss = model(**batch(), use_cache=False).loss
        if teacher:
            with adapter_off(model), torch.no_grad():
                model(**batch(), use_cache=False)
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]

    expected, got = gradients(teacher=False), gradients(teacher=True)
    assert len(expected) == len(got) == 18
    assert all(torch.equal(first, second) for first, second in zip(expected, got, strict=True))


def test_there_is_nothing_to_switch_off() -> None:
    with pytest.raises(swaa.UserError, match="adapter_off: the model has no adapter"), adapter_off(build()):
        pass
    model = adapted()
    model.merge_adapter()
    with pytest.raises(swaa.UserError, match="merged into the weights. Call unmerge_adapter"), adapter_off(model):
        pass


@EACH
@pytest.mark.parametrize("policy", [None, POLICY], ids=["full", "policy"])
def test_merging_keeps_the_logits_and_the_given_model(model_type: str, policy: object) -> None:
    model = adapted(model_type)
    train(model)
    expected, state = logits(model, policy), copy.deepcopy(model.state_dict())
    plain = merged(model)
    assert type(plain) is type(build(model_type))
    assert plain.state_dict().keys() == build(model_type).state_dict().keys()
    assert all(parameter.requires_grad for parameter in plain.parameters())
    torch.testing.assert_close(logits(plain, policy), expected, **SAME)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model, policy), expected)
    train(model, steps=1)
    assert differ(logits(model, policy), expected)


def test_merging_under_a_policy_gives_a_model_under_that_policy() -> None:
    model = adapted()
    train(model)
    expected = logits(model, POLICY)
    with swaa.apply_policy(model, POLICY):
        plain = merged(model)
    inputs = padded(rows_of(12, 7, 9), side="right")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs, use_cache=False, prompt_lengths=PROMPTS).logits, expected, **SAME)


@pytest.mark.parametrize("in_float32", [True, False])
def test_a_half_precision_layer_is_merged_in_float32_and_rounded_once(in_float32: bool) -> None:
    model = add_lora(build().bfloat16(), r=4, in_float32=in_float32, targets=["q_proj"], seed=1)
    state = trainable_state(model)
    generator = torch.Generator().manual_seed(2)
    load_trainable_state(model, {name: torch.randn(v.shape, generator=generator) * 0.1 for name, v in state.items()})
    plain = merged(model)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    for index, layer in enumerate(model.base_model.model.model.layers):
        both = layer.self_attn.q_proj
        down, up = both.lora_A["default"].weight.float(), both.lora_B["default"].weight.float()
        exact = both.base_layer.weight.float() + (up @ down) * (32 / math.sqrt(4))
        assert torch.equal(plain.model.layers[index].self_attn.q_proj.weight, exact.bfloat16())
        assert both.lora_A["default"].weight.dtype == (torch.float32 if in_float32 else torch.bfloat16)


def test_without_an_adapter_the_model_is_merged_already() -> None:
    model = build()
    assert merged(model) is model
    with pytest.raises(swaa.UserError, match="model: expected a transformers model, with or without a LoRA adapter"):
        merged(nn.Linear(2, 2))


def test_a_broken_adapter_is_not_merged() -> None:
    model = adapted()
    load_trainable_state(model, {name: value * torch.nan for name, value in trainable_state(model).items()})
    with pytest.raises(swaa.UserError, match="cannot merge the adapter: NaNs detected .* Use an earlier checkpoint"):
        merged(model)

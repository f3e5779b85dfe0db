"""``audit``: models that keep their word agree, with and without swaa, and every planted lie is found and named."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

import oracle
import strategies
import swaa
from hf.zoo import ARCHITECTURES, BY_TYPE, FULL, WINDOW, Architecture, llama
from swaa.cli import main
from swaa.hf import audit as module
from swaa.hf.audit import Audit, audit
from swaa.hf.audit_probe import Disturbance
from swaa.report.audit import audit_text

MIXED = "(SlidingWindow(5) | SinkTokens(2)).in_phase('prefill').on_heads([1, 3]).on_layers('::2')"
UNPHASED = "(SlidingWindow(5) | SinkTokens(2)).on_heads([1, 3]).on_layers('::2')"


def differing(found: Audit) -> set[int]:
    return {index for layer in found.layers if not layer.agrees for index in layer.layers}


# --------------------------------------------------------------------------------------------- models that keep it


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_model_without_swaa_agrees_with_its_config(architecture: Architecture) -> None:
    found = audit(architecture.build())
    assert found.agrees, found.differences
    assert found.blind == ()
    assert found.length > 4 * WINDOW
    assert found.prompt_length > 3 * WINDOW
    declared = {index: layer.prefill for layer in found.layers for index in layer.layers}
    for index in range(3):
        expected = "SlidingWindow" if index in architecture.windowed else "FullAttention"
        expected = "ChunkedAttention" if index in architecture.chunked else expected
        assert declared[index].startswith(expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "llama4_text", "gpt_neox", "stablelm"])
def test_a_policy_on_a_model_agrees_and_another_does_not(name: str) -> None:
    """By layer, head (in one KV group, too) and phase, with a cache that drops keys."""
    architecture = BY_TYPE[name]
    model = architecture.build()
    policy = UNPHASED if architecture.drops_kwargs else MIXED
    short: dict[str, Any] = {"seq_len": 20, "prompt_len": 15}  # beyond the window in both phases
    with swaa.apply_policy(model, policy):
        assert audit(model, policy, **short).agrees
        assert audit(model, **short).agrees, "the policy is on the config"
        shifted = audit(model, policy.replace("'::2'", "'1::2'"), **short)
    assert not shifted.agrees
    assert 1 in differing(shifted)
    assert not audit(model, policy, **short).agrees, "it has been taken off"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_any_attention_that_transformers_has(attention: str) -> None:
    model = BY_TYPE["olmo3"].build()
    model.set_attn_implementation(attention)
    assert audit(model).agrees


def test_wrappers_and_the_models_own_hooks() -> None:
    from peft import LoraConfig, get_peft_model

    model = BY_TYPE["mistral"].build()
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    assert audit(wrapped).agrees
    assert calls


def test_layers_without_attention_are_named() -> None:
    sizes = {"layer_types": ["conv", FULL, "conv"], "block_auto_adjust_ff_dim": False}
    model = Architecture("lfm2", sizes).build()
    found = audit(model)
    assert found.agrees
    assert found.layers[0].layers == (1,)
    assert found.not_probed == ((0, "conv"), (2, "conv"))
    assert "layer 0: not probed, it is no attention but conv" in audit_text(found.to_dict())


def test_the_model_is_left_as_it_was() -> None:
    model = llama().train()
    model.model.layers[1].eval()
    before = {name: (one, one.data_ptr(), one.clone()) for name, one in model.state_dict(keep_vars=True).items()}
    modes = [one.training for one in model.modules()]

    def assert_untouched() -> None:
        for name, one in model.state_dict(keep_vars=True).items():
            same, place, values = before[name]
            assert one is same
            assert one.data_ptr() == place
            assert torch.equal(one, values)
        assert [one.training for one in model.modules()] == modes
        assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())

    assert audit(model).agrees
    assert_untouched()
    model.model.layers[2].self_attn.o_proj.forward = lambda x: x[..., :3]  # an error halfway
    with pytest.raises(swaa.UserError, match="cannot be audited, because generate"):
        audit(model)
    assert_untouched()


def test_keys_of_hardly_any_weight_are_seen() -> None:
    """Scores of hundreds: one key takes all weight, and the others' would not show without noise of either sign."""
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 40
    assert audit(model).agrees


def test_noise_of_one_strength_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 40
    monkeypatch.setattr(module, "_LOOKS", (Disturbance(1, 0),))
    assert sum(layer.missing for layer in audit(model).layers) > 0


# --------------------------------------------------------------------------------------- against the loops of tests

SHAPE = oracle.Model(3, 4)
LENGTH, PROMPT = 14, 9
RUNNING = llama()


def pairs() -> Iterator[tuple[int, int]]:
    yield from ((q, k) for q in range(LENGTH) for k in range(q))


@settings(max_examples=max(4, settings.default.max_examples // 200))
@given(strategies.recipes(SHAPE, strategies.ZOO_ATOMS, 4), strategies.recipes(SHAPE, strategies.ZOO_ATOMS, 4))
def test_what_differs_is_what_the_loops_say(runs: oracle.Recipe, declares: oracle.Recipe) -> None:
    try:
        policies = strategies.build(runs), strategies.build(declares)
        with swaa.apply_policy(RUNNING, policies[0]):
            same, other = (audit(RUNNING, policy, seq_len=LENGTH, prompt_len=PROMPT) for policy in policies)
    except swaa.UserError:
        assume(False)  # a part of the policy names what this model lacks
    assert same.agrees
    leaks, missing = dict.fromkeys(range(3), 0), dict.fromkeys(range(3), 0)
    for layer in range(3):
        for head in range(4):
            for q, k in pairs():
                at = (SHAPE, layer, head, "decode" if q >= PROMPT else "prefill", q, k)
                effective, declared = oracle.sees(runs, *at), oracle.sees(declares, *at)
                leaks[layer] += effective and not declared
                missing[layer] += declared and not effective
    counted = {index: (one.leaks, one.missing) for one in other.layers for index in one.layers}
    assert counted == {layer: (leaks[layer], missing[layer]) for layer in range(3)}


# --------------------------------------------------------------------------------------------------- planted lies


@pytest.mark.parametrize(
    ("runs", "declares", "first"),
    [
        ("SlidingWindow(9)", "SlidingWindow(8)", "prefill: query 8, key 0: declared hidden, but it influences"),
        ("SlidingWindow(7)", "SlidingWindow(8)", "prefill: query 7, key 0: declared visible, but no influence"),
        ("SlidingWindow(8)", "SlidingWindow(8) | SinkTokens(2)", "query 8, key 0: declared visible, but no influence"),
        ("SlidingWindow(8) | SinkTokens(3)", "SlidingWindow(8) | SinkTokens(2)", "query 10, key 2: declared hidden"),
        ("SlidingWindow(8).on_heads([1])", "SlidingWindow(8).on_heads([1, 2])", "layer 0, head 2, prefill: query 8"),
        ("SlidingWindow(8)", "SlidingWindow(8).in_phase('prefill')", "decode: query 28, key 0: declared visible"),
        ("SlidingWindow(8).on_layers([1])", "SlidingWindow(8).on_layers([0])", "layer 0, head 0, prefill: query 8"),
        ("FullAttention()", "SlidingWindow(8).in_phase('decode')", "decode: query 28, key 0: declared hidden"),
    ],
)
def test_another_policy_than_declared(runs: str, declares: str, first: str) -> None:
    """A window off by one, sinks dropped, a head ignored, decode under the prefill policy, a layer shifted by one."""
    model = llama()
    with swaa.apply_policy(model, runs):
        found = audit(model, declares, seq_len=42, prompt_len=28)
    assert not found.agrees
    assert any(first in str(one) for one in found.differences), found.differences


def attention(
    bend: Callable[[Tensor], Tensor],
) -> Callable[..., tuple[Tensor, None]]:
    """An attention function for transformers' registry that makes its own mask: causal, and then bent."""

    def attend(layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        queries, keys = q.shape[2], k.shape[2]
        distance = torch.arange(keys - queries, keys).unsqueeze(-1) - torch.arange(keys)
        visible = bend(distance) if queries > 1 else torch.ones(1, keys, dtype=torch.bool)
        out = nn.functional.scaled_dot_product_attention(q, k, v, visible, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    return attend


LIARS: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "full_where_windowed": ("mistral", lambda d: d >= 0, "query 7, key 0: declared hidden, but it influences"),
    "window_off_by_one": ("mistral", lambda d: (d >= 0) & (d <= WINDOW), "query 7, key 0: declared hidden"),
    "window_too_short": ("mistral", lambda d: (d >= 0) & (d < WINDOW - 1), "query 6, key 0: declared visible"),
    "sees_the_future": ("llama", lambda d: d >= -1, "query 0, key 1: declared hidden, but it influences"),
    "window_nobody_declares": ("llama", lambda d: (d >= 0) & (d < 20), "query 20, key 0: declared visible"),
}


@pytest.mark.parametrize("name", LIARS)
def test_an_attention_that_goes_its_own_way(name: str) -> None:
    """Without swaa: what the config declares is not what the registered function does."""
    model_type, bend, first = LIARS[name]
    AttentionInterface.register(name, attention(bend))
    AttentionMaskInterface.register(name, lambda *_, **__: None)
    model = BY_TYPE[model_type].build()
    model.set_attn_implementation(name)
    found = audit(model)
    assert differing(found) == {0, 1, 2}
    assert first in str(found.differences[0])


def test_a_patch_that_drops_the_mask() -> None:
    """Windowed layers are served as full attention; a layer that is declared full loses nothing by it."""
    model = BY_TYPE["olmo3"].build()
    model.set_attn_implementation("sdpa")
    for layer in model.model.layers:
        layer.forward = _with_mask(layer.forward, None)
    found = audit(model)
    assert differing(found) == {0, 2}
    text = audit_text(found.to_dict())
    assert "layers 0,2: DIFFER from SlidingWindow(7)" in text
    assert "layer 1: agrees with FullAttention()" in text


def test_a_config_that_was_edited_after_the_model_was_made() -> None:
    """The window of Mistral's masks is read as they are made, that of its config here: a copy that nobody reads."""
    model = BY_TYPE["mistral"].build()
    model.config = type(model.config).from_dict(model.config.to_dict() | {"sliding_window": WINDOW + 1})
    found = audit(model)
    assert differing(found) == {0, 1, 2}
    assert "query 7, key 0: declared visible, but no influence" in str(found.differences[0])


def _with_mask(forward: Callable[..., Any], mask: Any) -> Callable[..., Any]:
    def lying(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **(kwargs | {"attention_mask": mask}))

    return lying


def test_a_cache_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached decode is probed as it runs: here it has lost a token that every query may see."""
    update = DynamicLayer.update

    def forgetful(self: DynamicLayer, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = update(self, key, value, *args, **kwargs)
        if key.shape[2] == 1:
            keys[:, :, 3] = values[:, :, 3] = 0.0
        return keys, values

    monkeypatch.setattr(DynamicLayer, "update", forgetful)
    found = audit(llama())
    assert {(one.phase, one.key, one.declared) for one in found.differences} == {("decode", 3, True)}


def test_a_policy_that_is_off() -> None:
    """transformers runs a checkpoint that was saved with a policy, and does not know what that is."""
    model = llama()
    with swaa.apply_policy(model, "SlidingWindow(8)"):
        config = type(model.config).from_dict(model.config.to_dict())
    for one in model.modules():
        if getattr(one, "config", None) is model.config:
            one.config = config
    config._attn_implementation = "eager"
    found = audit(model)
    assert found.source == "the policy on the model's config"
    assert differing(found) == {0, 1, 2}


def test_the_report_draws_both_masks() -> None:
    model = llama()
    with swaa.apply_policy(model, "SlidingWindow(3)"):
        text = audit_text(audit(model, "SlidingWindow(2) | SinkTokens(1)", seq_len=6, prompt_len=4).to_dict())
    assert text.startswith("LlamaForCausalLM DIFFERS from the policy that was given: SlidingWindow(2) | SinkTokens(1)")
    assert "layers 0-2: DIFFER from SlidingWindow(2) | SinkTokens(1)" in text
    drawn = [line.split() for line in text.splitlines()[-7:]]
    rows = {int(line[0]): line[1:] for line in drawn if line[0].isdigit()}
    assert rows == {
        0: ["#", "#"],
        1: ["##", "##"],
        2: ["###", "###"],
        3: ["#.##", "?!##"],
        4: ["#..##", "?.!##"],
        5: ["#...##", "?..!##"],
    }
    assert drawn[4][-1] == "decode"


# ------------------------------------------------------------------------------------------------ samples and limits


def test_long_texts_are_sampled_at_the_edges_of_the_mask() -> None:
    model = llama()
    with swaa.apply_policy(model, "SlidingWindow(60) | SinkTokens(3)"):
        found = audit(model, num_keys=10)
        off = audit(model, "SlidingWindow(60) | SinkTokens(4)", num_keys=10)
    assert found.agrees
    assert found.blind == ()
    assert found.length == 107
    assert len(found.keys) == 10
    assert {2, 3} <= set(found.keys), "the edge of the sinks"
    assert {one.key for one in off.differences} == {3}


def test_a_text_too_short_for_the_mask_is_said_to_be_blind() -> None:
    model = BY_TYPE["mistral"].build()
    found = audit(model, seq_len=7)
    assert found.agrees
    assert [(one.phase, one.layers, one.length) for one in found.blind] == [
        ("prefill", (0, 1, 2), 40),
        ("decode", (0, 1, 2), 40),
    ]
    assert "Give --seq-len 40." in audit_text(found.to_dict())
    assert audit(model, "SlidingWindow(3).in_phase('prefill')", seq_len=6).blind[0].phase == "decode"
    assert "no positions for more" in audit_text(audit(llama(), "SlidingWindow(900)").to_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 1}, r"seq_len: expected an int from 2 to 128 \(tokens\), got 1"),
        ({"seq_len": 129}, r"seq_len: expected an int from 2 to 128 \(tokens\), got 129"),
        ({"seq_len": 8, "prompt_len": 9}, "prompt_len: expected an int from 1 to 8"),
        ({"prompt_len": 0}, "prompt_len: expected an int from 1"),
        ({"num_keys": 0}, "num_keys: expected an int >= 1"),
        ({"num_keys": True}, "num_keys: expected an int >= 1"),
        ({"dtype": torch.float16}, "dtype: expected torch.float64 or torch.float32"),
        ({"declared": "SlidingWindow(8).on_layers(3)"}, "layer 3 is out of range"),
        ({"declared": "SlidingWindow(8) | TopBlocks(2, 4)"}, "there is no mask that the model could be held to"),
        ({"declared": "SlidingWindw(8)"}, "Did you mean 'SlidingWindow'"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(swaa.UserError, match=message):
        audit(llama(), **options)


def _without_index(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        del layer.self_attn.layer_idx


def _without_one_index(model: PreTrainedModel) -> None:
    del model.model.layers[1].self_attn.layer_idx


def _random(model: PreTrainedModel) -> None:
    model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda *at: at[-1] + torch.rand_like(at[-1]))


def _not_finite(model: PreTrainedModel) -> None:
    model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda *at: at[-1] * torch.nan)


def _flash(model: PreTrainedModel) -> None:
    model.config._attn_implementation = "flash"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_index, "LlamaModel: nothing in it has layer_idx=0"),
        (_without_one_index, "LlamaModel: nothing in it has layer_idx=1"),
        (_random, r"LlamaAttention \(layers.1.self_attn\): cannot be audited, because it gives equal rows different"),
        (_not_finite, "because it gives values that are not finite"),
        (_flash, "attn_implementation='flash': computes in 16 bits"),
    ],
)
def test_what_cannot_be_audited_says_why(change: Callable[[PreTrainedModel], None], message: str) -> None:
    model = llama()
    change(model)
    with pytest.raises(swaa.UserError, match=message):
        audit(model)


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(swaa.UserError, match="model: expected a transformers model that generates, got 'Linear'"):
        audit(nn.Linear(2, 2))
    with pytest.raises(swaa.UserError, match="got 'LlamaModel'"):
        audit(llama().model)


# ---------------------------------------------------------------------------------------------------- command line

POLICY = "(SlidingWindow(8) | SinkTokens(2)).in_phase('prefill')"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a policy saved on it."""
    folder = tmp_path_factory.mktemp("audited") / "tiny"
    model = llama()
    with swaa.apply_policy(model, POLICY):
        model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(40)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", unk_token="w0").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--audit", "SAVED"], 0, f"agrees with the policy on the model's config: {POLICY}"),
        (["--audit", "SAVED", "--plain"], 1, "DIFFERS from the policy on the model's config"),
        (["--audit", "SAVED", "--plain", "--attn", "eager", "FullAttention()"], 0, "agrees with the policy that was"),
        (["SlidingWindow(4)", "--audit", "SAVED", "--keys", "5"], 0, "layers 0-2: agree with SlidingWindow(4)"),
        (["SlidingWindow(4)", "--audit", "SAVED", "--plain", "--seq-len", "9"], 1, "query 4, key 0: declared hidden"),
    ],
)
def test_the_three_uses(argv: list[str], code: int, says: str, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Saved policy by swaa; what the config declares by transformers alone; a policy that swaa applies."""
    assert main(["explain", *(str(saved) if arg == "SAVED" else arg for arg in argv)]) == code
    assert says in capsys.readouterr().out


def test_json_has_the_same(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--audit", str(saved), "--plain", "--json", "--seq-len", "24", "--prompt-len", "20"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert not data["agrees"]
    assert (data["length"], data["prompt_length"], data["dtype"]) == (24, 20, "float64")
    assert data["layers"][0]["differences"][0] == {
        **{"layer": 0, "head": 0, "phase": "prefill", "query": 10, "key": 2},
        "declared": False,
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "POLICY: this is missing. Give a policy, or --audit MODEL"),
        (["--audit", "SAVED", "--keys", "0"], "num_keys: expected an int >= 1"),
        (["--audit", "SAVED", "--attn", "eager"], "--attn: expected nothing without --plain"),
        (["--audit", "SAVED", "--plain", "--attn", "eagre"], "cannot load the model in"),
        (["--audit", "SAVED", "--heads", "3"], "--heads: expected nothing beside --audit, got 3"),
        (["--audit", "./nowhere"], "there is no such model folder"),
        (["SlidingWindow(4).on_layers(9)", "--audit", "SAVED"], "layer 9 is out of range"),
    ],
)
def test_a_mistake_is_exit_code_2(
    argv: list[str], message: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *(str(saved) if arg == "SAVED" else arg for arg in argv)]) == 2
    assert message in capsys.readouterr().err


def test_the_exit_code_is_that_of_the_process(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python -m swaa``, in this interpreter."""
    monkeypatch.setattr(sys, "argv", ["swaa", "explain", "--audit", str(saved), "--plain"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("swaa", run_name="__main__")
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert "query 10, key 2: declared hidden, but it influences" in told.out
    assert "Traceback" not in told.err

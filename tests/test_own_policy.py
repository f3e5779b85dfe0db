"""The policies of docs/write-a-policy.md and docs/first-policy.md, in the very files that the pages show."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import LlamaConfig, LlamaForCausalLM

import swaa
from swaa.cli import main
from swaa.compiler import TokenLayout, block_mask, dense_mask, live_keys
from swaa.policies import bind, get_policy, load_plugin, registry
from swaa.testing import check_policy

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "examples" / "distance_gap.py"


@pytest.fixture(scope="module")
def distance_gap() -> type[swaa.Predicate]:
    load_plugin(str(FILE))
    return get_policy("DistanceGap")


def test_the_page_shows_this_file_and_it_has_at_most_25_lines() -> None:
    text = FILE.read_text()
    block = re.search(r"```python run\n(.*?)```", (ROOT / "docs/write-a-policy.md").read_text(), re.DOTALL)
    assert block is not None
    assert block[1] == text
    assert len(text.splitlines()) <= 25


def test_dense_mask_equals_a_loop(distance_gap: type[swaa.Predicate]) -> None:
    for policy in distance_gap.examples():
        near, far = policy.parameters().values()
        hidden = range(near, far)
        expected = [[k <= q and q - k not in hidden for k in range(310)] for q in range(310)]
        layer = bind(policy, 1, 1).layers[0]
        assert dense_mask(layer, TokenLayout.contiguous(310))[0, 0].tolist() == expected


def test_block_mask_equals_torchs(distance_gap: type[swaa.Predicate]) -> None:
    for policy in (*distance_gap.examples(), distance_gap(40, 90) | swaa.SinkTokens(9)):
        ours = block_mask(bind(policy, 1, 1).layers[0], TokenLayout.contiguous(1000), block_size=64)
        theirs = create_block_mask(ours.mask_mod, None, None, 1000, 1000, device="cpu", BLOCK_SIZE=64)
        assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
        assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
        assert torch.equal(ours.to_dense(), theirs.to_dense())


def test_retention_keeps_what_is_hidden_now_and_far_later(distance_gap: type[swaa.Predicate]) -> None:
    policy = distance_gap(4, 9).in_phase("prefill", otherwise=swaa.SlidingWindow(4))  # of 12 queries, 2 are left
    keys, following, prompt = torch.arange(10)[None], torch.tensor([10]), torch.tensor([12])
    live = live_keys(bind(policy, 1, 1).layers[0], keys, following, prompt)
    assert live[0, 0].nonzero().flatten().tolist() == [0, 1, 2, 7, 8, 9]
    live = live_keys(bind(distance_gap(4, 9), 1, 1).layers[0], keys, following)
    assert live.all(), "in the end every key is far away"


def test_it_generates(distance_gap: type[swaa.Predicate]) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    prompt = torch.randint(1, 64, (1, 20))
    with swaa.apply_policy(model, distance_gap(3, 9)):
        tokens = model.generate(prompt, max_new_tokens=6, do_sample=False)
        again = prompt
        for _ in range(6):
            with torch.no_grad():
                again = torch.cat([again, model(again, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(tokens, again)
    assert not torch.equal(tokens, model.generate(prompt, max_new_tokens=6, do_sample=False))


def test_the_command_line_knows_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    policies = {name: kind for name, kind in registry._policies.items() if name != "DistanceGap"}
    monkeypatch.setattr(registry, "_policies", policies)  # as in a new process: neither known nor imported
    for name in [name for name in sys.modules if name.startswith("swaa_plugin_distance_gap")]:
        monkeypatch.delitem(sys.modules, name)
    command = ["draw", "DistanceGap(2, 5)", "--seq-len", "7"]
    assert main(command) == 2
    assert "unknown policy 'DistanceGap'" in capsys.readouterr().err
    assert main([*command, "--plugin", str(FILE)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "████······████"


def test_bad_values_are_refused(distance_gap: type[swaa.Predicate]) -> None:
    with pytest.raises(swaa.UserError, match=r"DistanceGap.far: expected an int >= 4 \(tokens\), got 3"):
        distance_gap(4, 3)


def test_the_example_of_the_first_policy_is_what_its_loop_says() -> None:
    example = load_plugin(str(ROOT / "docs" / "examples" / "thinned_window.py"))
    page = (ROOT / "docs" / "first-policy.md").read_text()
    for name, code in (("visible", example.ThinnedWindow.visible), ("oracle", example.oracle)):
        body = [line.strip() for line in inspect.getsource(code).splitlines() if '"""' not in line]
        assert "\n".join(body) in re.sub(r"^ +", "", page, flags=re.MULTILINE), name
    only = ["oracle", "dense mask", "retention"]
    check_policy(example.ThinnedWindow, oracle=example.oracle, only=only).require()

"""A package of somebody else's, installed from a folder: its policy is there for everything, by its entry point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

PACKAGE = Path(__file__).parents[1] / "data" / "third_party_policy"

EXPERIMENT = """
model: {name: MODEL, device: cpu}
recipes:
  - {name: lunar, policy: {policy: LunarWindow, window_size: 16, month: 28}}
  - {name: composed, policy: "(LunarWindow(16) | SinkTokens(4)).in_phase('prefill')"}
tasks: [{name: needle_single}]
lengths: [400]
num_examples: 1
decoding: {max_new_tokens: 4}
output: out
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, as pip puts it there; nothing is fetched."""
    folder = tmp_path_factory.mktemp("site")
    source = folder / "source"
    subprocess.run(["cp", "-r", str(PACKAGE), str(source)], check=True)  # building leaves files behind
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    done = subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", str(folder / "packages"), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "packages"


def test_it_is_listed(
    installed: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert "LunarWindow" in command("ls", "policies", folder=tmp_path, path=installed).stdout


def test_it_passes_the_check(
    installed: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    argv = ["check", "lunar_policies:LunarWindow", "--oracle", "lunar_policies:full_moons", "--no-flex"]
    done = command(*argv, folder=tmp_path, path=installed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "oracle                 ok" in done.stdout
    assert done.stdout.rstrip().endswith("LunarWindow: 25 checks, none failed.")


def test_it_runs_from_yaml(
    installed: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    from engine.conftest import make_tokenizer

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=260,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=1024,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    file = tmp_path / "lunar.yaml"
    file.write_text(EXPERIMENT.replace("MODEL", str(tmp_path / "model")))
    validated = command("validate", str(file), folder=tmp_path, path=installed)
    assert validated.returncode == 0, validated.stderr
    unknown = command("validate", str(file), folder=tmp_path)
    assert unknown.returncode == 2
    assert "unknown policy 'LunarWindow'" in unknown.stderr
    done = command("run", str(file), folder=tmp_path, path=installed)
    assert done.returncode == 0, done.stderr
    assert "lunar" in done.stdout
    assert "composed" in done.stdout

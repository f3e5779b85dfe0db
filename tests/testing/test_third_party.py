"""A package of somebody else's, installed from a folder: its policy is there for everything, by its entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from swaa.cli import main

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

ALL_COMMANDS = """
import contextlib, io, json, sys
from swaa.cli import main

found = {}
for name, argv in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    found[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Outcome:
    """A command's exit code and what it printed."""

    code: int
    out: str
    err: str


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


@pytest.fixture(scope="module")
def outcomes(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What the commands say in one process that has the package: its imports take longer than they do."""
    from engine.conftest import make_tokenizer

    folder = tmp_path_factory.mktemp("lunar")
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
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "lunar.yaml").write_text(EXPERIMENT.replace("MODEL", str(folder / "model")))
    commands = {
        "ls": ["ls", "policies"],
        "check": ["check", "lunar_policies:LunarWindow", "--oracle", "lunar_policies:full_moons", "--no-flex"],
        "validate": ["validate", "lunar.yaml"],
        "run": ["run", "lunar.yaml"],
    }
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(installed))
    done = subprocess.run(
        [sys.executable, "-c", ALL_COMMANDS, json.dumps(commands)], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {name: Outcome(**one) for name, one in json.loads(done.stdout).items()}


def test_it_is_listed(outcomes: dict[str, Outcome]) -> None:
    assert "LunarWindow" in outcomes["ls"].out


def test_it_passes_the_check(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["check"].code == 0, outcomes["check"]
    assert "oracle                 ok" in outcomes["check"].out
    assert outcomes["check"].out.rstrip().endswith("LunarWindow: 25 checks, none failed.")


def test_it_runs_from_yaml(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["validate"].code == 0, outcomes["validate"]
    assert outcomes["run"].code == 0, outcomes["run"]
    assert "lunar" in outcomes["run"].out
    assert "composed" in outcomes["run"].out


def test_without_the_package_its_name_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lunar.yaml"
    file.write_text(EXPERIMENT)
    assert main(["validate", str(file)]) == 2
    assert "unknown policy 'LunarWindow'" in capsys.readouterr().err

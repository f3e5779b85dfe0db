"""``swaa run`` on models that cannot do what is asked: one message, exit code 2, nothing written but the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from swaa.cli import main


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a command that a user's mistake ends; loading bars may stand before it."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    told = captured.err.rpartition("swaa: error: ")[2]
    assert told.count("\n") == 1
    return told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "lengths=[2045]",
            "lengths: 2045 prompt tokens and 6 new ones are 2051 tokens, and the context of MODEL is 2048. "
            "Ask for a length of at most 2042, or choose a model with a longer context.",
        ),
        ("lengths=[9]", "length of needle_single: expected at least "),
        ("recipes[1].policy=SlidingWindow(8).on_layers(4)", "recipe 'swa': layer 4 is out of range: this model has 4"),
        ("tasks=[{name: needle_single, haystack: file, haystack_file: no.txt}]", "haystack_file: expected the path of"),
    ],
)
def test_what_does_not_fit_the_model(
    override: str, message: str, experiment_file: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(["run", str(experiment_file), override], capsys)
    assert told.startswith(message.replace("MODEL", str(model_folder)))


def test_an_architecture_that_no_policy_can_reach(
    experiment_file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BloomForCausalLM(BloomConfig(vocab_size=260, hidden_size=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    told = refused(["run", str(experiment_file), f"model.name={tmp_path}"], capsys)
    assert told.startswith("BloomForCausalLM (model type 'bloom'): computes attention in its own code")

"""`load`: every kind of name, what it sets up, and each mistake with its own message."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from swaa.errors import UserError
from swaa.hf.apply import apply_policy
from swaa.hf.loading import load
from swaa.policies import FullAttention, SlidingWindow

WORDS = ["<unk>", "</s>", "the", "cat", "sat", "on", "mat", "and", "looked", "at", "moon"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny random Llama in bfloat16, with a tokenizer that pads on the right and has no pad token."""
    folder = tmp_path / "tiny"
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(WORDS), eos_token_id=1, bos_token_id=None, **shape)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", unk_token="<unk>", padding_side="right"
    ).save_pretrained(folder)
    return folder


def logits(folder: Path, policy: object = None) -> torch.Tensor:
    """[token, word]: the model's logits on one sentence, in float32."""
    model, tokenizer = load(folder, policy, dtype="float32", device="cpu")  # type: ignore[arg-type]
    with torch.no_grad():
        return model(**tokenizer("the cat sat on the mat and looked at the moon", return_tensors="pt")).logits[0]


def test_a_local_folder_is_ready_to_generate(tiny: Path) -> None:
    model, tokenizer = load(tiny, device="cpu")
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token == "</s>"
    batch = tokenizer(["the cat", "on the mat and looked"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 1
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 2


def test_the_catalogues_model_loads_by_name(smollm2: Path) -> None:
    model, tokenizer = load("smollm2-135m-instruct", device="cpu")
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 8192
    assert tokenizer.chat_template is not None
    assert model.name_or_path == str(smollm2)


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("auto", torch.bfloat16),
        ("float32", torch.float32),
        ("float16", torch.float16),
        (torch.float64, torch.float64),
    ],
)
def test_the_dtype_is_the_checkpoints_own_unless_asked(tiny: Path, asked: str | torch.dtype, got: torch.dtype) -> None:
    assert load(tiny, dtype=asked, device="cpu")[0].dtype == got


def test_the_policy_given_holds_from_the_start(tiny: Path) -> None:
    plain, windowed = logits(tiny), logits(tiny, SlidingWindow(2))
    torch.testing.assert_close(windowed[:2], plain[:2])
    assert (windowed[2:] - plain[2:]).abs().amax(-1).min() > 1e-4
    torch.testing.assert_close(logits(tiny, "SlidingWindow(2)"), windowed)


def test_a_saved_policy_comes_back_and_full_attention_overrides_it(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = load(tiny, SlidingWindow(2), dtype="float32", device="cpu")
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    torch.testing.assert_close(logits(saved), logits(tiny, SlidingWindow(2)))
    torch.testing.assert_close(logits(saved, FullAttention()), logits(tiny))


def test_a_saved_kernel_comes_back_unless_another_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = load(tiny, SlidingWindow(2), kernel="dense")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    kernels = [load(tmp_path, kernel=kernel)[0].config.swaa["kernel"] for kernel in (None, "flex")]
    assert kernels == ["dense", "flex"]


@pytest.mark.parametrize("path", ["./no/such/model", "/no/such/model", "~/no-such-model", "no/such/model", "a b"])
def test_a_folder_that_is_not_there(path: str) -> None:
    with pytest.raises(UserError, match=r"there is no such model folder\. Check the path, or give one of the names"):
        load(path)


def test_a_path_object_is_never_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^models: there is no such model folder"):
        load(Path("models"))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a model folder, and it has no config\.json\. Give the folder"):
        load(tmp_path)


def test_a_file_instead_of_a_folder(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: expected a model folder, got a file"):
        load(tiny / "config.json")


def test_a_hub_that_cannot_be_reached() -> None:
    with pytest.raises(UserError) as caught:
        load("some-lab/a-model")
    assert str(caught.value).startswith("unknown model 'some-lab/a-model'. ")
    assert "It is no folder here, and the hub did not serve it: " in str(caught.value)


def test_damaged_weights_are_named(tiny: Path) -> None:
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"damaged weights: .*model\.safetensors cannot be read \(.*\)\. Copy or"):
        load(tiny)


def test_a_folder_without_weights(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot load the model in .*tiny: .*model\.safetensors"):
        load(tiny)


def test_weights_that_a_checkpoint_lacks_are_not_made_up(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    message = r"the checkpoint lacks 9 of the model's tensors, one of them 'model\.layers\.2\.input_layernorm"
    with pytest.raises(UserError, match=message):
        load(tiny)


def test_a_config_that_is_not_json(tiny: Path) -> None:
    (tiny / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot load the model in .*not a valid JSON"):
        load(tiny)


def test_an_architecture_that_transformers_does_not_know(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"model_type": "hal9000"}))
    with pytest.raises(UserError, match=r"cannot load the model in .*hal9000"):
        load(tiny)


def test_code_of_a_checkpoint_runs_only_if_asked(tiny: Path) -> None:
    """A model whose code is a Python file beside it, which leaves a trace when it is imported."""
    trace = tiny / "it-ran"
    code = f"""
from transformers import LlamaConfig, LlamaForCausalLM
open({str(trace)!r}, "w").close()
class Config(LlamaConfig):
    model_type = "own"
class Model(LlamaForCausalLM):
    config_class = Config
"""
    (tiny / "own.py").write_text(code)
    config = json.loads((tiny / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tiny / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(UserError, match=r"runs Python code that it brings along.*pass trust_remote_code=True"):
        load(tiny)
    assert not trace.exists()
    model, _ = load(tiny, trust_remote_code=True)
    assert type(model).__name__ == "Model"
    assert trace.exists()


def test_a_tokenizer_that_cannot_pad(tiny: Path) -> None:
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (tiny / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"no pad token and no end-of-sequence token\. Set `pad_token` in"):
        load(tiny)


def test_dtypes_and_devices_that_cannot_be_had(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"unknown dtype 'bf16'\. Did you mean 'bfloat16'\?"):
        load(tiny, dtype="bf16")
    with pytest.raises(UserError, match=r"dtype: expected a floating-point dtype, got torch\.int8"):
        load(tiny, dtype=torch.int8)
    with pytest.raises(UserError, match=r"device: expected a device of this machine \('auto', 'cpu'.*got 'cuda:99'"):
        load(tiny, device="cuda:99")
    with pytest.raises(UserError, match="device: expected a device of this machine .*got 'gpu'"):
        load(tiny, device="gpu")


@pytest.mark.gpu
def test_auto_takes_the_gpu(tiny: Path) -> None:
    model, _ = load(tiny)
    assert model.device.type == "cuda"
    assert model.dtype == AutoConfig.from_pretrained(tiny).dtype


def test_a_misspelt_name_of_the_catalogue_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="unknown model 'smollm2'. Did you mean 'smollm2-135m-instruct'"):
        load("smollm2")


MARK = "policy_is_off_unless_loaded_with_swaa"
ELSEWHERE = """
import sys
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    print("now:", folder, file=sys.stderr)
    AutoModelForCausalLM.from_pretrained(folder)
assert not [name for name in sys.modules if name.startswith("swaa")]
"""


def saved_with_a_policy(tiny: Path, folder: Path, *, removed: bool = False) -> Path:
    model, tokenizer = load(tiny, SlidingWindow(4), device="cpu")
    if removed:
        model, _ = load(tiny, device="cpu")
        apply_policy(model, SlidingWindow(4)).remove()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_process_without_swaa_is_told_that_the_policy_is_off(tiny: Path, tmp_path: Path) -> None:
    """By transformers itself, which names the tensors of a checkpoint that it does not know."""
    off = saved_with_a_policy(tiny, tmp_path / "off", removed=True)
    on = saved_with_a_policy(tiny, tmp_path / "on")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    told = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(off), str(on)], env=clean, capture_output=True, text=True, check=True
    ).stderr
    of_off, of_on = told.split("now: ")[1:]
    assert "UNEXPECTED" not in of_off
    assert MARK not in of_off
    assert "UNEXPECTED" in of_on
    assert MARK in of_on


class Told(logging.Handler):
    """What a logger was told. Not pytest's caplog, which hears it twice where transformers passes its records on."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_loading_with_swaa_applies_the_saved_policy_and_reports_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved_with_a_policy(tiny, tmp_path / "saved")
    told, logger = Told(), logging.getLogger("transformers")
    monkeypatch.setattr(logger, "handlers", [told])
    model, _ = load(folder, device="cpu")
    assert not told.messages
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"stranger": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    load(folder, device="cpu")
    assert ["stranger" in message for message in told.messages] == [True]
    assert torch.equal(logits(folder), logits(tiny, SlidingWindow(4)))
    assert MARK in model.state_dict()

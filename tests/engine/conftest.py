"""A tiny random model with a byte-level tokenizer, built offline: small enough for every test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forking import Forks

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 2048

EXPERIMENT = """
vars: {{window: 16}}
model: {{name: {model}, device: cpu}}
recipes:
  - {{name: FA, policy: FullAttention()}}
  - {{name: swa, policy: "SlidingWindow(${{vars.window}}) | SinkTokens(4)"}}
  - {{name: half, policy: "SlidingWindow(${{vars.window}}).in_phase('prefill').on_layers('::2')"}}
tasks:
  - {{name: needle_single}}
  - {{name: needle_multikey, num_keys: 2}}
lengths: [400, 440]
num_examples: 3
batch_size: 2
decoding: {{max_new_tokens: 6}}
output: {output}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and three special ones."""
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(**changes: Any) -> LlamaForCausalLM:
    """Four layers of random weights, large enough that a policy changes what is likeliest."""
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.3,
        **changes,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, saved as a user's own model would be."""
    folder = tmp_path_factory.mktemp("tiny")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def experiment_file(tmp_path: Path, model_folder: Path) -> Path:
    """Three recipes x two tasks x two lengths x three examples on the tiny model."""
    path = tmp_path / "tiny.yaml"
    path.write_text(EXPERIMENT.format(model=model_folder, output=tmp_path / "out"))
    return path


@pytest.fixture(scope="session")
def forks(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts processes that run ``swaa``."""
    folder = tmp_path_factory.mktemp("forks")
    data, file = folder / "data.jsonl", folder / "warm-up.yaml"
    data.write_text(json.dumps({"prompt": "What is it?", "answer": "This."}))
    train = {"files": [str(data)], "max_steps": 1}
    model = {"name": str(model_folder), "device": "cpu", "dtype": "float32"}
    file.write_text(json.dumps({"model": model, "policy": "SlidingWindow(4)", "train": train}))
    forks = Forks(["finetune", str(file), "-o", str(folder / "warm-up")], folder)
    yield forks
    forks.close()

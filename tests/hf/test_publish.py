"""Published checkpoints: what `load` brings back, what other loaders see, what is left after a failure; model cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import swaa
from hf.batches import padded, rows_of
from hf.trained import trainable_state
from hf.zoo import BY_TYPE, WORDS
from swaa.errors import UserError
from swaa.hf import publish as module
from swaa.hf.lora import add_lora, load_trainable_state
from swaa.hf.mark import MARK
from swaa.hf.publish import model_card, publish

POLICY = (swaa.SlidingWindow(4) | swaa.SinkTokens(1)).in_phase("prefill")
SAME = {"atol": 1e-5, "rtol": 1e-5}
PROMPTS = torch.tensor([8, 3, 9])
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TARGETS = {
    "llama": ("q_proj", "k_proj", "v_proj"),
    "qwen3_moe": ("q_proj", "o_proj"),
    "gpt_neox": ("query_key_value",),
    "opt": ("all-linear",),
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"word{index}": index for index in range(3, WORDS)}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = CHAT
    return made


def build(model_type: str = "llama") -> PreTrainedModel:
    """opt with its head tied to the embeddings."""
    return BY_TYPE[model_type].build(**({"tie_word_embeddings": True} if model_type == "opt" else {}))


def adapted(model_type: str = "llama", seed: int = 2) -> nn.Module:
    """With an adapter that changes the logits, in eval mode."""
    model = add_lora(build(model_type), r=4, targets=TARGETS[model_type])
    generator = torch.Generator().manual_seed(seed)
    state = trainable_state(model)
    load_trainable_state(model, {name: torch.randn(v.shape, generator=generator) * 0.1 for name, v in state.items()})
    return model


@torch.no_grad()
def logits(model: nn.Module, policy: object = None) -> Tensor:
    """[B, T, V], under the policy that is given, or the one that is on the model."""
    inputs = padded(rows_of(12, 7, 9), side="right")
    if policy is None:
        return model(**inputs, use_cache=False, prompt_lengths=PROMPTS).logits
    with swaa.apply_policy(model, policy):  # type: ignore[arg-type]
        return model(**inputs, use_cache=False, prompt_lengths=PROMPTS).logits


@pytest.mark.parametrize("model_type", TARGETS)
@pytest.mark.parametrize("on_it", [None, swaa.SlidingWindow(2)], ids=["no policy on it", "another policy on it"])
def test_load_brings_model_and_policy_back(
    model_type: str, on_it: object, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = adapted(model_type)
    expected = logits(model, POLICY)
    assert (expected - logits(build(model_type), POLICY)).abs().max() > 1e-2
    handle = swaa.apply_policy(model, on_it) if on_it is not None else None  # type: ignore[arg-type]
    before = logits(model) if handle else None
    folder = publish(model, tokenizer, tmp_path / "a" / "model", policy=POLICY, card="# A card\n", kernel="dense")
    assert folder == tmp_path / "a" / "model"
    if handle and before is not None:
        assert torch.equal(logits(model), before)
        handle.remove()
    assert torch.equal(logits(model, POLICY), expected)

    loaded, same_tokenizer = swaa.load(folder, device="cpu")
    assert type(loaded) is type(build(model_type))
    assert swaa.saved_policy(loaded.config) == POLICY
    assert loaded.config.swaa["kernel"] == "dense"
    torch.testing.assert_close(logits(loaded), expected, **SAME)
    assert same_tokenizer.chat_template == CHAT
    assert (folder / "README.md").read_text() == "# A card\n"
    assert loaded.generation_config.pad_token_id == 0
    assert not any("lora" in name or "base_layer" in name for name in load_file(folder / "model.safetensors"))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_plain_load_reports_that_the_policy_is_off(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = adapted()
    folder = publish(model, tokenizer, tmp_path / "model", policy=POLICY, card="# A card")
    plain, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert set(report["unexpected_keys"]) == {MARK}
    assert not report["missing_keys"]
    inputs = padded(rows_of(12, 7, 9), side="right")
    with torch.no_grad():
        full = model(**inputs, use_cache=False).logits
        torch.testing.assert_close(plain(**inputs, use_cache=False).logits, full, **SAME)


def test_a_model_without_an_adapter_is_published_and_left_as_it_was(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = build("opt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    implementation = model.config._attn_implementation
    expected = logits(model, POLICY)
    loaded, _ = swaa.load(publish(model, tokenizer, tmp_path / "model", policy=str(POLICY), card=""), device="cpu")
    assert torch.equal(logits(loaded), expected)
    assert model.config._attn_implementation == implementation
    assert swaa.saved_policy(model.config) is None
    assert model.state_dict().keys() == before.keys()


def test_half_precision_stays(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = add_lora(build().bfloat16())
    folder = publish(model, tokenizer, tmp_path / "model", policy=POLICY, card="")
    kinds = {value.dtype for name, value in load_file(folder / "model.safetensors").items() if name != MARK}
    assert kinds == {torch.bfloat16}
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16


# --- the folder ---


def published(tokenizer: PreTrainedTokenizerFast, folder: Path, card: str = "new", **options: object) -> Path:
    return publish(build(), tokenizer, folder, policy=POLICY, card=card, **options)  # type: ignore[arg-type]


def test_an_empty_folder_is_taken_and_a_full_one_only_if_told(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    published(tokenizer, folder, "old")
    (folder / "leftover.txt").write_text("of the former checkpoint")
    with pytest.raises(swaa.UserError, match="model: the folder is not empty. .* overwrite=True to replace it"):
        published(tokenizer, folder)
    with pytest.raises(swaa.UserError, match="the folder is not empty"):  # before it looks at the model
        publish(nn.Linear(2, 2), tokenizer, folder, policy=POLICY, card="new")
    assert (folder / "README.md").read_text() == "old"
    published(tokenizer, folder, overwrite=True)
    assert (folder / "README.md").read_text() == "new"
    assert not (folder / "leftover.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_checkpoint_is_never_replaced(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(swaa.UserError, match="no checkpoint .it has no config.json., so it is not replaced"):
        published(tokenizer, tmp_path, overwrite=True)
    with pytest.raises(swaa.UserError, match="thesis.tex: expected a folder to write a checkpoint to, got a file"):
        published(tokenizer, tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_checkpoint_and_nothing_in_part(
    error: BaseException, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published(tokenizer, tmp_path / "model", "old")

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    model = build()
    expected = swaa.UserError if isinstance(error, OSError) else KeyboardInterrupt
    message = "cannot write the checkpoint .*model: No space left on device. Make room" if str(error) else "^$"
    with pytest.raises(expected, match=message):
        publish(model, tokenizer, folder, policy=POLICY, card="new", overwrite=True)
    assert (folder / "README.md").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert swaa.saved_policy(model.config) is None


def test_a_folder_that_came_meanwhile_is_kept(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    merged = module.merged

    def slow(model: nn.Module) -> PreTrainedModel:
        published(tokenizer, folder, "another's") if not folder.exists() else None
        return merged(model)

    first = iter([slow])
    monkeypatch.setattr(module, "merged", lambda model: next(first, merged)(model))
    with pytest.raises(swaa.UserError, match="the folder is not empty"):
        published(tokenizer, folder)
    assert (folder / "README.md").read_text() == "another's"


def test_a_policy_that_the_model_cannot_have_leaves_no_folder(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(swaa.UserError, match="layer"):
        publish(build(), tokenizer, tmp_path / "model", policy=swaa.SlidingWindow(4).on_layers([7]), card="")
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_alone_loads_anywhere(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = published(tokenizer, tmp_path / "model")
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    assert text == "user: hi\n"


# --- the model card ---

NASTY = "a|b\\|c `x` *y* <think> _z_ r_proj\nnext & $1 #2 [l](u)"


def card(**changes: object) -> str:
    given: dict[str, object] = {
        "base": "smollm2-135m-instruct",
        "policy": POLICY,
        "recipe_facts": {"lora targets": ["q_proj", "k_proj"], "learning rate": 2e-4, "steps": 300, "seed": None},
        "results": [
            {"recipe": "full", "accuracy": 0.987654321},
            {"recipe": "sliding", "accuracy": 0.95, "note": "after"},
        ],
        "license": "Apache-2.0",
    }
    return model_card(**(given | changes))  # type: ignore[arg-type]


def front(text: str) -> dict[str, object]:
    opening, matter, _ = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(matter)


def tables(text: str) -> list[list[list[str]]]:
    """The card's tables as a Markdown parser reads them: the text of each cell, by row."""
    rows: list[list[list[str]]] = []
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text.split("---\n", 2)[2])
    for token in tokens:
        if token.type == "table_open":
            rows.append([])
        elif token.type == "tr_open":
            rows[-1].append([])
        elif token.type == "inline" and rows and token.level > 3:
            kinds = {child.type for child in token.children or []}
            assert kinds <= {"text", "text_special"}, kinds  # no markup
            rows[-1][-1].append("".join(child.content for child in token.children or []))
    return rows


def test_the_front_matter_is_what_model_hubs_read() -> None:
    matter = front(card())
    assert matter["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert matter["library_name"] == "transformers"
    assert matter["license"] == "apache-2.0"
    assert "swaa" in matter["tags"]  # type: ignore[operator]
    data = ModelCard(card()).data
    assert (data.base_model, data.license) == (matter["base_model"], "apache-2.0")


@pytest.mark.parametrize("base", ["lab/a: 'b' #1", "- x", "yes", "{a}", '"', "1.0", "a\\b", "---", "ünï"])
def test_any_name_survives_the_front_matter(base: str) -> None:
    assert front(card(base=base))["base_model"] == base
    assert front(card(license=base))["license"] == base.lower()


def test_the_card_says_how_to_load_it_and_what_others_do() -> None:
    text = card()
    assert f"```python\n{POLICY}\n```" in text
    assert "swaa.load(" in text
    assert "Other loaders run it with full attention" in text
    assert MARK in text
    assert swaa.parse_policy(text.split("```python\n")[1].split("\n```")[0]) == POLICY


def test_facts_and_results_are_tables() -> None:
    assert tables(card()) == [
        [
            ["Setting", "Value"],
            ["lora targets", "q_proj, k_proj"],
            ["learning rate", "0.0002"],
            ["steps", "300"],
            ["seed", "none"],
        ],
        [["recipe", "accuracy", "note"], ["full", "0.987654", ""], ["sliding", "0.95", "after"]],
    ]
    bare = card(recipe_facts={}, results=[])
    assert tables(bare) == []
    assert "##" in bare
    assert "Training" not in bare
    assert "Results" not in bare


def test_cells_show_what_they_were_given() -> None:
    shown = " ".join(NASTY.split())
    text = card(recipe_facts={NASTY: NASTY}, results=[{NASTY: {"a|b": [1, 2]}}])
    assert tables(text) == [[["Setting", "Value"], [shown, shown]], [[shown], [json.dumps({"a|b": [1, 2]})]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": " "}, "base: expected one line of text, got ' '. Give its name."),
        ({"license": "mit\nfree: yes"}, "license: expected one line of text"),
        ({"policy": "SlidingWindw(3)"}, "SlidingWindow"),
    ],
)
def test_a_bad_card(change: dict[str, object], message: str) -> None:
    with pytest.raises(swaa.UserError, match=message):
        card(**change)


# --- weights that are no numbers ---


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_published(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, with_adapter: bool, value: float
) -> None:
    model = adapted() if with_adapter else build()
    name, weight = next((name, weight) for name, weight in model.named_parameters() if "norm" in name)
    with torch.no_grad():
        weight[3] = value
    with pytest.raises(UserError, match=rf"cannot publish: the weight {name.removeprefix('base_model.model.')} is not"):
        publish(model, tokenizer, tmp_path / "out", policy=POLICY, card="")
    assert list(tmp_path.iterdir()) == []

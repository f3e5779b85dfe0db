"""delta-NLL and LongPPL against their definitions, in loops; the folder after every interruption."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf.reference import SIX, Composition, reference
from swaa import FullAttention, SinkTokens, SlidingWindow, apply_policy
from swaa.config.common import ModelConfig
from swaa.config.perplexity import Perplexity
from swaa.engine.perplexity import KeyTokens
from swaa.engine.perplexity_folder import PerplexityFolder, measure_perplexity
from swaa.engine.text_nll import token_nll
from swaa.errors import UserError
from swaa.recipe import Decoding, FineTuned, Recipe
from swaa.report.runs import Stretch

CLOSE = 2e-5
"""Nats between float32 on two paths."""

BOS = 2


class Beginning:
    """A tokenizer as Llama's: with a token of its own before every text."""

    bos_token_id = BOS

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> dict[str, list[int]]:
        ids = self._tokenizer(text, add_special_tokens=False, **options)["input_ids"]
        return {"input_ids": [BOS, *ids] if add_special_tokens else ids}


@pytest.fixture(scope="module")
def tiny() -> Any:
    from engine.conftest import make_model

    return make_model()


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    """600 letters, which the tokenizer takes for 600 tokens."""
    path = tmp_path / "text.txt"
    path.write_text(letters(600))
    return str(path)


def letters(size: int, seed: int = 5) -> str:
    return "".join(chr(97 + (seed * place * place + place // 7) % 26) for place in range(size))


def loop_nll(model: Any, ids: list[int]) -> list[float]:
    """The NLL of each token but the first, as the definition has it: one forward pass, sums over the vocabulary."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double().tolist()
    found = []
    for place in range(1, len(ids)):
        row = logits[place - 1]
        top = max(row)
        found.append(top + math.log(sum(math.exp(value - top) for value in row)) - row[ids[place]])
    return found


def loop_stretches(ids: list[int], lead: list[int], number: int, length: int) -> list[list[int]]:
    size = length - len(lead)
    return [
        lead + ids[start : start + size]
        for start in (index * (len(ids) - size) // max(1, number - 1) for index in range(number))
    ]


def recipes() -> list[Recipe]:
    return [
        Recipe("FA", FullAttention()),
        Recipe("swa", SlidingWindow(6)),
        Recipe("sink", SlidingWindow(6) | SinkTokens(2)),
    ]


def config_of(model: str = "tiny", **changes: Any) -> ModelConfig:
    return ModelConfig(name=model, device="cpu", **changes)


# ------------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("begins", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("composition", SIX, ids=str)
def test_a_line_is_what_loops_say(
    composition: Composition, begins: bool, tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path
) -> None:
    asked = Perplexity(2, 40, 12, text_file=text_file, key_gain=0.3, key_nll=7)
    cutter = Beginning(tokenizer) if begins else tokenizer
    recipe = Recipe(composition.name, composition.policy)
    folder = tmp_path / "run"
    lines = measure_perplexity(tiny, cutter, asked, [recipe], folder, config=config_of())
    stretches = json.loads((folder / "key_tokens.json").read_text())["stretches"]
    ids = tokenizer(Path(text_file).read_text())["input_ids"]
    wanted = loop_stretches(ids, [BOS] if begins else [], 2, 40)
    assert [stretch["ids"] for stretch in stretches] == wanted
    assert any(stretch["key_tokens"] for stretch in stretches), "the test must have key tokens"
    for number, (line, stretch) in enumerate(zip(lines, stretches, strict=True)):
        full = loop_nll(tiny, stretch["ids"])
        with reference(tiny, composition.meaning):
            nll = loop_nll(tiny, stretch["ids"])
        keys = stretch["key_tokens"]
        mean = sum(nll) / len(nll)
        assert (line.recipe, line.recipe_hash, line.stretch) == (composition.name, recipe.hash, number)
        assert (line.tokens, line.key_tokens) == (39, len(keys))
        assert line.nll == pytest.approx(mean, abs=CLOSE)
        assert line.delta_nll == pytest.approx(mean - sum(full) / len(full), abs=CLOSE)
        long = sum(nll[place - 1] for place in keys) / len(keys) if keys else None
        assert line.long_nll == (None if long is None else pytest.approx(long, abs=CLOSE))
        assert abs(line.delta_nll) > 1e-3, "the policy must change something"


def check_key_tokens(model: Any, tokenizer: Any, asked: Perplexity, text: str, lead: list[int], chunk_size: int) -> int:
    """Compares the key tokens of a text with those of the definition, token by token; the number of sure ones."""
    cutter = Beginning(tokenizer) if lead else tokenizer
    with pytest.MonkeyPatch.context() as patch:  # a text without a file of its own for each example
        patch.setattr("swaa.engine.perplexity.read_text", lambda file, field: text)
        found = KeyTokens.find(model, cutter, asked, chunk_size=chunk_size)
    cut = loop_stretches(tokenizer(text)["input_ids"], lead, asked.num_stretches, asked.length)
    assert [list(stretch.ids) for stretch in found.stretches] == cut
    number, short = 0, asked.short_length
    for stretch, ids in zip(found.stretches, cut, strict=True):
        long_nll = loop_nll(model, ids)
        assert stretch.full_nll == pytest.approx(sum(long_nll) / len(long_nll), abs=CLOSE)
        own = ids[len(lead) :]
        stride = max(1, short // 4)
        sure, possible = set(), set()
        for place in range(short, len(own)):
            begin = (place - short) // stride * stride
            short_nll = loop_nll(model, lead + own[begin : place + 1])[-1]
            long = long_nll[place + len(lead) - 1]
            if short_nll - long > asked.key_gain + CLOSE and long < asked.key_nll - CLOSE:
                sure.add(place + len(lead))
            if begin and short_nll - long > asked.key_gain - CLOSE and long < asked.key_nll + CLOSE:
                possible.add(place + len(lead))
        assert sure <= set(stretch.key_tokens) <= possible
        assert list(stretch.key_tokens) == sorted(set(stretch.key_tokens))
        number += len(sure)
    return number


@pytest.mark.parametrize("chunk_size", [5, 1_024])
@pytest.mark.parametrize("lead", [[], [BOS]], ids=["plain", "bos"])
def test_key_tokens_are_those_of_the_definition(lead: list[int], chunk_size: int, tiny: Any, tokenizer: Any) -> None:
    asked = Perplexity(2, 50, 9, key_gain=0.5, key_nll=6.5)
    assert check_key_tokens(tiny, tokenizer, asked, letters(120), lead, chunk_size) >= 5


@settings(max_examples=max(1, settings.default.max_examples // 150))
@given(data=st.data())
def test_key_tokens_are_those_of_the_definition_whatever_is_asked(
    data: st.DataObject, tiny: Any, tokenizer: Any
) -> None:
    short = data.draw(st.integers(1, 12), "short_length")
    length = data.draw(st.integers(short + max(1, short // 4) + 2, 30), "length")
    number = data.draw(st.integers(1, 2), "num_stretches")
    gain, most = data.draw(st.sampled_from([0.0, 0.5, 2.0])), data.draw(st.sampled_from([4.0, 7.0, 50.0]))
    lead = data.draw(st.sampled_from([[], [BOS]]), "lead")
    text = letters(number * length + data.draw(st.integers(0, 9)), data.draw(st.integers(1, 25)))
    asked = Perplexity(number, length, short, key_gain=gain, key_nll=most)
    check_key_tokens(tiny, tokenizer, asked, text, lead, data.draw(st.sampled_from([4, 1_024]), "chunk_size"))


@pytest.mark.parametrize("composition", SIX, ids=str)
def test_reading_in_chunks_changes_nothing(composition: Composition, tiny: Any) -> None:
    ids = torch.tensor([4 + (7 * place * place) % 250 for place in range(33)])
    with apply_policy(tiny, composition.policy):
        whole = token_nll(tiny, ids)
        assert whole.shape == (32,)
        for chunk_size in (1, 5, 8, 31, 32):  # 32 and 31: the last token alone needs no pass, or one for a single token
            assert torch.allclose(token_nll(tiny, ids, chunk_size=chunk_size), whole, rtol=0, atol=CLOSE)
        assert torch.equal(token_nll(tiny, ids, chunk_size=33), whole)


def test_logits_are_held_for_a_chunk_and_no_more(tiny: Any) -> None:
    seen: list[int] = []
    hook = tiny.lm_head.register_forward_hook(lambda module, args, logits: seen.append(logits.shape[1]))
    try:
        with apply_policy(tiny, FullAttention()):
            token_nll(tiny, torch.arange(4, 104), chunk_size=30)
    finally:
        hook.remove()
    assert seen == [30, 30, 30, 9]


@pytest.mark.parametrize("chunk_size", [None, 16])
def test_full_attention_has_a_delta_of_exactly_0(
    chunk_size: int | None, tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path
) -> None:
    asked = Perplexity(3, 60, 8, text_file=text_file)
    config = config_of(prefill_chunk_size=chunk_size)
    for folder in (tmp_path / "a", tmp_path / "a"):  # the second one goes on with the first one's key tokens
        lines = measure_perplexity(tiny, tokenizer, asked, recipes(), folder, config=config)
        (folder / "perplexity.jsonl").unlink()
        assert [line.delta_nll for line in lines if line.recipe == "FA"] == [0.0, 0.0, 0.0]
        assert all(line.delta_nll != 0 for line in lines if line.recipe != "FA")


def test_recipes_that_differ_where_nothing_acts_are_read_once(
    tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path
) -> None:
    """The decode phase, the prompting and the decoding do not act; weights do, and come from the whole policy."""
    same = [
        Recipe("swa", SlidingWindow(6)),
        Recipe("FA decode", SlidingWindow(6).in_phase("prefill")),
        Recipe("long", SlidingWindow(6), decoding=Decoding(max_new_tokens=99)),
    ]
    tuned = [
        Recipe("tuned", SlidingWindow(6), fine_tuning=FineTuned("a", "0")),
        Recipe("tuned, FA decode", SlidingWindow(6).in_phase("prefill"), fine_tuning=FineTuned("a", "0")),
        Recipe("tuned otherwise", SlidingWindow(6), fine_tuning=FineTuned("b", "1")),
    ]
    passes: list[int] = []
    asked = Perplexity(2, 60, 8, text_file=text_file)
    with PerplexityFolder(tmp_path / "run", asked, config_of()) as folder:
        folder.find_key_tokens(tiny, tokenizer)
        hook = tiny.lm_head.register_forward_hook(lambda *_: passes.append(1))
        try:
            for recipe in same:
                folder.measure(tiny, recipe)
            assert len(passes) == 2
            for recipe in tuned:
                folder.measure(tiny, recipe)
            assert len(passes) == 8
        finally:
            hook.remove()
        lines = folder.lines(same)
    figures = [(line.stretch, line.nll, line.delta_nll, line.long_nll) for line in lines]
    assert figures[:2] == figures[2:4] == figures[4:]
    assert [line.recipe for line in lines] == ["swa", "swa", "FA decode", "FA decode", "long", "long"]


# ------------------------------------------------------------------------------------------------------- the folder


def measured(folder: Path, tiny: Any, tokenizer: Any, text_file: str, **options: Any) -> list[Stretch]:
    asked = Perplexity(2, 40, 8, text_file=text_file, key_gain=0.5, key_nll=7)
    return measure_perplexity(tiny, tokenizer, asked, recipes(), folder, config=config_of(), **options)


def test_a_killed_process_is_gone_on_with(tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    pid = os.fork()  # a process of its own that has imported all
    if not pid:
        try:
            torch.set_num_threads(1)  # the threads of a parent are not in its fork
            seen: list[Stretch] = []

            def die(line: Stretch) -> None:
                seen.append(line)
                if len(seen) == 3:
                    os.kill(os.getpid(), signal.SIGKILL)

            measured(cut, tiny, tokenizer, text_file, on_line=die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    kept = (cut / "perplexity.jsonl").read_bytes()
    assert kept.count(b"\n") == 3
    keys = (cut / "key_tokens.json").read_bytes()
    told: list[Stretch] = []
    lines = measured(cut, tiny, tokenizer, text_file, on_line=told.append)
    assert len(told) == 3
    assert lines[3:] == told
    assert (cut / "perplexity.jsonl").read_bytes().startswith(kept)
    assert (cut / "key_tokens.json").read_bytes() == keys
    whole = measured(tmp_path / "whole", tiny, tokenizer, text_file)
    assert [(line.recipe, line.stretch) for line in lines] == [(line.recipe, line.stretch) for line in whole]
    assert [line.nll for line in lines] == pytest.approx([line.nll for line in whole], abs=CLOSE)


def test_a_file_torn_anywhere_ends_as_the_same_bytes(tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lines = measured(folder, tiny, tokenizer, text_file)
    path = folder / "perplexity.jsonl"
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for size in sorted({0, 1, *(end + shift for end in ends for shift in (-1, 0, 1))} - {len(whole) + 1}):
        path.write_bytes(whole[:size])
        told: list[Stretch] = []
        assert measured(folder, tiny, tokenizer, text_file, on_line=told.append) == lines
        assert len(told) == len(lines) - sum(end <= size for end in ends)
        assert path.read_bytes() == whole


def test_stored_key_tokens_are_the_ones_that_count(tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path) -> None:
    """Whatever the model at hand would find: a fine-tuned one is measured on the unmodified one's."""
    folder = tmp_path / "run"
    first = measured(folder, tiny, tokenizer, text_file)
    path = folder / "key_tokens.json"
    content = json.loads(path.read_text())
    content["stretches"][0]["key_tokens"] = [39]
    path.write_text(json.dumps(content))
    (folder / "perplexity.jsonl").unlink()
    ids = content["stretches"][0]["ids"]
    lines = measured(folder, tiny, tokenizer, text_file)
    assert lines[0].key_tokens == 1 != first[0].key_tokens
    assert lines[0].long_nll == pytest.approx(loop_nll(tiny, ids)[38], abs=CLOSE)


def test_missing_stretches_are_known_without_a_model(tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path) -> None:
    asked, folder = Perplexity(2, 40, 8, text_file=text_file, key_gain=0.5, key_nll=7), tmp_path / "run"
    with PerplexityFolder(folder, asked, config_of()) as empty:
        assert empty.missing(recipes()[0]) == [0, 1]
        assert empty.lines(recipes()) == []
    measured(folder, tiny, tokenizer, text_file)
    with PerplexityFolder(folder, asked, config_of()) as full:
        assert full.missing(recipes()[1]) == []
        assert full.missing(Recipe("other", SlidingWindow(7))) == [0, 1]
        assert {line.recipe for line in full.lines([Recipe("renamed", SlidingWindow(6))])} == {"renamed"}


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"length": 50}, {}, "length: 40 there, 50 now"),
        ({"key_gain": 1}, {}, "key_gain: 0.5 there, 1.0 now"),
        ({}, {"dtype": "bfloat16"}, "dtype: 'float32' there, 'bfloat16' now"),
        ({}, {"model": "other"}, "model: 'tiny' there, 'other' now"),
        ({"text_file": None}, {}, r"text_sha256: '\w{64}' there, '\w{64}' now"),
    ],
)
def test_figures_of_something_else_are_refused(
    changes: dict[str, Any],
    config: dict[str, Any],
    message: str,
    tiny: Any,
    tokenizer: Any,
    text_file: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    measured(folder, tiny, tokenizer, text_file)
    values = {"text_file": text_file, "key_gain": 0.5, "key_nll": 7, "length": 40, **changes}
    asked = Perplexity(num_stretches=2, short_length=8, **values)
    before = {path.name: path.read_bytes() for path in folder.glob("*.json*")}
    with pytest.raises(UserError, match=f"holds perplexities of something else:\n  {message}") as caught:
        PerplexityFolder(folder, asked, config_of(**config)).__enter__()
    assert "or delete these results with --fresh." in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.glob("*.json*")} == before
    with PerplexityFolder(folder, asked, config_of(**config), fresh=True) as cleared:
        assert cleared.lines(recipes()) == []
        assert not (folder / "key_tokens.json").exists()


def test_the_same_text_elsewhere_is_the_same(tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lines = measured(folder, tiny, tokenizer, text_file)
    moved = Path(text_file).rename(tmp_path / "moved.txt")
    told: list[Stretch] = []
    assert measured(folder, tiny, tokenizer, str(moved), on_line=told.append) == lines
    assert told == []


def test_pythons_own_text_is_known_by_its_digest_and_the_version_explains(
    tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    asked, folder = Perplexity(1, 40, 8), tmp_path / "run"
    measure_perplexity(tiny, tokenizer, asked, recipes()[:1], folder, config=config_of())
    path = folder / "key_tokens.json"
    content = json.loads(path.read_text())
    content["asked"]["python"] = "3.10.1"
    path.write_text(json.dumps(content))
    measure_perplexity(tiny, tokenizer, asked, recipes()[:1], folder, config=config_of())  # the text is the same
    content["asked"]["text_sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="text_sha256: '0{64}' there, .*\n  python: '3.10.1' there, '3") as caught:
        PerplexityFolder(folder, asked, config_of()).__enter__()
    assert "Choose another folder" in str(caught.value)


def test_key_tokens_without_a_line_give_way(tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with PerplexityFolder(folder, Perplexity(1, 40, 8, text_file=text_file), config_of()) as started:
        started.find_key_tokens(tiny, tokenizer)
    with PerplexityFolder(folder, Perplexity(1, 50, 8, text_file=text_file), config_of()) as changed:
        assert len(changed.find_key_tokens(tiny, tokenizer).stretches[0].ids) == 50


def test_it_lies_within_the_folder_of_a_run(tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path) -> None:
    """Its lock is its own, and held."""
    asked = Perplexity(1, 40, 8, text_file=text_file)
    with (
        PerplexityFolder(tmp_path, asked, config_of()),
        pytest.raises(UserError, match="another process is running in"),
    ):
        PerplexityFolder(tmp_path, asked, config_of()).__enter__()
    assert not (tmp_path / ".lock").exists()


# --------------------------------------------------------------------------------------------------------- bad input


def test_no_key_token_is_said_and_divides_nothing(
    tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Perplexity(2, 40, 8, text_file=text_file, key_gain=99)
    with caplog.at_level(logging.WARNING):
        lines = measure_perplexity(tiny, tokenizer, asked, recipes(), tmp_path / "run", config=config_of())
    assert "perplexity: no token of 2 stretches gains more than key_gain=99 nats" in caplog.text
    assert "so there is no LongPPL; delta-NLL is measured" in caplog.text
    assert {(line.long_nll, line.key_tokens) for line in lines} == {(None, 0)}
    assert all(math.isfinite(line.nll) for line in lines)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            Perplexity(16, 40, 8),
            "perplexity.text_file: the text has 600 tokens, room for 15 stretches of 40 side by side, and 16 are "
            "wanted. Use a longer text, or lower num_stretches or length.",
        ),
        (Perplexity(1, 601, 8), "the text has 600 tokens, room for 0 stretches of 601 side by side, and 1 are wanted"),
        (
            Perplexity(1, 2049, 8),
            "perplexity.length: a stretch of 2049 tokens does not fit into the model's context of",
        ),
    ],
)
def test_a_text_that_is_too_short_is_refused(
    asked: Perplexity, message: str, tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path
) -> None:
    asked = Perplexity.from_dict({**asked.to_dict(), "text_file": text_file})
    with pytest.raises(UserError, match=message):
        measure_perplexity(tiny, tokenizer, asked, recipes(), tmp_path / "run", config=config_of())
    assert not (tmp_path / "run" / "key_tokens.json").exists()


def test_what_cannot_be_read_is_named(tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path) -> None:
    gone = Perplexity(1, 40, 8, text_file=str(tmp_path / "gone.txt"))
    with pytest.raises(UserError, match="perplexity.text_file: .*gone.txt: cannot be read as UTF-8 text"):
        measure_perplexity(tiny, tokenizer, gone, recipes(), tmp_path / "new", config=config_of())
    folder = tmp_path / "run"
    measured(folder, tiny, tokenizer, text_file)
    path = folder / "perplexity.jsonl"
    whole = path.read_text()
    path.write_text("nonsense\n" + whole)
    with pytest.raises(UserError, match="perplexity.jsonl:1: "):
        measured(folder, tiny, tokenizer, text_file)
    path.write_text(whole)
    for content in ("nonsense", "{}", '{"stretches": [{}], "asked": {}}', "[]"):
        (folder / "key_tokens.json").write_text(content)
        with pytest.raises(UserError, match="key_tokens.json: cannot be read as key tokens .* --fresh"):
            measured(folder, tiny, tokenizer, text_file)
    (folder / "key_tokens.json").unlink()
    with pytest.raises(UserError, match="has perplexity.jsonl, and no key_tokens.json to say of what"):
        measured(folder, tiny, tokenizer, text_file)


def test_a_policy_that_does_not_fit_names_its_recipe(tiny: Any, tokenizer: Any, text_file: str, tmp_path: Path) -> None:
    asked = Perplexity(1, 40, 8, text_file=text_file)
    wrong = [Recipe("deep", SlidingWindow(4).on_layers([9]))]
    with pytest.raises(UserError, match="recipe 'deep': .*9"):
        measure_perplexity(tiny, tokenizer, asked, wrong, tmp_path / "run", config=config_of())
    assert getattr(tiny.config, "_attn_implementation", "") != "swaa", "the model is as it was"

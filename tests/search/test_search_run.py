"""``swaa search`` on a tiny model: what it leaves, how it goes on, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from engine.conftest import make_tokenizer
from swaa.cli import main
from swaa.config import load_experiment, load_search
from swaa.engine import Interrupted, run_experiment
from swaa.hf import apply_policy
from swaa.hf.loading import load
from swaa.policies import parse_policy
from swaa.search.folder import Choice, SearchFolder
from swaa.search.run import run_search


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(folder: Path) -> list[dict[str, str]]:
    """The lines of ``front.csv``, without what is measured in time."""
    rows = list(csv.DictReader((folder / "front.csv").open()))
    timed = ("measured_ratio", "bench_time_ratio", "bench_time_low", "bench_time_high")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def test_a_search_leaves_choices_fronts_and_a_card(done: Path) -> None:
    choices = lines(done / "choices.jsonl")
    asked = {(choice["scorer"], choice["count"]) for choice in choices}
    assert asked == {
        (scorer, count) for scorer in ("add_one(metric=nll)", "drop_one(metric=kl)") for count in (0, 1, 2)
    }
    assert all(len(set(choice["chosen"])) == choice["count"] for choice in choices)
    rows = {row["recipe"]: row for row in table(done)}
    assert next(iter(rows)) == "full attention"
    assert rows["full attention"]["within_budget"] == "False", "it keeps all keys"
    assert {row["role"] for row in rows.values()} >= {"full attention", "chosen", "random set"}
    assert any("pattern[::2]" in row["chosen_by"] for row in rows.values())
    assert all(row["n"] == "3" for row in rows.values())
    on_fronts = [row for row in rows.values() if row["fronts"]]
    assert on_fronts
    assert all((done / row["file"]).is_file() for row in on_fronts)
    card = (done / "card.md").read_text()
    assert all(row["recipe"] in card for row in rows.values())
    assert "## Winners\n\n- fastest with at least 90% of full attention's accuracy: **" in card
    assert load_search(done / "search.yaml").space.counts == (0, 1, 2, 4)


def test_calibration_nll_is_that_of_the_policy_itself(file: Path, done: Path) -> None:
    """An oracle: each sample alone, prompt then answer token by token, under the policy of the recipe."""
    from swaa.engine.prompting import count_tokens, prepare

    search = load_search(file)
    model, tokenizer = load(search.model.name)
    asked = search.calibration
    options = {"length": asked.length, "num_examples": asked.num_examples, "seed": asked.seed}
    examples = asked.tasks[0].examples(**options, count_tokens=lambda *text: count_tokens(tokenizer, *text))
    prompts = [prepare(tokenizer, example) for example in examples]
    result = json.loads((done / "search.json").read_text())
    row = next(row for row in result["outcome"]["tested"] if row["role"] == "chosen" and len(row["chosen"]) == 1)
    losses = []
    with torch.no_grad(), apply_policy(model, parse_policy(row["policy"]), kernel="dense"):
        for prompt in prompts:
            own, ids = [], list(prompt.ids)
            for token in prompt.answer_ids:
                logits = model(input_ids=torch.tensor([ids]), prompt_lengths=torch.tensor([len(prompt.ids)])).logits
                own.append(-float(logits[0, -1].double().log_softmax(-1)[token]))
                ids.append(token)
            losses.append(sum(own) / len(own))
    assert row["calibration_nll"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_a_search_that_has_ended_measures_nothing_again(file: Path, done: Path) -> None:
    names = ("choices.jsonl", "scores.jsonl", "validation/records.jsonl", "test/records.jsonl", "bench/runs.jsonl")
    before = {name: (done / name).read_bytes() for name in names}
    rows = table(done)
    run_search(load_search(file, output=done))
    assert {name: (done / name).read_bytes() for name in names} == before
    assert table(done) == rows


def test_an_interrupted_search_goes_on_to_the_same_result(
    file: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = load_search(file, output=file.parent / "cut")
    choices = search.output / "choices.jsonl"
    add = SearchFolder.add

    def interrupted(folder: SearchFolder, choice: Choice) -> None:
        add(folder, choice)
        if len(lines(choices)) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SearchFolder, "add", interrupted)
        with pytest.raises(Interrupted, match="Interrupted; what was measured is kept in"):
            run_search(search)
    assert not (search.output / "card.md").exists()
    kept = choices.read_text()
    choices.write_text(f"{kept}{{'torn")
    run_search(search)
    assert choices.read_text().startswith(kept)
    assert lines(choices) == lines(done / "choices.jsonl")
    assert table(search.output) == table(done)


def test_fresh_begins_anew_and_keeps_what_is_not_its_own(file: Path, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, mine := tmp_path / "mine")
    shutil.copytree(done, other := tmp_path / "other")
    (mine / "notes.txt").write_text("my own")
    (mine / "mine").mkdir()
    (mine / "mine" / "search.json").write_text("{}")
    (mine / "card.md").write_text("old")
    (mine / "front.png").write_text("old")
    for name in ("validation", "test", "bench", "recipes"):
        (mine / name / "stale").write_text("old")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    overrides = ["calibration.num_examples=1", "scorers=[add_one]", "controls.random=0", "measure.rounds=1"]
    told = ["search", str(file), "calibration.seed=1001", *overrides, "--output", str(mine)]
    assert main(told) == 2, "the results that are there are of another search"
    assert (mine / "card.md").read_text() == "old"
    assert main([*told, "--fresh"]) == 0
    assert load_search(mine / "search.yaml").calibration.seed == 1001
    assert {choice["scorer"] for choice in lines(mine / "choices.jsonl")} == {"add_one(metric=nll)"}
    anew = [run["repeat"] for run in lines(mine / "bench" / "runs.jsonl") if run["kind"] == "run"]
    assert set(anew) == {0}
    assert (mine / "card.md").read_text().startswith("# Recipe search")
    assert (mine / "front.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(mine.rglob("stale"))
    assert (mine / "notes.txt").read_text() == "my own"
    assert (mine / "mine" / "search.json").read_text() == "{}"
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_fresh_deletes_what_a_search_writes_before_anything_is_measured(file: Path, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, mine := tmp_path / "mine")
    (mine / "notes.txt").write_text("my own")
    with SearchFolder(load_search(file, output=mine), fresh=True):
        assert {path.name for path in mine.iterdir()} - {".lock"} == {"search.yaml", "notes.txt"}


def test_without_matplotlib_the_card_shows_the_svg(
    file: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"front.svg", "front.png"} <= {path.name for path in done.iterdir()}
    shutil.copytree(done, mine := tmp_path / "mine")
    for name in ("front.svg", "front.png"):
        (mine / name).unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run_search(load_search(file, output=mine))
    assert not (mine / "front.png").exists()
    assert "![accuracy against cost](front.svg)" in (mine / "card.md").read_text()
    root = ElementTree.parse(mine / "front.svg").getroot()
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 3 * len(table(mine))
    assert any(text.startswith("none w16-s4-both, chosen: ") for text in titles)


def test_a_recipe_of_the_front_runs_as_it_is(done: Path, tmp_path: Path) -> None:
    rows = [row for row in table(done) if row["role"] == "chosen" and row["file"]]
    experiment = load_experiment(done / rows[0]["file"], ["num_examples=1"], output=tmp_path)
    assert [recipe.name for recipe in experiment.recipes] == ["full attention", rows[0]["recipe"]]
    assert load_experiment(done / rows[0]["file"]).output == Path("runs") / Path(rows[0]["file"]).stem
    assert [row.n for row in run_experiment(experiment)] == [1, 1]


def test_more_may_be_asked_and_another_search_may_not(
    file: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done, mine := tmp_path / "mine")
    folder = ["--output", str(mine)]
    assert main(["search", str(file), "calibration.num_examples=3", "test.seed=8", *folder]) == 2
    told = capsys.readouterr().err
    assert "holds results of a different search:" in told
    assert "calibration.num_examples: 2 there, 3 now" in told
    assert "test.seed: 7 there, 8 now" in told
    fewer = ["budget.max_full_layers=0", "scorers=[add_one]", "controls.random=0", "controls.patterns=[]"]
    assert main(["search", str(file), *fewer, *folder]) == 0
    told = capsys.readouterr().out
    assert "most accurate within the budget: none w16-s4-both, accuracy" in told
    assert f"Card, front and recipes: {mine}" in told
    assert [row["recipe"] for row in table(mine)] == ["full attention", "none w16-s4-both"]


def test_a_control_that_was_chosen_too_is_one_recipe(file: Path, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, mine := tmp_path / "mine")
    layer = next(row["units"] for row in table(done) if row["role"] == "chosen" and row["full_layers"] == "1")
    pattern = f"{layer}:{int(layer) + 1}"
    run_search(load_search(file, ["controls.random=0", f"controls.patterns=['{pattern}']"], output=mine))
    (row,) = [row for row in table(mine) if row["units"] == layer]
    assert row["role"] == "chosen"
    assert row["chosen_by"].endswith(f"pattern[{pattern}]")
    assert f"pattern[{pattern}] 1" not in (mine / "test" / "table.md").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scorers=[ad_one]", "scorers[0]: unknown scorer 'ad_one'. Did you mean 'add_one'?"),
        ("precision=0.1", "test.num_examples: 3 samples know an accuracy to +-"),
        ("space.counts=[9]", "space.counts[0]: expected at most the model's 4 layers, got 9"),
        ("space.counts=[4]", "space.counts: all 4 layers are full attention itself. Add a smaller one, such as 0."),
        ("controls.patterns=['5:6']", "controls.patterns[0]: layer 5 is out of range: this model has 4 layers"),
        (
            "budget.max_kv_share=0.01",
            "budget: nothing in the space meets max_kv_share: 0.01. The nearest is SlidingWindow(16) | SinkTokens(4) "
            "with 0 full layers: kv_share 0.048. Raise max_kv_share to 0.048, or add smaller windows or counts",
        ),
        ("test.lengths=[2047]", "lengths: 2047 prompt tokens and 2 new ones are 2049 tokens"),
        ("request.machine=none.json", "machine: none.json holds no benchmark's result"),
    ],
)
def test_what_cannot_be_searched(
    override: str, message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(file), override, "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.rpartition("swaa: error: ")[2]
    assert told.removeprefix(f"{file}: ").startswith(message)
    assert told.count("\n") == 1


def test_a_calibration_task_without_answers(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "What is it?"}\n')
    override = f"calibration.tasks=[{{name: file, path: {data}}}]"
    assert main(["search", str(file), override, "--output", str(tmp_path / "out")]) == 2
    assert "mine.jsonl:1: answer: this field is missing." in capsys.readouterr().err


def test_a_model_whose_layers_cannot_be_switched(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=260, hidden_size=8, n_layer=4, n_head=1)).save_pretrained(
        tmp_path / "bloom"
    )
    make_tokenizer().save_pretrained(tmp_path / "bloom")
    assert main(["search", str(file), f"model.name={tmp_path / 'bloom'}", "--output", str(tmp_path / "out")]) == 2
    assert "model type 'bloom'" in capsys.readouterr().err


def test_a_model_without_attention(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    folder = tmp_path / "mamba"
    MambaForCausalLM(MambaConfig(vocab_size=260, hidden_size=8, state_size=2, num_hidden_layers=2)).save_pretrained(
        folder
    )
    make_tokenizer().save_pretrained(folder)
    assert main(["search", str(file), f"model.name={folder}", "--output", str(tmp_path / "out")]) == 2
    assert "swaa: error: MambaForCausalLM (model type 'mamba')" in capsys.readouterr().err


def test_samples_that_have_changed_are_another_search(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of one's own file are others than they were: what is on record of the former ones is no answer."""
    data, folder = tmp_path / "mine.jsonl", tmp_path / "out"
    command = ["search", str(file), "space.counts=[1]", "scorers=[add_one]", "measure=null", "controls.random=0"]
    command += [f"calibration.tasks=[{{name: file, path: {data}}}]", "controls.patterns=[]", "--output", str(folder)]

    def ask(question: str, *options: str) -> int:
        rows = [{"prompt": 9 * f"{question}{number}? ", "answer": str(number)} for number in range(3)]
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return main([*command, *options])

    assert ask("How much is ") == 0
    assert ask("How much is ") == 0
    before = (folder / "choices.jsonl").read_bytes()
    assert ask("Name what follows ") == 2
    assert "when add_one(metric=nll) chose 1 of the units over w16-s4-both, the samples" in capsys.readouterr().err
    assert (folder / "choices.jsonl").read_bytes() == before
    assert ask("Name what follows ", "--fresh") == 0
    assert lines(folder / "choices.jsonl")[0]["nll"] != json.loads(before)["nll"]


def test_choices_of_an_earlier_version_stand(file: Path, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, mine := tmp_path / "mine")
    old = [{key: value for key, value in one.items() if key != "subject"} for one in lines(mine / "choices.jsonl")]
    (mine / "choices.jsonl").write_text("".join(f"{json.dumps(choice)}\n" for choice in old))
    run_search(load_search(file, output=mine))
    assert lines(mine / "choices.jsonl") == old
    assert table(mine) == table(done)


def test_another_seed_of_the_controls_draws_others_in_the_same_folder(file: Path, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, mine := tmp_path / "mine")
    run_search(load_search(file, ["controls.seed=1"], output=mine))
    drawn = {row["recipe"]: row["n"] for row in table(mine) if row["role"] == "random set"}
    assert list(drawn) == ["random[0, seed 1] 1 w16-s4-both"]
    assert set(drawn.values()) == {"3"}

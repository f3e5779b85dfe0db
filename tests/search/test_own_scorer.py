"""The scorer of docs/recipe-search.md, in the very file that the page shows: against a loop, and in a search."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from engine.conftest import make_model, make_tokenizer
from hf.zoo import Architecture
from search.probe_oracle import BASE, items_of
from swaa.cli import main
from swaa.errors import UserError
from swaa.policies import load_plugin
from swaa.search.probe import Probe
from swaa.search.scorers import parse_scorer, registry

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "examples" / "block_influence.py"


def test_the_page_shows_this_file() -> None:
    blocks = re.findall(r"```python run\n(.*?)```", (ROOT / "docs/recipe-search.md").read_text(), re.DOTALL)
    assert FILE.read_text() in blocks


def test_it_is_what_it_says() -> None:
    """Item by item, without padding, from the hidden states that transformers itself hands out."""
    load_plugin(str(FILE))
    model = Architecture("llama", {"num_hidden_layers": 3}).build()
    items = items_of((9, 2), (7, 1), (5, 3))
    found = parse_scorer("block_influence").score(Probe(model, items, BASE, batch_size=2))
    expected = [0.0] * 3
    for item in items:
        ids = torch.tensor([[*item.ids, *item.answer_ids[:-1]]])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in range(2):  # of the last one transformers gives no state but the normalised one
            before, after = states[layer][0], states[layer + 1][0]
            for place in range(len(item.ids) - 1, ids.shape[1]):
                expected[layer] += 1 - float(cosine_similarity(before[place], after[place], dim=0))
    torch.testing.assert_close(torch.tensor(found[:2]), torch.tensor(expected[:2]), atol=1e-5, rtol=1e-5)
    assert found[2] > 0


def test_a_search_takes_it(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    file = tmp_path / "search.yaml"
    file.write_text(f"""
plugins: [{FILE}]
model: {{name: {tmp_path / "model"}, device: cpu}}
calibration: {{tasks: [{{name: needle_single}}], length: 400, num_examples: 2}}
space: {{windows: [16], counts: [2]}}
scorers: [block_influence]
halving: {{num_examples: 2}}
controls: {{random: 0}}
measure: null
test: {{tasks: [{{name: needle_single}}], lengths: [400], num_examples: 2, seed: 7}}
decoding: {{max_new_tokens: 2}}
""")
    assert main(["search", str(file), "--output", str(tmp_path / "out")]) == 0
    (choice,) = [json.loads(line) for line in (tmp_path / "out/choices.jsonl").read_text().splitlines()]
    assert (choice["scorer"], choice["count"]) == ("block_influence", 2)


OWN = """
from dataclasses import dataclass
from typing import ClassVar

from swaa.search.scorers import Scorer, register_scorer


@register_scorer
@dataclass(frozen=True)
class {name}(Scorer):
    name: ClassVar[str] = "{name}"

    def score(self, probe):
        return {scores}
"""


def own(folder: Path, name: str, scores: str) -> Path:
    """A file with a scorer of that name."""
    file = folder / f"{name}.py"
    file.write_text(OWN.format(name=name, scores=scores))
    return file


@pytest.mark.parametrize("scores", ["(1.0, 2.0)", "(1.0, float('nan'), 3.0)"])
def test_scores_that_rank_nothing_are_refused(scores: str, tmp_path: Path) -> None:
    name = f"Odd{len(scores)}"
    load_plugin(str(own(tmp_path, name, scores)))
    model = Architecture("llama", {"num_hidden_layers": 3}).build()
    probe = Probe(model, items_of((9, 2)), BASE)
    with pytest.raises(
        UserError, match=rf"{name}.score: expected 3 finite numbers, one for each of the model's layers, got \(1.0, "
    ):
        parse_scorer(name).choose(probe, 1)


def test_a_scorer_whose_code_has_changed_is_another_search(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each time from a folder of its own, and known to nobody before, as in a process of its own."""
    known, ended = dict(registry._scorers), []
    command = ["search", str(file), "space.counts=[1]", "scorers=[Changing]", "measure=null", "controls.random=0"]
    command += ["controls.patterns=[]", "--output", str(tmp_path / "out")]
    for scores in ("(9.0, 1.0, 1.0, 1.0)", "(9.0,  1.0, 1.0, 1.0)", "(1.0, 9.0, 1.0, 1.0)"):
        monkeypatch.setattr(registry, "_scorers", dict(known))
        (folder := tmp_path / str(len(ended))).mkdir()
        ended.append(main([*command, f"plugins=[{own(folder, 'Changing', scores)}]"]))
    told = capsys.readouterr().err
    assert ended == [0, 0, 2], told
    assert "when Changing chose 1 of the units over w16-s4-both" in told
    assert "the weights or the scorer's code were others. Choose another folder with --output" in told

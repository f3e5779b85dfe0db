"""The first stage of a search on tiny models: which model is loaded, under which kernel, in which precision."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from engine.conftest import make_model, make_tokenizer
from swaa.cli import main
from swaa.compiler import program
from swaa.compiler.plan import Job, KernelPlan, choose_kernel
from swaa.config import load_search
from swaa.hf import apply_policy
from swaa.hf.loading import load
from swaa.policies import LayerPolicy
from swaa.search.calibration import calibration_items
from swaa.search.choosing import Found, check_request, find, parse_scorers
from swaa.search.folder import SearchFolder
from swaa.search.gates import gate_gradients
from swaa.search.probe import Probe
from swaa.search.space import Base
from swaa.tasks import task_from_dict

SEARCH = """
model: {{name: {model}, device: cpu}}
calibration: {{tasks: [{{name: needle_single}}], length: 400, num_examples: 2}}
space: {{windows: [16], sinks: [4], phases: [both], counts: [1]}}
scorers: [add_one]
halving: {{num_examples: 2}}
controls: {{random: 0}}
test: {{tasks: [{{name: needle_single}}], lengths: [400], num_examples: 2, seed: 7}}
decoding: {{max_new_tokens: 2}}
"""


def saved(folder: Path, policy: str | None = None, scores: str | None = None) -> Path:
    """A search on a tiny model, saved with this policy on it."""
    model = make_model()
    if policy is not None:
        apply_policy(model, policy, scores)
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "tiny.yaml").write_text(SEARCH.format(model=folder / "model"))
    return folder / "tiny.yaml"


def first_stage(file: Path, *overrides: str) -> tuple[Found, str]:
    """What the first stage finds, and what it says."""
    search = load_search(file, list(overrides), output=file.parent / "out")
    told = io.StringIO()
    with SearchFolder(search, fresh=True) as folder:
        found = find(search, parse_scorers(search), folder, Console(file=told, width=200))
    return found, told.getvalue()


def test_a_checkpoints_own_policy_is_off(tmp_path: Path) -> None:
    for name in ("plain", "tuned", "scored"):
        (tmp_path / name).mkdir()
    plain, said = first_stage(saved(tmp_path / "plain"))
    assert "own policy" not in said
    tuned, said = first_stage(saved(tmp_path / "tuned", "SlidingWindow(3)"))
    assert "the checkpoint's own policy SlidingWindow(3) is left off: a search puts on its own" in said
    assert tuned.scored == plain.scored
    scores = "SinkLogits(learned=True) + SoftCap(2.0)"
    scored, said = first_stage(saved(tmp_path / "scored", "FullAttention()", scores))
    assert "own policy FullAttention() and its scores SoftCap(2.0) + SinkLogits(learned=True) is left off" in said
    assert scored.scored == plain.scored


def test_the_search_runs_on_the_kernel_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []

    def watched(layer: LayerPolicy, job: Job, asked: str = "auto") -> KernelPlan:
        requested.append(asked)
        return choose_kernel(layer, job, asked)

    monkeypatch.setattr(program, "choose_kernel", watched)
    first_stage(saved(tmp_path), "model.kernel=dense", "scorers=[add_one,gate_gradient]")
    assert set(requested) == {"dense"}


def test_a_search_for_heads_leaves_recipes_that_run(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    space = ["space.unit=heads", "space.counts=[3]", "scorers=[head_gate]"]
    assert main(["search", str(saved(tmp_path)), *space, "--output", str(folder)]) == 0
    rows = list(csv.DictReader((folder / "front.csv").open()))
    (row,) = [row for row in rows if row["role"] == "chosen"]
    model, tokenizer = load(tmp_path / "model")
    tasks = [task_from_dict({"name": "needle_single"})]
    items = calibration_items(tasks, tokenizer, length=400, num_examples=2, seed=1000)
    slopes = gate_gradients(Probe(model, items, Base(16, 4, "both").policy), at=0, by_head=True).mean(0)
    order = sorted((float(slopes[layer, head]), layer, head) for layer in range(4) for head in range(4))
    assert row["units"].split() == sorted(f"{layer}.{head}" for _, layer, head in order[:3])
    recipe = next(row["file"] for row in rows if row["file"])
    assert main(["run", str(folder / recipe), "num_examples=1", "--output", str(tmp_path / "run")]) == 0


def test_a_search_in_bfloat16_from_beginning_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: set[torch.dtype] = set()
    attend = program.AttentionProgram.attend

    def watched(self: Any, layer: LayerPolicy, query: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        kinds.add(query.dtype)
        return attend(self, layer, query, *args, **named)

    monkeypatch.setattr(program.AttentionProgram, "attend", watched)
    scorers = "scorers=[add_one,{name: drop_one, metric: kl},greedy,gate_gradient,lazy_ratio,fixed,random]"
    folder = tmp_path / "out"
    asked = ["model.dtype=bfloat16", "measure=null", scorers]  # a measurement is checked in float32 first
    assert main(["search", str(saved(tmp_path)), *asked, "--output", str(folder)]) == 0
    assert kinds == {torch.bfloat16}
    (rows,) = [list(csv.DictReader(file)) for file in [(folder / "front.csv").open()]]
    assert {row["role"] for row in rows} >= {"full attention", "chosen"}
    assert all(row["n"] == "2" for row in rows)


def test_a_request_that_would_not_fit_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, context = saved(tmp_path), make_model().config.max_position_embeddings
    check_request(load_search(file, [f"request.length={context - 2}"]), context)
    beyond = f"request.length={context - 1}"
    assert main(["search", str(file), beyond, "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert f"request.length: expected at most {context - 2}, as 2 new tokens follow" in told
    assert f"got {context - 1}. Lower it, or write measure: null" in told
    assert not (tmp_path / "out" / "choices.jsonl").exists()
    check_request(load_search(file, [beyond, "measure=null"]), context)

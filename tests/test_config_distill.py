from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from swaa.config import (
    Benchmark,
    Distillation,
    Experiment,
    ModelConfig,
    load_benchmark,
    load_distillation,
    load_experiment,
    load_file,
)
from swaa.errors import UserError
from swaa.policies import FullAttention, SlidingWindow
from swaa.recipe import Decoding, Recipe
from swaa.tasks import get_task

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
NEEDLE = "tasks: [{name: needle_multikey, num_keys: 3}]\n"
GOOD = f"""
vars: {{window: 64}}
model: {{dtype: bfloat16}}
policy: "SlidingWindow(${{vars.window}})"
{NEEDLE}lengths: [500, 900]
num_examples: 9
seed: 7
samples_per_prompt: 5
keep: all
keep_per_prompt: 3
formats: [jsonl, parquet]
decoding: {{max_new_tokens: 9}}
"""
EXPERIMENT = f"recipes: [{{name: FA, policy: FullAttention()}}]\n{NEEDLE}lengths: [500]\n"
BENCH = "recipes: [{name: FA, policy: FullAttention()}]\nlengths: [500]\nrepeats: 2\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    return path


def test_a_file_becomes_a_distillation(file: Path) -> None:
    distillation = load_distillation(file)
    assert distillation == Distillation(
        tasks=(get_task("needle_multikey")(num_keys=3),),  # type: ignore[call-arg]
        lengths=(500, 900),
        output=Path("runs/mine"),
        model=ModelConfig(dtype="bfloat16"),
        recipe=Recipe("teacher", SlidingWindow(64), decoding=Decoding(max_new_tokens=9, temperature=1.0)),
        num_examples=9,
        seed=7,
        samples_per_prompt=5,
        keep="all",
        keep_per_prompt=3,
        formats=("jsonl", "parquet"),
    )
    assert distillation.num_samples == 18
    assert load_distillation(file, output="elsewhere").output == Path("elsewhere")


def test_by_default_full_attention_answers_four_times_at_temperature_one(file: Path) -> None:
    file.write_text(f"{NEEDLE}lengths: [500]")
    distillation = load_distillation(file)
    assert distillation.recipe.policy == FullAttention()
    assert distillation.recipe.decoding.temperature == 1
    assert distillation.samples_per_prompt == 4
    assert (distillation.keep, distillation.keep_per_prompt, distillation.formats) == ("correct", None, ("jsonl",))
    cold = load_distillation(file, ["decoding.temperature=0", "samples_per_prompt=1"])
    assert cold.recipe.decoding == Decoding()


@pytest.mark.parametrize("overrides", [[], ["keep_per_prompt=null", "policy=FullAttention()"]])
def test_a_distillation_comes_back_from_its_yaml(file: Path, overrides: list[str]) -> None:
    distillation = load_distillation(file, overrides)
    file.write_text(distillation.to_yaml())
    assert load_distillation(file) == distillation
    assert load_file(file) == distillation


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("samples_per_promt=2", "unknown field 'samples_per_promt'. Did you mean 'samples_per_prompt'?"),
        ("recipe={policy: FullAttention()}", "unknown field 'recipe'."),
        ("samples_per_prompt=0", "samples_per_prompt: expected an int >= 1, got 0"),
        (
            "decoding.temperature=0",
            "samples_per_prompt: expected 1 where decoding.temperature is 0, for greedy answers are all the same, "
            "got 5. Set it to 1, or the temperature above 0.",
        ),
        ("keep=wrong", "keep: unknown value 'wrong'. Use one of these. Known: all, correct."),
        ("keep_per_prompt=0", "keep_per_prompt: expected an int >= 1, got 0"),
        ("formats=[]", r"formats: expected a list of at least one format, got \[\]. Write formats: \[jsonl\] or"),
        ("formats=[jsonl, parqet]", r"formats\[1\]: unknown value 'parqet'. Did you mean 'parquet'?"),
        ("formats=[parquet]", r"formats: expected jsonl among them, got \['parquet'\]. Write formats: \[jsonl\] or"),
        ("formats=[jsonl, jsonl]", "formats: expected each format once, got 'jsonl'"),
        ("policy=SlidingWindow(0)", "mine.yaml: policy: SlidingWindow.window_size: expected an int >= 1"),
        ("policy=SlidingWindw(8)", "mine.yaml: policy: unknown policy 'SlidingWindw'. Did you mean 'SlidingWindow"),
        ("prompting=cot", "mine.yaml: prompting: unknown value 'cot'"),
        ("decoding.top_p=2", r"mine.yaml: decoding.top_p: expected a number in \(0, 1\], got 2"),
        ("decoding=[1]", r"decoding: expected a mapping of fields, got \[1\]"),
        ("decoding.max_tokens=2", "unknown field 'decoding.max_tokens'. Did you mean 'decoding.max_new_tokens'?"),
        ("model.dtype=float31", "model.dtype: unknown value 'float31'. Did you mean 'float32'?"),
        ("tasks=[]", "tasks: expected a list of at least one task"),
        ("tasks[0].num_kes=2", r"tasks\[0\].*num_kes'. Did you mean '.*num_keys'?"),
        ("lengths=[0]", r"lengths\[0\]: expected an int >= 1, got 0"),
        ("num_examples=0", "num_examples: expected an int >= 1, got 0"),
        ("seed=-1", "seed: expected an int >= 0, got -1"),
        ("batch_size=0", "batch_size: expected an int >= 1, got 0"),
        ("plugins=mine", r"plugins: expected a list of files or modules, got 'mine'"),
    ],
)
def test_mistakes_are_named_by_their_dotted_path(file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_distillation(file, [override])


def test_files_of_another_kind_are_told_apart(tmp_path: Path, file: Path) -> None:
    experiment, bench = tmp_path / "experiment.yaml", tmp_path / "bench.yaml"
    experiment.write_text(EXPERIMENT)
    bench.write_text(BENCH)
    assert isinstance(load_file(file), Distillation)
    assert isinstance(load_file(experiment), Experiment)
    assert isinstance(load_file(bench), Benchmark)
    told = {
        (load_experiment, file): "a distillation, not an experiment. Run it with: swaa distill .*mine.yaml",
        (load_benchmark, file): "a distillation, not a benchmark. Run it with: swaa distill .*mine.yaml",
        (load_distillation, experiment): "an experiment, not a distillation. Run it with: swaa run .*experiment.yaml",
        (load_distillation, bench): "a benchmark, not a distillation. Run it with: swaa bench .*bench.yaml",
    }
    for (load, path), message in told.items():
        with pytest.raises(UserError, match=f"this is {message}"):
            load(path)


def test_an_experiment_with_a_stray_field_is_still_an_experiment(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"{EXPERIMENT}keep: all\n")
    with pytest.raises(UserError, match="experiment.yaml: unknown field 'keep'"):
        load_file(path)


def test_a_distillation_cannot_be_changed_and_makes_its_lists_hashable(file: Path) -> None:
    distillation = load_distillation(file)
    assert hash(distillation) == hash(load_distillation(file))
    with pytest.raises(dataclasses.FrozenInstanceError):
        distillation.keep = "correct"  # type: ignore[misc]


def test_the_distillation_of_the_repository_keeps_clear_of_what_the_quickstart_asks() -> None:
    distillation = load_distillation(EXPERIMENTS / "distill-smollm2.yaml")
    quickstart = load_experiment(EXPERIMENTS / "quickstart.yaml")
    assert distillation.recipe.policy == FullAttention()
    assert abs(distillation.seed - quickstart.seed) >= 1000
    assert distillation.samples_per_prompt == 4
    assert all(870 <= length <= 900 for length in distillation.lengths)

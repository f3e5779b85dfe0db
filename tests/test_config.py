from __future__ import annotations

from pathlib import Path

import pytest

from swaa.config import (
    Baseline,
    Benchmark,
    BenchmarkModel,
    Experiment,
    ModelConfig,
    load_benchmark,
    load_experiment,
    load_file,
)
from swaa.errors import UserError
from swaa.policies import FullAttention, SinkTokens, SlidingWindow, bind
from swaa.recipe import Decoding, Recipe
from swaa.tasks import get_task

GOOD = """
vars: {window: 64}
recipes:
  - {name: FA, policy: FullAttention()}
  - name: best
    policy: {scope: "SlidingWindow(${vars.window}) | SinkTokens(10)", phase: prefill}
    decoding: {temperature: 0.5}
tasks: [{name: needle_multikey, num_keys: 3}]
lengths: [500, 900]
decoding: {max_new_tokens: 9}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    return path


def test_a_file_becomes_an_experiment(file: Path) -> None:
    policy = (SlidingWindow(64) | SinkTokens(10)).in_phase("prefill")
    assert load_experiment(file) == Experiment(
        model=ModelConfig(),
        recipes=(
            Recipe("FA", FullAttention(), decoding=Decoding(max_new_tokens=9)),
            Recipe("best", policy, decoding=Decoding(max_new_tokens=9, temperature=0.5)),
        ),
        tasks=(get_task("needle_multikey")(num_keys=3),),  # type: ignore[call-arg]
        lengths=(500, 900),
        output=Path("runs/mine"),
    )


def test_an_experiment_comes_back_from_its_yaml(file: Path) -> None:
    experiment = load_experiment(file)
    file.write_text(experiment.to_yaml())
    assert load_experiment(file) == experiment
    assert "SlidingWindow(64)" in experiment.to_yaml(), "policies are written as one reads them"


def test_overrides_reach_every_depth(file: Path) -> None:
    experiment = load_experiment(
        file,
        [
            "vars.window=32",
            "recipes[0].decoding.stop=['\\n']",
            "recipes.0.name=full",
            "recipes[0].policy=SlidingWindow(window_size=5) | SinkTokens(1)",
            "lengths=[100]",
            "model.name=./somewhere",
            "num_examples=4",
        ],
        output="elsewhere",
    )
    assert experiment.recipes[0].name == "full"
    assert experiment.recipes[0].policy == SlidingWindow(5) | SinkTokens(1)
    assert experiment.recipes[0].decoding.stop == ("\\n",)
    assert experiment.recipes[1].policy == (SlidingWindow(32) | SinkTokens(10)).in_phase("prefill")
    assert experiment.lengths == (100,)
    assert experiment.model.name == "./somewhere"
    assert experiment.num_examples == 4
    assert experiment.output == Path("elsewhere")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_exampels=4", "unknown field 'num_exampels'. Did you mean 'num_examples'?"),
        ("model.nmae=x", "unknown field 'model.nmae'. Did you mean 'model.name'?"),
        ("model.dtype=float31", "model.dtype: unknown value 'float31'. Did you mean 'float32'?"),
        ("model.device=gpu", "model.device: unknown value 'gpu'"),
        ("model=smollm2", "model: expected a mapping of fields, got 'smollm2'"),
        ("recipes[1].polcy=x", r"unknown field 'recipes\[1\].polcy'. Did you mean 'recipes\[1\].policy'?"),
        ("recipes[1].name=FA", "recipes: expected each name once, got 'FA'. Rename one of them."),
        (
            "recipes[1]={name: b, policy: FullAttention()}",
            "recipes: 'FA' and 'b' are the same recipe. Remove one.",
        ),
        (
            "recipes[0].policy=SlidingWindow(0)",
            r"recipes\[0\].policy: SlidingWindow.window_size: expected an int >= 1",
        ),
        (
            "recipes[0].policy=SlidingWindow(8).in_phase('prefil')",
            "phase: expected 'prefill' or 'decode', got 'prefil'",
        ),
        (
            "recipes[0].policy=SlidingWindw(8)",
            r"recipes\[0\].policy: unknown policy 'SlidingWindw'. Did you mean",
        ),
        ("recipes=[]", r"recipes: expected a list of at least one recipe, got \[\]. Add '- {name: FA"),
        ("recipes=null", "recipes: expected a list of at least one recipe"),
        ("recipes=5", "recipes: expected a list of at least one recipe, got 5. Add"),
        ("tasks=[]", "tasks: expected a list of at least one task"),
        (
            "tasks[0].name=needle_multykey",
            r"tasks\[0\]: unknown task 'needle_multykey'. Did you mean 'needle_multikey'?",
        ),
        ("tasks[0].num_kes=2", r"tasks\[0\].*num_kes'. Did you mean '.*num_keys'?"),
        ("tasks=[{name: needle_single}, {name: needle_single}]", "tasks: expected each task once"),
        ("lengths=[]", "lengths: expected a list of at least one prompt length"),
        ("lengths=[100, 100]", "lengths: expected each prompt length once, got 100. Remove the second one."),
        ("lengths=[0]", r"lengths\[0\]: expected an int >= 1, got 0"),
        (
            "lengths=900",
            "lengths: expected a list of at least one prompt length, got 900. Write lengths: .900.",
        ),
        ("num_examples=0", "num_examples: expected an int >= 1, got 0. Set it to 1 or more"),
        ("num_examples=many", "num_examples: expected an int >= 1, got 'many'"),
        ("num_examples=4.0", "num_examples: expected an int >= 1, got 4.0"),
        ("batch_size=0", "batch_size: expected an int >= 1, got 0"),
        ("scoring=[generat]", r"scoring\[0\]: unknown value 'generat'. Did you mean 'generate'?"),
        ("scoring=[]", "scoring: expected a list of at least one scoring"),
        ("decoding.max_new_tokens=0", "decoding.max_new_tokens: expected an int >= 1, got 0"),
        ("recipes[0].decoding.top_p=2", r"recipes\[0\].decoding.top_p: expected a number in \(0, 1\], got 2"),
        ("lengths=['${vars.nope}']", r"lengths\[0\]: Interpolation key 'vars.nope' not found. Define it"),
        ("recipes[7].name=x", r"override 'recipes\[7\].name=x': .*Lists are addressed by number"),
        ("recipes.best.name=x", "override 'recipes.best.name=x': .*Lists are addressed by number"),
        (
            "num_examples",
            "override: expected dotted.key=value, got 'num_examples'. For example num_examples=8.",
        ),
        ("lengths=[1, 2", r"override 'lengths=\[1, 2': did not find expected .* Write the value as in YAML"),
    ],
)
def test_mistakes_are_named_by_their_dotted_path(file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_experiment(file, [override])


def test_the_file_of_a_mistake_is_named(file: Path) -> None:
    file.write_text(GOOD + "num_exmples: 4\n")
    with pytest.raises(UserError, match=r"mine.yaml: unknown field 'num_exmples'. Did you mean 'num_examples'"):
        load_experiment(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lengths: [1, 2\nseed: 3\n",
            r"mine.yaml:2:\d+: YAML syntax error: did not find expected .* Mend this line.",
        ),
        ("seed: 1\nlengths: a: b\n", r"mine.yaml:2:\d+: YAML syntax error: mapping values are not allowed"),
        ("seed: 1\n\nseed: 2\n", r"mine.yaml:3:1: YAML syntax error: found duplicate key seed"),
        ("- 1\n- 2\n", "expected a mapping of fields"),
        ("just words\n", "mine.yaml: unknown field 'just words'"),
        ("", "mine.yaml: recipes: this field is missing. Add it"),
        ("x: ${\n", "mine.yaml: cannot be read as YAML: no viable alternative"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused_with_its_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_experiment(file)


def test_bytes_that_are_no_text_are_refused(file: Path) -> None:
    file.write_bytes(b"seed: \xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read as YAML: .* Save it as UTF-8 text."):
        load_experiment(file)


def test_a_missing_file_names_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no file 'quick.yaml'. Check the path."):
        load_experiment("quick.yaml")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.yaml").write_text("")
    with pytest.raises(UserError, match="no file 'quick.yaml'. There are: experiments/quickstart.yaml."):
        load_experiment("quick.yaml")


EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_of_the_repository_is_valid(path: Path) -> None:
    loaded = load_file(path)
    assert isinstance(loaded, Benchmark) == path.name.startswith("bench-")
    loaded.output.relative_to("runs")


BENCH = """
vars: {window: 64}
recipes: [{name: sliding, policy: "SlidingWindow(${vars.window})"}]
lengths: [512]
baselines: [full, {name: native_window, window: "${vars.window}"}]
model: {config: {model_type: llama, hidden_size: 64}}
"""


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH)
    return path


def test_a_file_becomes_a_benchmark(bench: Path) -> None:
    assert load_benchmark(bench, ["model.config.hidden_size=32", "repeats=2"]) == Benchmark(
        recipes=(Recipe("sliding", SlidingWindow(64)),),
        lengths=(512,),
        output=Path("runs/bench"),
        baselines=(Baseline("full"), Baseline("native_window", window=64)),
        model=BenchmarkModel(config={"model_type": "llama", "hidden_size": 32}),
        repeats=2,
    )
    assert load_benchmark(bench, output="elsewhere").output == Path("elsewhere")
    assert BenchmarkModel().label == "smollm2-135m-instruct"
    assert load_benchmark(bench).model.label == "random llama"


def test_a_benchmark_comes_back_from_its_yaml(bench: Path) -> None:
    overrides = ["baselines=[full, {name: kvpress, kept_keys: 9, num_sinks: 0}]", "kvpress_python=/x/python"]
    benchmark = load_benchmark(bench, overrides)
    bench.write_text(benchmark.to_yaml())
    assert load_benchmark(bench) == benchmark


def test_files_of_the_other_kind_are_told_apart(file: Path, bench: Path) -> None:
    assert isinstance(load_file(file), Experiment)
    assert isinstance(load_file(bench), Benchmark)
    with pytest.raises(UserError, match="this is a benchmark, not an experiment. Run it with: swaa bench .*bench.yaml"):
        load_experiment(bench)
    with pytest.raises(UserError, match="this is an experiment, not a benchmark. Run it with: swaa run .*mine.yaml"):
        load_benchmark(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("baselines=[ful]", r"baselines\[0\].name: unknown value 'ful'. Did you mean 'full'?"),
        ("baselines=[native_window]", r"baselines\[0\].window: expected an int >= 1, got None. Set it"),
        (
            "baselines=[{name: full, window: 4}]",
            r"baselines\[0\].window: expected nothing for 'full', got 4. Remove it.",
        ),
        (
            "baselines=[{name: kvpress, kept_keys: 4, num_sinks: 4}]",
            r"baselines\[0\].kept_keys: expected more than num_sinks \(4\), got 4. Keep more.",
        ),
        ("baselines[1].windw=4", r"unknown field 'baselines\[1\].windw'. Did you mean 'baselines\[1\].window'?"),
        ("baselines=[full, full]", "baselines: expected each name once, got 'full'. Rename the recipe."),
        ("recipes[0].name=full", "baselines: expected each name once, got 'full'. Rename the recipe."),
        ("recipes[0].decoding={}", r"unknown field 'recipes\[0\].decoding'. Did you mean 'recipes\[0\].policy'?"),
        ("recipes=[]", r"recipes: expected a list of at least one recipe, got \[\]. Add '- {name: sliding"),
        ("lengths=[]", r"lengths: expected a list of at least one prompt length, got \[\]. Write lengths: \[2048\]"),
        ("lengths=[0]", r"lengths\[0\]: expected an int >= 1, got 0"),
        ("repeats=0", "repeats: expected an int >= 1, got 0"),
        ("new_tokens=0", "new_tokens: expected an int >= 1, got 0"),
        ("prefill_chunk_size=0", "prefill_chunk_size: expected an int >= 1, 'auto' or null, got 0. Leave it out"),
        ("prefill_chunk_size=true", "prefill_chunk_size: expected an int >= 1, 'auto' or null, got True"),
        ("prefill_chunk_size=best", "prefill_chunk_size: expected an int >= 1, 'auto' or null, got 'best'"),
        ("check_length=-1", "check_length: expected an int >= 0, got -1"),
        ("kvpress_python=3", "kvpress_python: expected a non-empty string, got 3"),
        ("model.kernel=flux", "model.kernel: unknown value 'flux'. Did you mean 'flex'?"),
        ("model.name=smollm2", "model.name: expected nothing beside a config, got 'smollm2'. Remove it, or the config"),
        ("model.config={hidden_size: 3}", "model.config: expected a model_type, got .* Add model_type: llama"),
        ("repeets=2", "unknown field 'repeets'. Did you mean 'repeats'?"),
    ],
)
def test_mistakes_in_a_benchmark_are_named_by_their_dotted_path(bench: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_benchmark(bench, [override])


def test_the_benchmark_has_the_eight_recipes_of_the_paper() -> None:
    benchmark = load_benchmark(EXPERIMENTS / "bench-smollm2.yaml")
    seen = {}
    for recipe in benchmark.recipes:
        bound = bind(recipe.policy, num_layers=4, num_heads=9)
        seen[recipe.name] = [tuple(layer.describe(phase) for phase in ("prefill", "decode")) for layer in bound.layers]
    fa, swa = "FullAttention()", "SlidingWindow(256)"
    s10, s100 = (repr(SinkTokens(sinks) | SlidingWindow(256)) for sinks in (10, 100))
    assert seen == {
        "naive SWA": [(swa, swa)] * 4,
        "sink 10": [(s10, s10)] * 4,
        "sink 10 + FA decode": [(s10, fa)] * 4,
        "sink 100 + FA decode": [(s100, fa)] * 4,
        "sink 10 + 1/2 FA layers": [(s10, s10), (fa, fa)] * 2,
        "sink 10 + FA decode + 1/4 FA layers": [(s10, fa), (fa, fa), (s10, fa), (s10, fa)],
        "sink 10 + FA decode + 1/2 FA layers": [(s10, fa), (fa, fa)] * 2,
        "sink 100 + FA decode + 1/2 FA layers": [(s100, fa), (fa, fa)] * 2,
    }


def test_the_quickstart_has_the_nine_recipes_of_the_paper() -> None:
    """Which layers slide, and with what, layer by layer and phase by phase, as paper.md says it."""
    experiment = load_experiment(EXPERIMENTS / "quickstart.yaml")
    assert experiment.num_examples >= 24
    seen = {}
    for recipe in experiment.recipes:
        bound = bind(recipe.policy, num_layers=8, num_heads=9)
        seen[recipe.name] = [tuple(layer.describe(phase) for phase in ("prefill", "decode")) for layer in bound.layers]
    fa, swa = "FullAttention()", "SlidingWindow(128)"
    sink = repr(SinkTokens(10) | SlidingWindow(128))
    assert seen == {
        "FA": [(fa, fa)] * 8,
        "naive SWA": [(swa, swa)] * 8,
        "sink 10": [(sink, sink)] * 8,
        "FA decode": [(swa, fa)] * 8,
        "sink 10 + FA decode": [(sink, fa)] * 8,
        "1/2 FA layers": [(swa, swa), (fa, fa)] * 4,
        "sink 10 + 1/2 FA layers": [(sink, sink), (fa, fa)] * 4,
        "sink 10 + FA decode + 1/4 FA layers": [(sink, fa), (fa, fa), (sink, fa), (sink, fa)] * 2,
        "sink 10 + FA decode + 1/2 FA layers": [(sink, fa), (fa, fa)] * 4,
    }

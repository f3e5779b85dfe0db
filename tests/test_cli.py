from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import swaa
from swaa.cli import COMMANDS, main
from swaa.compiler.timing import CPU_BFLOAT16
from swaa.hf.weights import CATALOGUE, DEFAULT_MODEL, MANIFEST

GOOD = """
recipes: [{name: FA, policy: FullAttention()}]
tasks: [{name: needle_single}]
lengths: [500]
"""

BENCH = """
recipes: [{name: sliding, policy: SlidingWindow(8)}]
baselines: [full]
lengths: [16]
model:
  dtype: float32
  config:
    {model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 2, num_attention_heads: 2,
     num_key_value_heads: 1, vocab_size: 32}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    return path


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "swaa", *map(str, args)], capture_output=True, text=True, check=False)


def assert_one_message(captured: pytest.CaptureResult[str], message: str) -> str:
    """Nothing on standard output, and on standard error one message, last; loading bars may stand before it."""
    assert captured.out == ""
    before, _, told = captured.err.rpartition("swaa: error: ")
    assert "Traceback" not in before
    assert told.count("\n") == 1
    assert message in told
    return told


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from swaa.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'transformers', 'omegaconf', 'rich', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = [add.__name__.removeprefix("add_").replace("_", "-") for add in COMMANDS]
    assert {"run", "validate", "ls", "fetch"} <= set(names)
    assert all(name in done.stdout for name in names)


def test_validate_tells_what_would_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(file), "num_examples=7", "lengths=[500, 600]"]) == 0
    out = capsys.readouterr().out
    assert "is valid: 1 recipe x 1 task x 2 lengths x 7 examples = 14 samples on smollm2-135m-instruct" in out
    assert "FA: FullAttention()" in out
    assert main(["validate", str(file), "recipes[0].scores=SoftCap(30.0)"]) == 0
    assert "FA: FullAttention(), scores SoftCap(30.0)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("policies", ["SlidingWindow", "SinkTokens", "FullAttention"]),
        (
            "tasks",
            [
                "needle_single",
                "needle_multikey",
                "needle_multivalue",
                "needle_multiquery",
                "num_keys: 4",
                "depth: null",
            ],
        ),
        ("scorers", ["add_one", "gate_gradient", "head_gate", 'metric: "nll"', "last_queries: 64"]),
        ("models", ["smollm2-135m-instruct", "Apache-2.0"]),
    ],
)
def test_ls_lists_what_there_is(what: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in expected:
        assert any(name in line for line in lines)
    begun = [line for line in lines if not line.startswith(" ")]  # the others go on with it
    assert all(len(line.split()) > 2 for line in begun), "each says what it is"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["validate", "FILE", "num_examples=0"], "num_examples: expected an int >= 1, got 0"),
        (["validate", "FILE", "recipes=[]"], "recipes: expected a list of at least one recipe"),
        (["validate", "FILE", "tasks=[]"], "tasks: expected a list of at least one task"),
        (
            ["validate", "FILE", "num_exampels=2"],
            "unknown field 'num_exampels'. Did you mean 'num_examples'?",
        ),
        (["validate", "FILE", "recipes[0].policy=SlidingWindow(0)"], "window_size: expected an int >= 1"),
        (["validate", "FILE", "recipes[0].policy=SlidingWindow(-4)"], "window_size: expected an int >= 1"),
        (["validate", "FILE", "recipes[0].policy=SlidingWindow('8')"], "window_size: expected an int >= 1"),
        (["validate", "FILE", "recipes[0].policy=SlidingWindw(8)"], "Did you mean 'SlidingWindow'?"),
        (["validate", "FILE", "recipes[0].policy=SinkTokens(4).in_phase('prefil')"], "'prefill' or 'decode'"),
        (["validate", "nowhere.yaml"], "no file 'nowhere.yaml'"),
        (["run", "FILE", "model.name=./no/such/folder", "-o", "OUT"], "there is no such model folder"),
        (["run", "FILE", "-o", "OUT", "num_examples=none"], "num_examples: expected an int >= 1, got 'none'"),
        (["fetch", "smollm2-135m"], "unknown model 'smollm2-135m'. Did you mean 'smollm2-135m-instruct'?"),
        (["validate", "FILE", "output="], "output: expected a non-empty string, got None"),
        (["explain", "SlidingWindow(2.5)"], "SlidingWindow.window_size: expected an int >= 1 (tokens), got 2.5"),
        (["explain", "SlidingWindow(8).on_layers(30)"], "layer 30 is out of range: this model has 30 layers"),
        (["explain", "SlidingWindow(8).on_layers(-4)", "--layers", "3"], "layer -4 is out of range"),
        (["explain", "SlidingWindow(8)", "--layers", "0"], "--layers: expected an int >= 1, got 0"),
        (["explain", "SlidingWindow(8)", "--kv-heads", "0"], "--kv-heads: expected an int >= 1, got 0"),
        (["explain", "SlidingWindow(8)", "--seq-len", "0"], "--seq-len: expected an int >= 1, got 0"),
        (
            ["explain", "SlidingWindow(8)", "--kernel", "fast"],
            "kernel: expected 'auto' or 'flex' or 'blockwise' or 'dense'",
        ),
        (["explain", "SlidingWindow(8)", "--plugin", "nofile.py"], "plugin 'nofile.py': there is no such file"),
        (["explain", "SlidingWindow(8)", "--hidden-size", "0"], "--hidden-size: expected an int >= 1, got 0"),
        (
            ["explain", "SlidingWindow(8)", "--model", DEFAULT_MODEL, "--kv-heads", "3"],
            "--kv-heads: expected nothing beside --model, got 3. Give the one or the other.",
        ),
        (["explain", "SlidingWindow(8)", "--model", "smollm2"], "unknown model 'smollm2'. Did you mean 'smollm2-135m"),
        (["explain", "SlidingWindow(8)", "--machine", "no.json"], "machine: no.json holds no benchmark's result"),
        (["bench", "nowhere.yaml"], "no file 'nowhere.yaml'"),
        (["bench", "FILE"], "this is an experiment, not a benchmark. Run it with: swaa run"),
        (["run", "BENCH"], "this is a benchmark, not an experiment. Run it with: swaa bench"),
        (["bench", "BENCH", "repeats=0"], "repeats: expected an int >= 1, got 0. Set it to 1 or more"),
        (["bench", "BENCH", "baselines=[ful]"], "baselines[0].name: unknown value 'ful'. Did you mean 'full'?"),
        (
            ["bench", "BENCH", "-o", "OUT", "model.config.hiden_size=3"],
            "unknown field 'model.config.hiden_size'. Did you mean 'model.config.hidden_size'?",
        ),
        (
            ["bench", "BENCH", "-o", "OUT", "recipes[0].policy=SlidingWindow(8).on_layers(5)"],
            "recipe 'sliding': layer 5 is out of range: this model has 2 layers",
        ),
        (["draw", "SlidingWindow(8)", "--heads", "-1"], "--heads: expected an int >= 1, got -1"),
        (["draw", "SlidingWindow(8)", "-o", "mask.gif"], "expected a file ending in .png, .svg, .pdf"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    argv: list[str], message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tmp_path / "bench.yaml"
    bench.write_text(BENCH)
    places = {"FILE": str(file), "BENCH": str(bench), "OUT": str(tmp_path / "out")}
    assert main([places.get(arg, arg) for arg in argv]) == 2
    assert_one_message(capsys.readouterr(), message)


@pytest.mark.parametrize("argv", [["fetch", "smollm2-135m-instruct"], ["run", "FILE", "-o", "OUT"]])
def test_a_damaged_download_is_one_message(
    argv: list[str],
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A cache of which one file was cut short: nothing is downloaded, and nothing is loaded."""
    model = CATALOGUE[DEFAULT_MODEL]
    folder = tmp_path / "models" / model.name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"cut sh")
    files = {"model.safetensors": hashlib.sha256(b"cut short").hexdigest()}
    (folder / MANIFEST).write_text(json.dumps({"catalogue_sha256": model.sha256, "files": files}))
    monkeypatch.setenv("SWAA_HOME", str(tmp_path))
    places = {"FILE": str(file), "OUT": str(tmp_path / "out")}
    assert main([places.get(arg, arg) for arg in argv]) == 2
    message = assert_one_message(
        capsys.readouterr(), f"damaged model: {folder / 'model.safetensors'}: expected SHA-256"
    )
    assert f"Delete the folder {folder} and run `swaa fetch" in message


@pytest.mark.parametrize("argv", [["draw", "SlidingWindow(400)"], ["ls", "scores"]], ids=["print", "rich"])
def test_nobody_reading_on_is_no_traceback(argv: list[str]) -> None:
    code = f"import sys; from swaa.cli import main; sys.exit(main({argv}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()  # before anything is written
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"swaa {swaa.__version__}\n"


def test_explain_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "SlidingWindow(4)", "--layers", "2", "--seq-len", "16", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["num_layers"], data["prompt_length"]) == (2, 16)
    assert data["layers"][0]["prefill"] == "SlidingWindow(4)"


def test_explain_predicts_times_of_a_model_and_on_a_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], smollm2: Path
) -> None:
    def times(*args: str) -> dict[str, float]:
        assert main(["explain", "SlidingWindow(256)", "--seq-len", "4096", "--json", *args]) == 0
        found: dict[str, float] = json.loads(capsys.readouterr().out)["time"]
        return found

    named = times("--model", str(smollm2))
    assert named == times(), "the default sizes are SmolLM2's"
    assert 0.1 < named["request_ratio"] < 1
    assert times("--dtype", "float32")["machine"] != named["machine"]
    slow = {**CPU_BFLOAT16.to_dict(), "name": "half as fast", "linear_flops": CPU_BFLOAT16.linear_flops / 2}
    (tmp_path / "bench.json").write_text(json.dumps({"machine": slow}))
    told = times("--machine", str(tmp_path / "bench.json"))
    assert told["machine"] == "half as fast"
    assert told["full_prefill"] > named["full_prefill"]


def test_validate_tells_what_a_benchmark_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH)
    assert main(["validate", str(path), "repeats=2"]) == 0
    out = capsys.readouterr().out
    assert "is valid: 2 rows x 1 lengths x 2 repeats = 4 requests on random llama -> runs/bench" in out
    assert "  full\n  sliding: SlidingWindow(8)\n" in out


def test_draw_writes_text_or_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "SlidingWindow(2)", "--seq-len", "4", "--prompt-len", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["SlidingWindow(2)", "██", "████", "··████", "····████"]
    assert main(["draw", "SlidingWindow(2)", "-o", str(tmp_path / "mask.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mask.png'}\n"
    assert (tmp_path / "mask.png").stat().st_size > 1000


def test_a_syntax_error_names_file_and_line_in_a_real_process(file: Path) -> None:
    file.write_text(GOOD + "seed: [1, 2\nbatch_size: 3\n")
    done = command("validate", file)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"swaa: error: {file}:6:")
    assert "YAML syntax error" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "argv",
    [[], ["rnu"], ["ls"], ["ls", "recipes"], ["validate"], ["fetch", "a", "b"], ["ls", "tasks", "x=1"]],
)
def test_a_wrong_command_line_shows_its_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: swaa" in capsys.readouterr().err


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swaa.hf.weights.fetch", interrupted)
    assert main(["fetch", "smollm2-135m-instruct"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"

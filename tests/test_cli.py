from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swaa.cli import COMMANDS, main

GOOD = """
recipes: [{name: FA, policy: FullAttention()}]
tasks: [{name: needle_single}]
lengths: [500]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    return path


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "swaa", *map(str, args)], capture_output=True, text=True, check=False)


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
    names = [add.__name__.removeprefix("add_") for add in COMMANDS]
    assert {"run", "validate", "ls", "fetch"} <= set(names)
    assert all(name in done.stdout for name in names)


def test_validate_tells_what_would_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(file), "num_examples=7", "lengths=[500, 600]"]) == 0
    out = capsys.readouterr().out
    assert "is valid: 1 recipe x 1 task x 2 lengths x 7 examples = 14 samples on smollm2-135m-instruct" in out
    assert "FA: FullAttention()" in out


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("policies", ["SlidingWindow", "SinkTokens", "FullAttention"]),
        ("tasks", ["needle_single", "needle_multikey", "needle_multivalue", "needle_multiquery"]),
        ("models", ["smollm2-135m-instruct", "Apache-2.0"]),
    ],
)
def test_ls_lists_what_there_is(what: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in expected:
        assert any(name in line for line in lines)
    assert all(len(line.split()) > 2 for line in lines), "each says what it is"


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
        (["validate", "nowhere.yaml"], "no experiment file 'nowhere.yaml'"),
        (["run", "FILE", "model.name=./no/such/folder", "-o", "OUT"], "there is no such model folder"),
        (["run", "FILE", "-o", "OUT", "num_examples=none"], "num_examples: expected an int >= 1, got 'none'"),
        (["fetch", "smollm2-135m"], "unknown model 'smollm2-135m'. Did you mean 'smollm2-135m-instruct'?"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    argv: list[str], message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"FILE": str(file), "OUT": str(tmp_path / "out")}
    assert main([places.get(arg, arg) for arg in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("swaa: error: ")
    assert message in captured.err


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

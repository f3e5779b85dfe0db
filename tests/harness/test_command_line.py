"""``swaa lm-eval``, run as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swaa.cli import main

POLICY = "SlidingWindow(8).on_layers([0, 2]).in_phase('prefill')"


def arguments(folder: Path, tasks: Path, *more: str) -> list[str]:
    """Nothing is said of the device: the tests run where there may be none but the CPU."""
    return ["lm-eval", "--model", str(folder), "--include-path", str(tasks), "--dtype", "float32", *more]


def test_a_table_and_files(folder: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    more = ["--tasks", "echo, far_colours", "--policy", POLICY, "--limit", "2", "--batch-size", "2", "-o", str(output)]
    assert main(arguments(folder, tasks, *more)) == 0
    printed = capsys.readouterr().out
    assert "|far_colours|      1|none  |     0|acc " in printed
    results = json.loads((output / "results.json").read_text())
    assert f"Policy: {results['swaa']['policy']}" in printed
    assert (output / "table.md").read_text().strip() in printed
    assert results["swaa"]["policy"] == repr(eval(POLICY, vars(__import__("swaa"))))
    assert results["swaa"]["limit"] == 2
    assert results["n-samples"]["echo"] == {"original": 5, "effective": 2}
    assert {"python", "swaa", "torch", "transformers", "lm_eval"} <= results["provenance"]["versions"].keys()
    assert {"git", "command"} <= results["provenance"].keys()
    samples = [json.loads(line) for line in (output / "samples_far_colours.jsonl").read_text().splitlines()]
    assert [sample["doc_id"] for sample in samples] == [0, 1]
    assert main(arguments(folder, tasks, *more)) == 2
    assert "holds results already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tasks", "echo", "--policy", "SlidingWindw(8)"), "Did you mean 'SlidingWindow'?"),
        (("--tasks", "echo", "--policy", "SlidingWindow(8).on_layers([9])"), "layer"),
        (("--tasks", "echo", "--device", "cuda:99"), "device"),
        (("--tasks", " , "), "tasks: expected at least one name"),
        (("--tasks", "echo", "--batch-size", "0"), "--batch-size: expected an int >= 1 or 'auto', got '0'."),
        (("--tasks", "echo", "--metadata", "[1]"), "--metadata: expected a JSON object, got '[1]'."),
        (("--tasks", "echo", "--gen-kwargs", "a=1"), "--gen-kwargs: expected a JSON object, got 'a=1'."),
        (("--tasks", "echo", "--max-length", "20"), "task 'echo', document 0: 35 prompt tokens and 8 new ones are 43"),
    ],
)
def test_a_mistake_is_one_message(
    folder: Path, tasks: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert main(arguments(folder, tasks, *more)) == 2
    _, _, told = capsys.readouterr().err.rpartition("swaa: error: ")
    assert message in told
    assert told.count("\n") == 1

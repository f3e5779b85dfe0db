"""``swaa check`` and ``swaa new-policy``, in this process; the written test in one of its own."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from swaa.cli import main

FILE = '''
from dataclasses import dataclass

import swaa


@swaa.register_policy
@dataclass(frozen=True, repr=False)
class TooLong(swaa.Predicate):
    """One token too long."""

    window_size: int

    def visible(self, q, k):
        return q - k <= self.window_size

    @classmethod
    def examples(cls):
        return (cls(3),)


def oracle(policy, q, k):
    return q - k < policy.window_size


def no_oracle(policy):
    return True


TOLD = "told"
'''


@pytest.fixture
def file(tmp_path: Path, own_registry: None) -> Path:
    path = tmp_path / "too_long.py"
    path.write_text(FILE)
    return path


def test_a_green_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "SinkTokens(2)", "--no-flex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "SinkTokens(2)"
    assert "  padding                ok: 3 masks" in lines
    assert "  FlexAttention          skipped: not asked for" in lines
    assert lines[-1] == "SinkTokens(2): 25 checks, none failed."


def test_a_failed_check_says_what_failed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{file}:TooLong", "--oracle", f"{file}:oracle", "--no-flex"]) == 1
    out = capsys.readouterr().out
    assert "  conventions            FAILED: window off by one" in out
    assert "  oracle                 FAILED: window off by one: it is one token too long (at distance 3)" in out
    assert "Mend: Write q - k < self.window_size." in out
    assert "+███" in out
    assert out.splitlines()[-1] == "TooLong: 2 of 25 checks failed."


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "TARGET: expected a policy, or --all, got None."),
        (["SinkTokens(2)", "--all"], "TARGET: expected a policy, or --all, got 'SinkTokens(2)'."),
        (["SinkToken"], "unknown policy 'SinkToken'. Did you mean 'SinkTokens'?"),
        (["MyOwn(3)"], "unknown policy 'MyOwn'."),
        (["SinkTokens(0)"], "SinkTokens.num_tokens: expected an int >= 1"),
        (["nowhere.py:Policy"], "plugin 'nowhere.py': there is no such file."),
        (["nowhere.at.all:Policy"], "plugin 'nowhere.at.all': importing it fails with ModuleNotFoundError"),
        (["FILE:TooLongs"], "TARGET: unknown name 'TooLongs'. Did you mean 'TooLong'?"),
        (["FILE"], "TARGET: expected a class of the file"),
        (["FILE:oracle"], "policy: expected a policy, got <function oracle"),
        (["SinkTokens", "--oracle", "oracle"], "--oracle: expected package.module:name or file.py:name, got 'oracle'."),
        (
            ["SinkTokens", "--oracle", "FILE:TOLD"],
            "oracle: expected a function oracle(policy, q, k) -> bool, got 'told'",
        ),
        (["--all", "--oracle", "FILE:oracle"], "--oracle: expected a TARGET beside it"),
    ],
)
def test_mistakes_are_one_message(
    argv: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *(word.replace("FILE", str(file)) for word in argv)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"swaa: error: {message}")
    assert captured.err.count("\n") == 1


def test_an_oracle_that_fails_is_told_with_its_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{file}:TooLong", "--oracle", f"{file}:no_oracle", "--no-flex"]) == 1
    assert "TypeError: no_oracle() takes 1 positional argument but 3 were given" in capsys.readouterr().out


def test_a_new_policy_works_as_it_stands(
    tmp_path: Path, own_registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-policy", "moon_window", "--folder", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    policy, test, page = (tmp_path / name for name in ("moon_window.py", "test_moon_window.py", "moon_window.md"))
    assert f"swaa check {policy}:MoonWindow --oracle {test}:oracle" in told
    experiment = tmp_path / "moon_window.yaml"
    assert f"  swaa run {experiment}\n  swaa report runs/moon_window -o report.html --plugin {policy}\n" in told
    assert main(["validate", str(experiment)]) == 0
    assert "  moon_window: MoonWindow(128, 16)\n" in capsys.readouterr().out
    assert "\n    ████████\n" in page.read_text()
    written = runpy.run_path(str(test))
    assert [name for name in written if name.startswith("test_")] == ["test_moon_window"], "what pytest would collect"
    written["test_moon_window"]()
    policy_like = SimpleNamespace(window_size=3, stride=2)
    assert [written["oracle"](policy_like, 6, k) for k in range(7)] == [True, False, True, False, True, True, True]
    assert main(["draw", "MoonWindow(2, 4)", "--plugin", str(policy), "--seq-len", "6"]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SlidingWindow", "NAME: there is a policy 'SlidingWindow' already. Choose another name, such as MySliding"),
        ("sliding_window", "NAME: there is a policy 'SlidingWindow' already."),
        ("3x", "NAME: expected letters and digits that begin with a letter, got '3x'."),
        ("None", "NAME: expected letters and digits"),
        ("a.b", "NAME: expected letters and digits"),
        ("Größe", "NAME: expected letters and digits"),
        ("torch", "NAME: the file torch.py would hide the module of that name. Choose another name, such as MyTorch."),
        ("swaa", "NAME: the file swaa.py would hide the module"),
        ("Dataclasses", "NAME: the file dataclasses.py would hide the module"),
        ("class", "NAME: the file class.py would have no import."),
        ("TestWindow", "NAME: the file test_window.py would be taken for a test."),
    ],
)
def test_bad_names_are_refused(name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-policy", name, "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"swaa: error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_present_files_and_missing_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_fresh.py").write_text("mine")
    assert main(["new-policy", "Fresh", "--folder", str(tmp_path)]) == 2
    assert "test_fresh.py: the file exists already." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_fresh.py"]
    assert main(["new-policy", "Fresh", "--folder", str(tmp_path / "no")]) == 2
    assert "does not exist. Create it first." in capsys.readouterr().err
    assert main(["new-policy", "Fresh", "--folder", "/proc"]) == 2  # where nobody can write
    assert "--folder: cannot write to /proc (" in capsys.readouterr().err

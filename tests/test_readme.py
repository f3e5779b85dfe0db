"""Every command of the README is run: the quick ones here, the others by .ci/run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from swaa.cli import main
from swaa.policies import registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line, comments=True) for line in re.findall(r"^    (swaa .+)$", README, re.MULTILINE)]
SLOW = {"run", "report"}
"""They need a model: .ci/run calls them, made small."""


@pytest.mark.parametrize("command", [words for words in COMMANDS if words[1] not in SLOW], ids=" ".join)
def test_a_quick_command_succeeds(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command[1] == "new-policy":  # the policy that it writes is known to this test alone
        monkeypatch.setattr(registry, "_policies", dict(registry._policies))
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    assert main(command[1:]) == 0, capsys.readouterr().err


def test_ci_runs_the_others() -> None:
    slow = {words[1] for words in COMMANDS} & SLOW
    assert slow == SLOW
    assert all(re.search(rf"^\.venv/bin/swaa {name} ", CI, re.MULTILINE) for name in slow)
    verbs = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert verbs == ["quickstart", "test"]
    assert "make test" in CI.splitlines()

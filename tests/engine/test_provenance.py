from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from swaa.engine import provenance


def test_the_commit_is_that_of_the_code() -> None:
    provenance.git_hash.cache_clear()
    found = provenance.git_hash()
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    if head.returncode:  # the sources were unpacked without their history
        assert found is None
    else:
        assert found is not None
        assert re.fullmatch(rf"{head.stdout.strip()}\+?", found)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    provenance.git_hash.cache_clear()
    assert provenance.git_hash() is None
    provenance.git_hash.cache_clear()


def test_versions_are_those_in_use() -> None:
    assert provenance.versions()["torch"] == torch.__version__

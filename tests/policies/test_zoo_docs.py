"""The tables of docs/policies.md are what the registry says, with nothing plugged in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
COMMAND = ("ls", "policies", "--markdown")


def swaa(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "swaa", *args], capture_output=True, text=True, check=False)


def test_the_pages_tables_are_generated() -> None:
    generated = swaa(*COMMAND).stdout
    _, begins, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- swaa {' '.join(COMMAND)} -->\n")
    assert begins
    table, ends, _ = rest.partition("<!-- end -->")
    assert ends
    assert table.strip() == generated.strip(), f"put what `swaa {' '.join(COMMAND)}` prints between the two comments"
    rows = [line for line in generated.splitlines() if line.startswith("| `")]
    assert any(line.startswith("| `SlidingWindow(window_size)` | `q - k < window_size` |") for line in rows)
    assert any("`SinkTokens(num_sinks) \\| SlidingWindow(window_size)`" in line for line in rows), "bars are escaped"


def test_only_policies_are_listed_as_markdown() -> None:
    done = swaa("ls", "tasks", "--markdown")
    assert done.returncode != 0
    assert done.stderr.strip() == (
        "swaa: error: --markdown: expected 'ls policies', got 'ls tasks'. Leave --markdown out."
    )


def test_patterns_are_listed_behind_policies() -> None:
    lines = swaa("ls", "policies").stdout.splitlines()
    named = [line.split()[:2] for line in lines if line[:1].strip()]
    assert named.index(["SlidingWindow", "policy"]) < named.index(["AShape", "pattern"])

"""The pages keep their word: links resolve, `make` verbs exist, and code that says it runs, runs.

A fenced block that opens with ``python run`` is run; the blocks of one page share their names, top to bottom.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)


def prose(text: str) -> str:
    """The page without its fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The fragments that GitHub gives a page's headings."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(FENCE.sub("", text)))
    return {heading.replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> list[str]:
    """The page's links to files or headings of this project that are not there. The web is not asked."""
    broken = []
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_verbs_exist(page: Path) -> None:
    verbs = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)\b", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= verbs


def runnable(page: Path) -> str:
    """The page's blocks that say they run, on the lines where they stand there: so a traceback names them."""
    text = page.read_text(encoding="utf-8")
    code = ""
    for fence in FENCE.finditer(text):
        if fence[2].split() == ["python", "run"]:
            code += "\n" * (text.count("\n", 0, fence.start(3)) - code.count("\n")) + fence[3]
    return code


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name)
def test_code_that_says_it_runs_runs(page: Path, tmp_path: Path) -> None:
    """Each page in a process of its own: pages may define policies of the same name."""
    script = tmp_path / f"{page.stem}.py"
    script.write_text(runnable(page), encoding="utf-8")
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_checks_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A Head\n[a](gone.md) [b](#a-head) [c](#tail) [d](page.md) `[e](no)`\n```\n[f](no)\n```\n")
    assert broken_links(page) == ["gone.md", "#tail"]
    page.write_text("# Head\n```python run\nassert False\n```\n")
    with pytest.raises(AssertionError, match="line 3"):
        test_code_that_says_it_runs_runs(page, tmp_path)

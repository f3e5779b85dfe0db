"""The pages keep their word: links resolve, `make` verbs exist, commands and files are what swaa takes, code runs.

A fenced block that opens with ``python run`` is run; the blocks of one page share their names, top to bottom.
`make docs` runs this file, and tests/test_docs_site.py on the site that it built.
"""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pages import run_script
from swaa.cli import parse
from swaa.config import load_file
from swaa.errors import UserError
from swaa.policies import load_plugin, parse_policy
from swaa.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "_build" not in page.relative_to(ROOT).parts
)
"""All pages; those that the site's build leaves in docs/_build are copies."""

FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
INDENTED = re.compile(r"^ {4}(?! *[-*|]).*$", re.MULTILINE)
SAVED = re.compile(r"Save this as `([^`]+)`:\n\n```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A file that the reader is told to make."""


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
    code, printed = run_script(script)
    assert code == 0, printed


def commands(page: Path) -> list[list[str]]:
    """Every `swaa …` in the page's indented and fenced blocks of commands, in words as the shell parts them."""
    text = page.read_text(encoding="utf-8")
    blocks = [fence[3] for fence in FENCE.finditer(text) if fence[2].split()[:1] in ([], ["bash"], ["console"])]
    blocks += INDENTED.findall(FENCE.sub("", text).replace("\\\n", " "))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = (re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?swaa (.+)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


ALL_COMMANDS = [
    pytest.param(page, words, id=f"{name(page)}: {' '.join(words)[:60]}") for page in PAGES for words in commands(page)
]
KEPT = {name: text for page in PAGES for name, text in SAVED.findall(page.read_text(encoding="utf-8"))}
"""The files that readers make, by name."""


@pytest.mark.parametrize(("page", "words"), ALL_COMMANDS)
def test_commands_are_accepted(page: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser takes the command, and its policy, file and overrides are what they should be; nothing is run."""
    monkeypatch.chdir(ROOT)
    args = parse(words)
    for plugin in getattr(args, "plugin", []):
        load_plugin(plugin)
    if isinstance(getattr(args, "policy", None), str):
        parse_policy(args.policy)
    if hasattr(args, "overrides"):
        load_file(_file_of(args, tmp_path), args.overrides)
    assert callable(args.handler)


def _file_of(args: Namespace, folder: Path) -> Path:
    """The file that a command names: one of the repository, or one that a page has the reader save."""
    if (ROOT / args.file).is_file():
        return ROOT / args.file
    assert args.file in KEPT, f"{args.file} is no file here, and no page says `Save this as` of it"
    written = folder / args.file
    written.write_text(KEPT[args.file], encoding="utf-8")
    return written


def yaml_blocks(page: Path) -> Iterator[Any]:
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        if fence[2].split() in (["yaml"], ["yaml", "recipe"]):
            yield pytest.param(fence[3], id=f"{name(page)}:{text.count(chr(10), 0, fence.start()) + 1}")


RECIPE = {"name", "policy", "prompting", "decoding", "fine_tuning", "scores"}
NEEDED = {
    "recipes": [{"name": "FA", "policy": "FullAttention()"}],
    "tasks": [{"name": "needle_multikey"}],
    "lengths": [450],
}
"""What an experiment cannot be without; a page may show only the rest."""


@pytest.mark.parametrize("text", [block for page in PAGES for block in yaml_blocks(page)])
def test_yaml_is_what_swaa_reads(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is a file of some kind, a part of an experiment, or a recipe."""
    monkeypatch.chdir(ROOT)
    block = yaml.safe_load(text)
    if set(block) <= RECIPE:
        assert Recipe.from_dict({"name": "unnamed", **block}).hash
        return
    file = tmp_path / "block.yaml"
    missing = {} if {"train", "new_tokens"} & set(block) else {key: NEEDED[key] for key in NEEDED.keys() - set(block)}
    if missing:  # a part of an experiment
        text += yaml.safe_dump(missing)
    file.write_text(text, encoding="utf-8")
    assert load_file(file).to_yaml()


DOCTESTED = sorted(path for path in (ROOT / "src").rglob("*.py") if ">>>" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", DOCTESTED, ids=name)
def test_examples_in_docstrings(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT / "src").with_suffix("").parts))
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


def test_the_checks_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A Head\n[a](gone.md) [b](#a-head) [c](#tail) [d](page.md) `[e](no)`\n```\n[f](no)\n```\n")
    assert broken_links(page) == ["gone.md", "#tail"]
    page.write_text("# Head\n```python run\nassert False\n```\n")
    with pytest.raises(AssertionError, match="line 3"):
        test_code_that_says_it_runs_runs(page, tmp_path)


def test_commands_are_found_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    drawn = "    swaa draw 'SlidingWindow(8)' \\\n        --seq-len 9  # small\n\n"
    page.write_text(f"{drawn}```bash\nA=1 swaa run gone.yaml\n```\nswaa no\n")
    fenced, indented = commands(page)
    assert fenced == ["run", "gone.yaml"]
    assert indented == ["draw", "SlidingWindow(8)", "--seq-len", "9"]
    with pytest.raises(AssertionError, match="no file here"):
        test_commands_are_accepted(page, fenced, tmp_path, monkeypatch)
    with pytest.raises(SystemExit):
        test_commands_are_accepted(page, [*indented, "--seqlen", "9"], tmp_path, monkeypatch)
    with pytest.raises(UserError, match="unknown policy"):
        test_commands_are_accepted(page, ["draw", "SlidingWindo(8)"], tmp_path, monkeypatch)


def test_yaml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("lenghts: [450]\n", "name: a\npolicy: Slide(8)\n", "train: {tasks: []}\n"):
        with pytest.raises(UserError):
            test_yaml_is_what_swaa_reads(text, tmp_path, monkeypatch)

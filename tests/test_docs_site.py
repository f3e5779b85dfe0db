"""The built site: every link leads somewhere, every policy has its picture, and every page fits a phone.

`make docs` builds the site and runs this; without a site the tests skip and say so.
"""

from __future__ import annotations

import ast
import html
import re
import shutil
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from swaa.policies.registry import zoo_entries

DOCS = Path(__file__).parents[1] / "docs"
SITE = DOCS / "_build" / "html"
SRC = DOCS.parent / "src" / "swaa"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ALIASES = {"CountTokens", "Phase"}
PHONE = {"width": 390, "height": 844}


pytestmark = pytest.mark.skipif(not SITE.is_dir(), reason="there is no site: `make docs` builds it")


class Page(HTMLParser):
    """What a page links to, and what may be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in {"href", "src"} and value:
                self.links.append(value)
            elif key == "id" and value:
                self.ids.add(value)


@cache
def read(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", sorted(DOCS.glob("*.md")), ids=lambda source: source.name)
def test_a_page_says_what_its_source_says(source: Path) -> None:
    """Sphinx writes pages of its own, such as search.html, over a page of that name."""
    headings = [line for line in source.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    title = html.escape(headings[0].removeprefix("# "), quote=False)
    text = (SITE / f"{source.stem}.html").read_text(encoding="utf-8")
    assert re.search(rf"<h1>{re.escape(title)}<", text)


def broken(file: Path) -> list[str]:
    """The links of a page to files or fragments of the site that are not there. The web is not asked."""
    found = []
    for link in read(file).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        fragment = unquote(parts.fragment)
        if not target.is_file() or (fragment and target.suffix == ".html" and fragment not in read(target).ids):
            found.append(link)
    return found


def pages() -> list[Path]:
    return sorted(SITE.rglob("*.html"))


def test_links_lead_somewhere() -> None:
    dead = {str(file.relative_to(SITE)): links for file in pages() if (links := broken(file))}
    assert dead == {}


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text('<p id="a">')
    page = tmp_path / "page.html"
    page.write_text(
        '<a href="there.html#a"><a href="there.html#b"><img src="gone.png"><a href="#c"><a href="https://x.y/z">'
    )
    assert broken(page) == ["there.html#b", "gone.png", "#c"]


def test_every_page_is_built() -> None:
    sources = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    assert sources <= {page.relative_to(SITE) for page in pages()}


@pytest.mark.parametrize("entry", zoo_entries(), ids=lambda entry: entry.name)
def test_the_gallery_shows_every_policy(entry: Any) -> None:
    text = (SITE / "gallery.html").read_text(encoding="utf-8")
    section = text.partition(f'<section id="{entry.name.lower()}">')[2].partition("<section")[0]
    assert '<svg class="mask"' in section
    assert "Cost of" in section
    assert all(f"https://arxiv.org/abs/{paper}" in section for paper in entry.papers)


def public(init: Path) -> set[str]:
    """What ``__all__`` lists, but for constants and aliases of types; importing would take seconds for some."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return {name for name in ast.literal_eval(node.value) if not name.isupper()} - ALIASES
    raise AssertionError(f"{init} has no __all__")


@pytest.mark.parametrize(
    "package",
    [
        "policies",
        "policies/scores",
        "compiler",
        "hf",
        "testing",
        "tasks",
        "graders",
        "config",
        "engine",
        "harness",
        "report",
    ],
)
def test_every_public_name_has_its_entry(package: str) -> None:
    described = set().union(*(read(page).ids for page in (SITE / "api").glob("*.html")))
    assert public(SRC / package / "__init__.py") <= {name.rpartition(".")[2] for name in described}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def test_no_page_is_wider_than_a_phone(browser: Any) -> None:
    """Tables and code scroll inside their own boxes, and the page itself does not scroll sideways."""
    page = browser.new_page(viewport=PHONE, java_script_enabled=False)  # scripts lay nothing out, and take time
    wide = {}
    files = {file for file in pages() if "files" in file.relative_to(SITE).parts}
    for file in sorted({*pages()} - files | {*sorted(files)[:3]}):  # pages of files are all alike
        page.goto(file.as_uri(), wait_until="load")  # style sheets, too
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"]:
            wide[str(file.relative_to(SITE))] = width
    page.close()
    assert wide == {}

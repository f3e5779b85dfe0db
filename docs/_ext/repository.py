"""Links from pages to files of the repository that are no pages: each file, and each folder, gets a page of its own.

On GitHub ``[the file](../experiments/quickstart.yaml)`` leads to the file. The site has no such place, so it shows the
file with its syntax coloured, or the folder as a list; what is too large to show is copied for download.
"""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util.osutil import relative_uri

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 200_000
"""Bytes of the largest file that is shown."""
LANGUAGES = {".yaml": "yaml", ".md": "markdown", ".py": "python", ".json": "json"}


class RepositoryLinks(SphinxTransform):
    """Turns links to files and folders of the repository into links to their pages, and notes these."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        for kind in (addnodes.download_reference, addnodes.pending_xref):
            for link in list(self.document.findall(kind)):
                target = self._target(cast(nodes.Element, link))
                if target is not None:
                    shown: set[str] = self.env.swaa_shown.setdefault(self.env.docname, set())  # type: ignore[attr-defined]
                    shown.add(target)
                    uri = self.app.builder.get_relative_uri(self.env.docname, page_of(target))
                    link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))

    def _target(self, link: nodes.Element) -> str | None:
        """The path inside the repository that a Markdown link leads to, unless that is a page, or nowhere."""
        if link.get("reftype") != "myst":
            return None
        name = link["reftarget"].partition("#")[0]
        if link.get("refdomain") == "doc":  # MyST takes every Markdown file for a page, and strikes its ending
            name = f"{name}.md" if Path(name).is_absolute() else ""
        path = (Path(self.env.doc2path(self.env.docname)).parent / name).resolve()
        inside = name and path.is_relative_to(ROOT) and path.exists()
        return path.relative_to(ROOT).as_posix() if inside else None


def page_of(target: str) -> str:
    """The name of the page that shows a path."""
    return f"files/{target}"


def start(app: Sphinx, env: BuildEnvironment, *_: object) -> None:
    """Makes room in the environment, which is kept between builds, for what each page links to."""
    if not hasattr(env, "swaa_shown"):
        env.swaa_shown = {}  # type: ignore[attr-defined]


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """A page that is read again says anew what it links to."""
    env.swaa_shown.pop(docname, None)  # type: ignore[attr-defined]


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The pages, for ``html-collect-pages``."""
    targets = set().union(*app.env.swaa_shown.values())  # type: ignore[attr-defined]
    waiting = sorted(targets)
    while waiting:
        target = waiting.pop()
        path = ROOT / target
        if path.is_dir():
            inside = [item.relative_to(ROOT).as_posix() for item in sorted(path.iterdir())]
            waiting += [item for item in inside if item not in targets]
            targets.update(inside)
            body = _list(app, target, inside)
        else:
            body = _show(app, target, path)
        yield page_of(target), {"title": target, "body": f"<h1>{html.escape(target)}</h1>{body}"}, "page.html"


def _list(app: Sphinx, target: str, inside: list[str]) -> str:
    lines = []
    for item in inside:
        uri = app.builder.get_relative_uri(page_of(target), page_of(item))
        lines.append(f'<li><a class="reference internal" href="{uri}">{html.escape(Path(item).name)}</a></li>')
    return f"<ul>{''.join(lines)}</ul>"


def _show(app: Sphinx, target: str, path: Path) -> str:
    copy = Path(app.outdir) / "_files" / target
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)
    uri = relative_uri(app.builder.get_target_uri(page_of(target)), f"_files/{target}")
    size = path.stat().st_size
    body = f'<p><a class="reference download" href="{uri}">Download</a> ({size:,} bytes)</p>'
    if size <= LARGEST:
        language = LANGUAGES.get(path.suffix, "text")
        body += app.builder.highlighter.highlight_block(path.read_text(encoding="utf-8"), language)  # type: ignore[attr-defined]
    return body


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(RepositoryLinks)
    app.connect("env-before-read-docs", start)
    app.connect("env-purge-doc", forget)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False, "parallel_write_safe": False}

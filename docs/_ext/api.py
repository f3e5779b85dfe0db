"""The API pages: names that a package imports on first use, and references to what has no page of its own.

With -n Sphinx warns of every name that leads nowhere. Here a name of swaa leads to the page of the object that it
means, by whatever module it is named (``swaa.compiler.plan.choose_kernel`` is documented as
``swaa.compiler.choose_kernel``). What is inside, and has no page, stays text. What does not exist still warns.
"""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment

LAZY = ("swaa.hf", "swaa.harness")
"""Packages that import their names on first use; autodoc lists only what is there."""


def import_lazy(app: Sphinx) -> None:
    """Brings the names into being, for ``builder-inited``."""
    for name in LAZY:
        package = importlib.import_module(name)
        for item in package.__all__:
            getattr(package, item)


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """A link, or plain text, for a name of swaa that Sphinx did not find; for ``missing-reference``."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("swaa.") or not exists(target):
        return None
    domain = env.domains["py"]
    assert isinstance(domain, PythonDomain)
    thing = value(target)
    for name in documented(domain, target.rpartition(".")[2]):
        if exists(name) and value(name) is thing:
            found: nodes.Element | None = domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", name, node, content
            )
            return found
    return content


def documented(domain: PythonDomain, short: str) -> list[str]:
    """The full names of what is documented under this last name."""
    return sorted(name for name in domain.objects if name.rpartition(".")[2] == short)


def exists(name: str) -> bool:
    """Whether the dotted name means anything."""
    try:
        value(name)
    except (ImportError, AttributeError):
        return False
    return True


def value(name: str) -> Any:
    """The module or object of a dotted name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", import_lazy)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

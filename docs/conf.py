"""The settings of the site: `make docs` builds it into docs/_build/html, and no warning passes."""

from __future__ import annotations

import gc
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import swaa

# A build keeps nearly all of the nodes that it makes. Looking for garbage among them took a quarter of its time, and
# finds little: without it the build takes 1.3 GB, not 0.7.
gc.disable()

project = "swaa"
author = "the swaa authors"
copyright = "the swaa authors, Apache-2.0"
version = release = swaa.__version__

extensions = [
    "api",
    "gallery",
    "myst_parser",
    "pictures",
    "repository",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "examples"]
nitpicky = True
highlight_language = "none"  # of indented blocks: commands and trees of folders

# Markdown as GitHub has it: links such as policies.md#scopes lead to headings.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

INVENTORIES = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}


def reachable(url: str) -> bool:
    """Whether there is an inventory to be had; without a network the build goes on, and says nothing."""
    try:
        with urllib.request.urlopen(f"{url}objects.inv", timeout=3) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


# Names of Python and torch become links where their inventories can be fetched, and plain text elsewhere.
intersphinx_mapping = {name: (url, None) for name, url in INVENTORIES.items() if reachable(url)}
if intersphinx_mapping:
    extensions.append("sphinx.ext.intersphinx")

# -n warns of names that lead nowhere. Excused: what is not ours, and what is ours and has no page.
nitpick_ignore_regex = [
    ("py:.*", r"(?!swaa).*"),
]

html_theme = "furo"
html_title = "swaa"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []
html_theme_options = {
    "light_css_variables": {
        "swaa-hidden": "#e6e7e3",
        "swaa-prefill": "#2463a8",
        "swaa-decode": "#d9822b",
        "font-stack--monospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
    },
    "dark_css_variables": {
        "swaa-hidden": "#2b3038",
        "swaa-prefill": "#5b9fe3",
        "swaa-decode": "#eea557",
    },
}

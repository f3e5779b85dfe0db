"""The fence ``{gallery}`` becomes a section for each policy and pattern of the registry; none is written by hand.

A section has the picture, when a pair is visible, the cost on the default model's shape, the papers, the Python and the
YAML.
"""

from __future__ import annotations

import json
import logging
import re
from statistics import fmean

from sphinx.application import Sphinx

from swaa.compiler import ModelShape, estimate_cost
from swaa.compiler.picture import fitting_length, mask_pictures
from swaa.errors import UserError
from swaa.policies import AttentionPolicy, get_policy
from swaa.policies.registry import Example, ZooEntry, zoo_entries

logging.getLogger("swaa.compiler").setLevel(logging.ERROR)  # it says of some policies that no key can be freed
FENCE = re.compile(r"^```\{gallery\}\n.*?^```$", re.MULTILINE | re.DOTALL)
SHAPE = ModelShape(num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64)
"""SmolLM2-135M's."""
PROMPT, ANSWER = 8192, 64
"""Tokens."""
SMALL = 64
"""Tokens of the longest sequence that is drawn."""
QUADRATIC = {"RandomKeys": 1024}
"""Prompts, in tokens, for policies whose pairs have to be counted one by one."""


def gallery() -> str:
    """The sections, as Markdown, with a table of them in front."""
    entries = zoo_entries()
    names = (f"| [{entry.name}](#{entry.name.lower()}) | {in_table(entry.summary)} |" for entry in entries)
    return "\n".join(["| policy | |", "|---|---|", *names, "", *map(section, entries)])


def section(entry: ZooEntry) -> str:
    """All about one policy or pattern."""
    large = max(entry.examples, key=lambda example: fitting_length(example.policy))
    papers = ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in entry.papers)
    what = "Comes to"
    if entry.kind == "policy":
        what = "Visible" if get_policy(entry.name).looks_ahead else "Visible, with `k <= q`"
    lines = [
        f"## {entry.name}",
        f"{entry.summary}.",
        ":::{container} entry",
        picture(entry),
        f"- {what}: `` {entry.formula} ``" if entry.formula else "",
        f"- Python: `{entry.signature}`, for example `{large.text}`",
        f"- YAML: `policy: {flow(large)}`",
        f"- {cost(large, QUADRATIC.get(entry.name, PROMPT))}",
        f"- Paper: {papers}" if papers else "",
        ":::",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def picture(entry: ZooEntry) -> str:
    """The example that shows most: of the small ones, that which hides nearest to a half."""
    shares = [(example.text, visible_share(example.policy)) for example in entry.examples]
    drawable = {text: share for text, share in shares if share is not None}
    if not drawable:
        return "What it shows depends on the text, so there is no one picture of it."
    best = min(drawable, key=lambda text: abs(drawable[text] - 0.5))
    sizes = f":layers: {SHAPE.num_layers}\n:heads: {SHAPE.num_heads}\n:most: 3"
    return f"```{{mask}}\n{sizes}\n{best}\n```"


def visible_share(policy: AttentionPolicy) -> float | None:
    """The share of causal pairs that are visible in the picture of a policy; None where it is large, or has none."""
    length = fitting_length(policy)
    if length > SMALL:
        return None
    try:
        pictures = mask_pictures(
            policy,
            num_layers=SHAPE.num_layers,
            num_heads=SHAPE.num_heads,
            length=length,
            prompt_length=length * 2 // 3,
            resolution=length,
        )
    except UserError:  # a policy that chooses by content
        return None
    return fmean(cell for drawn in pictures for row in drawn["cells"] for cell in row if cell is not None)


def cost(example: Example, prompt: int) -> str:
    """Shares of full attention's work and memory."""
    try:
        counted = estimate_cost(example.policy, SHAPE, prompt, ANSWER)
    except UserError:
        return "Cost: depends on the text"
    pairs, kept = percent(counted.visible_pair_share), percent(counted.kv_share)
    bound = "at most " if getattr(example.policy, "by_content", False) else ""
    return (
        f"Cost of `{example.text}` at {prompt:,} tokens: {bound}{pairs} of the pairs computed, {kept} of the keys kept"
    )


def percent(share: float) -> str:
    """A share with two digits that say something."""
    value = 100 * share
    if 99.5 <= value < 100:  # not all
        return f"{value:.1f} %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


def flow(example: Example) -> str:
    """A mapping as YAML has it on one line."""
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in example.mapping.items()) + "}"


def in_table(text: str) -> str:
    """``text`` for a cell, where bars part columns."""
    return text.replace("|", r"\|")


def expand(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the sections into the page that has the fence, for ``source-read``."""
    if FENCE.search(source[0]):
        source[0] = FENCE.sub(lambda _: gallery(), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", expand)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The code of policies that are not swaa's own: when it changes, answers on record are no longer the recipe's."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator

from swaa.policies.describe import predicates
from swaa.recipe import Recipe


def own_code(recipes: Iterable[Recipe]) -> dict[str, str]:
    """SHA-256 of the code of each foreign class in the recipes (policies, score modifications), by the class's name.

    Comments, docstrings and layout do not count, nor does what the class calls elsewhere. A class whose source cannot
    be read (typed into an interpreter) is left out.
    """
    classes = {type(part) for recipe in recipes for part in _parts(recipe)}
    digests = {one.__name__: code_of(one) for one in sorted(classes, key=lambda one: one.__name__)}
    return {name: digest for name, digest in digests.items() if digest is not None}


def code_of(one: type) -> str | None:
    """The SHA-256 of a foreign class, as in :func:`own_code`; None of swaa's own, and where no source can be read."""
    return _digest(one) if _is_foreign(one) else None


def _parts(recipe: Recipe) -> Iterator[object]:
    yield from predicates(recipe.policy)
    if recipe.scores is not None:
        for _, heads in recipe.scores.form.cells:
            for _, mods in heads.cells:
                yield from mods


def _is_foreign(one: type) -> bool:
    return one.__module__.partition(".")[0] not in ("swaa", "builtins", "abc")


def _digest(one: type) -> str | None:
    """Of the class and of what it inherits from foreign classes."""
    try:
        sources = [inspect.getsource(base) for base in one.__mro__ if _is_foreign(base)]
    except (OSError, TypeError):
        return None
    trees = [ast.dump(_without_docstrings(ast.parse(textwrap.dedent(source)))) for source in sources]
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree

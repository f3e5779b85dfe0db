"""Perplexity in the folder of a run: what was found and measured, to go on with after any interruption.

key_tokens.json    the stretches, their key tokens and their NLL under full attention; written once, before any line
perplexity.jsonl   one line a recipe and stretch, flushed as it ends
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from swaa.config.common import ModelConfig
from swaa.config.perplexity import Perplexity
from swaa.engine.perplexity import CHUNK, KeyTokens, read_stretch
from swaa.engine.resumable import MEND, ResumableFolder, changed
from swaa.engine.text_nll import read_text
from swaa.errors import UserError
from swaa.hf import apply_policy
from swaa.reading import within
from swaa.recipe import Recipe
from swaa.report.jsonfiles import read_lines
from swaa.report.runs import PERPLEXITY, Stretch

KEY_TOKENS = "key_tokens.json"

OnLine = Callable[[Stretch], None]


class PerplexityFolder(ResumableFolder):
    """A folder's two files, made or gone on with; a context with a lock of its own, so that it lies within a run's.

    Nothing but :meth:`find_key_tokens` and :meth:`measure` needs a model, so :meth:`missing` says whether one has to be
    loaded. One process measures; of several, let the first do it.

    Args:
        path: the folder.
        settings: what is asked for.
        model: the unmodified model. Its dtype counts; kernel and chunks are used for all readings alike.
        fresh: delete what a former run wrote.

    Raises:
        UserError: the folder holds figures of another text, model or other settings; they are named. A line cannot be
            read. The text cannot be read.
    """

    def __init__(self, path: Path, settings: Perplexity, model: ModelConfig, *, fresh: bool = False) -> None:
        super().__init__(path)
        self._lock = FileLock(path / ".perplexity.lock")
        self._settings = settings
        self._model = model
        self._fresh = fresh
        asked = model.prefill_chunk_size
        self._chunk_size = min(CHUNK, asked) if isinstance(asked, int) else CHUNK
        self._twins: dict[object, dict[int, Stretch]] = {}
        """What was read so far, by what acts here."""

    def lines(self, recipes: Iterable[Recipe]) -> list[Stretch]:
        """The lines of the recipes, in their order and under their names of now, stretch by stretch."""
        stored = sorted(self._read(), key=lambda line: line.stretch)
        return [
            dataclasses.replace(line, recipe=recipe.name)
            for recipe in recipes
            for line in stored
            if line.recipe_hash == recipe.hash
        ]

    def missing(self, recipe: Recipe) -> list[int]:
        """The stretches that the recipe has not been measured on."""
        there = {line.stretch for line in self.lines([recipe])}
        return [stretch for stretch in range(self._settings.num_stretches) if stretch not in there]

    def find_key_tokens(self, model: Any, tokenizer: Any) -> KeyTokens:
        """The key tokens on file, or those that the unmodified model finds now.

        Raises:
            UserError: see :meth:`KeyTokens.find`.
        """
        stored = self._key_tokens()
        if stored is not None:
            return stored
        found = KeyTokens.find(model, tokenizer, self._settings, kernel=self._model.kernel, chunk_size=self._chunk_size)
        self._replace(KEY_TOKENS, json.dumps({"asked": self._asked(), **found.to_dict()}).encode())
        return found

    def measure(self, model: Any, recipe: Recipe, *, on_line: OnLine | None = None) -> None:
        """Measure a recipe on the stretches that it lacks, under its prefill policy.

        Args:
            model: in eval mode, with the recipe's weights, after :meth:`find_key_tokens` with the unmodified ones.
            recipe: its policy is put on the model meanwhile.
            on_line: told of each line once it is on file.

        Raises:
            UserError: the model cannot run under the policy; the recipe is named.
        """
        known = self._key_tokens()
        assert known is not None, "find_key_tokens comes first"
        twins = self._twins.setdefault(_what_acts(recipe), {})
        twins |= {line.stretch: line for line in self.lines([recipe])}
        missing = self.missing(recipe)
        if not missing:
            return
        with within(f"recipe {recipe.name!r}"):
            handle = apply_policy(model, recipe.policy, recipe.scores, kernel=self._model.kernel)
        with handle, (self.path / PERPLEXITY).open("a", encoding="utf-8") as file:
            for stretch in missing:
                if stretch not in twins:
                    twins[stretch] = read_stretch(model, known, recipe, stretch, chunk_size=self._chunk_size)
                line = dataclasses.replace(twins[stretch], recipe=recipe.name, recipe_hash=recipe.hash)
                file.write(json.dumps(dataclasses.asdict(line), ensure_ascii=False) + "\n")
                file.flush()
                if on_line is not None:
                    on_line(line)

    def _begin(self) -> None:
        if self._fresh:
            self._delete(KEY_TOKENS, PERPLEXITY)
        self._drop_torn_line(PERPLEXITY)
        measured, path = bool(self._read()), self.path / KEY_TOKENS
        if not path.exists():
            if measured:
                raise UserError(f"{self.path} has {PERPLEXITY}, and no {KEY_TOKENS} to say of what. {MEND}")
            return
        before, now = self._stored()["asked"], self._asked()
        explains = {"python"}  # it is the reason why the text that comes with it has changed, and no change itself
        if before["text_sha256"] != now["text_sha256"] and self._settings.text_file is None:
            explains = set()
        differences = changed((name, before.get(name), now[name]) for name in now if name not in explains)
        if measured:
            self._refuse(differences, what="perplexities of something else")
        elif differences:
            self._delete(KEY_TOKENS)

    def _asked(self) -> dict[str, object]:
        """What the key tokens depend on. The text counts, and not where its file lies."""
        text = read_text(self._settings.text_file, field="perplexity.text_file")
        settings = self._settings.to_dict()
        del settings["text_file"]
        return {
            "model": self._model.name,
            "dtype": self._model.dtype,
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "python": platform.python_version(),
            **settings,
        }

    def _stored(self) -> dict[str, Any]:
        path = self.path / KEY_TOKENS
        try:
            content = json.loads(path.read_bytes())
            KeyTokens.from_dict(content)
            content["asked"]["text_sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: cannot be read as key tokens ({error!r}). {MEND}") from error
        assert isinstance(content, dict)
        return content

    def _key_tokens(self) -> KeyTokens | None:
        return KeyTokens.from_dict(self._stored()) if (self.path / KEY_TOKENS).exists() else None

    def _read(self) -> list[Stretch]:
        return list(read_lines(Stretch, self.path / PERPLEXITY))


def _what_acts(recipe: Recipe) -> object:
    """What the figures of a recipe depend on; in a table, many recipes are alike in this.

    Without fine-tuning, only the prefill phase of its policy acts. Weights come from training under the whole policy.
    """
    policy = recipe.policy.in_phase("prefill") if recipe.fine_tuning is None else recipe.policy
    return policy, recipe.scores, recipe.fine_tuning


def measure_perplexity(
    model: Any,
    tokenizer: Any,
    settings: Perplexity,
    recipes: Iterable[Recipe],
    path: Path,
    *,
    config: ModelConfig,
    fresh: bool = False,
    on_line: OnLine | None = None,
) -> list[Stretch]:
    """Measure recipes of one set of weights, all at once; what the folder ``path`` holds is not measured again.

    Args:
        model: unmodified and in eval mode.
        tokenizer: its own.
        settings: text and key tokens.
        recipes: none of them fine-tuned.
        path: the folder of ``key_tokens.json`` and ``perplexity.jsonl``.
        config: what the model was loaded as.
        fresh, on_line: see :class:`PerplexityFolder`.

    Returns:
        The lines of the recipes, in their order.

    Raises:
        UserError: see :class:`PerplexityFolder`.
    """
    recipes = list(recipes)
    with PerplexityFolder(path, settings, config, fresh=fresh) as folder:
        folder.find_key_tokens(model, tokenizer)
        for recipe in recipes:
            folder.measure(model, recipe, on_line=on_line)
        return folder.lines(recipes)

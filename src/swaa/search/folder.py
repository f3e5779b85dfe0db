"""The folder of a search. It can be continued after any interruption.

search.yaml       the search, complete; ``swaa search`` reads it again
scores.jsonl      what was measured on calibration samples (:class:`~swaa.search.book.ScoreBook`)
choices.jsonl     one line for each base policy, scorer and count: the units that were chosen, and their NLL
validation/       the second stage, a run as ``swaa run`` leaves it
test/             the third
bench/            the winners timed beside the model without a policy, as ``swaa bench`` leaves it
search.json       everything: candidates of all stages, controls, comparisons, winners
front.csv         a line for each recipe that was tested
front.svg, .png   accuracy against each kind of cost; the second where matplotlib is installed
recipes/          an experiment for each recipe of a front, which ``swaa run`` takes unchanged
card.md           how each was chosen
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any

from swaa.config import Search, load_search
from swaa.engine.resumable import MEND, ResumableFolder, changed
from swaa.errors import UserError
from swaa.jsonlines import read_lines
from swaa.search.choices import Unit

SEARCH, SCORES, CHOICES = "search.yaml", "scores.jsonl", "choices.jsonl"
RESULT, FRONT, CARD = "search.json", "front.csv", "card.md"
PLOT, PNG = "front.svg", "front.png"
VALIDATION, TEST, BENCH, RECIPES = "validation", "test", "bench", "recipes"


@dataclass(frozen=True)
class Choice:
    """The units that a scorer chose.

    Attributes:
        base: the label of the base policy.
        scorer: the scorer's label.
        count: units that were asked for.
        chosen: those that keep full attention, in order.
        nll: mean NLL of the right answers on the calibration samples under this choice, in nats a token.
        subject: digest of what it was chosen on and by; empty where an earlier version chose.
    """

    base: str
    scorer: str
    count: int
    chosen: tuple[Unit, ...]
    nll: float
    subject: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What was asked."""
        return self.base, self.scorer, self.count


class SearchFolder(ResumableFolder):
    """The folder ``search.output``; a context that locks it. ``fresh`` deletes what a former search wrote there.

    Raises:
        UserError: the folder cannot be made, another process searches in it, or it holds results of a search that
            differs in a way that makes them incomparable; the differences are named.
    """

    def __init__(self, search: Search, *, fresh: bool = False) -> None:
        super().__init__(search.output)
        self._search = search
        self._fresh = fresh

    def choices(self) -> dict[tuple[str, str, int], Choice]:
        """The choices on record, by what was asked."""
        mend = "Delete the file; what was in it is chosen again."
        lines = read_lines(self.path / CHOICES, _parse_choice, fault="is no choice", mend=mend)
        return {choice.key: choice for choice in lines}

    def add(self, choice: Choice) -> None:
        """Add a choice, flushed to the operating system."""
        with (self.path / CHOICES).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(vars(choice))}\n")

    def write(self, name: str, text: str) -> None:
        """Write a report."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        self._replace(name, text.encode()) if path.parent == self.path else path.write_text(text, encoding="utf-8")

    def clear_recipes(self) -> None:
        """Remove the recipes of a former front."""
        shutil.rmtree(self.path / RECIPES, ignore_errors=True)

    def _begin(self) -> None:
        if self._fresh:
            self._delete(SEARCH, SCORES, CHOICES, RESULT, FRONT, PLOT, PNG, CARD)
            for name in (VALIDATION, TEST, BENCH, RECIPES):
                shutil.rmtree(self.path / name, ignore_errors=True)
        self._drop_torn_line(CHOICES)
        self._check_same()
        self._replace(SEARCH, self._search.to_yaml().encode())

    def _check_same(self) -> None:
        if not any((self.path / name).exists() for name in (SCORES, CHOICES, VALIDATION, TEST)):
            return
        if not (self.path / SEARCH).exists():
            raise UserError(f"{self.path} has results of a search, and no {SEARCH} to say of which. {MEND}")
        before = load_search(self.path / SEARCH)
        self._refuse(differences(before, self._search), what="results of a different search")


def differences(before: Search, now: Search) -> list[str]:
    """What changed between two searches that makes their results incomparable, a line each.

    Space, scorers, budget, controls and how many are tested may change: what is on record stays true. So may the
    request: costs are predicted anew, and the winners measured anew.
    """
    old, new = before.to_dict(), now.to_dict()
    pairs = [*_parts("model", old, new), *_parts("calibration", old, new), *_parts("decoding", old, new)]
    pairs += [pair for pair in _parts("space", old, new) if pair[0] == "space.unit"]
    pairs += [pair for pair in _parts("halving", old, new) if pair[0] == "halving.seed"]
    pairs += [pair for pair in _parts("test", old, new) if pair[0] in ("test.seed", "test.scoring")]
    return changed(pairs)


def _parts(name: str, before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, object, object]]:
    return [(f"{name}.{key}", before[name].get(key), value) for key, value in now[name].items()]


def _parse_choice(line: str) -> Choice:
    fields = json.loads(line)
    chosen = tuple(tuple(unit) if isinstance(unit, list) else int(unit) for unit in fields.pop("chosen"))
    return Choice(**fields, chosen=chosen)


def recipe_file(name: str) -> str:
    """The file of a recipe, relative to the folder of the search."""
    name = name.replace(":", "_")  # else ::2 and :-2 would have one file
    slug = "".join(letter if letter.isalnum() or letter in "-._," else "-" for letter in name).strip("-")
    return f"{RECIPES}/{slug}.yaml"

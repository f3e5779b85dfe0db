"""Short documents about people who never lived, each with questions that it alone answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from swaa.tasks.draws import Draws
from swaa.tasks.words import FIRST_NAMES, INSTRUMENTS, SYLLABLES, TOWNS, TRADES


@dataclass(frozen=True)
class Person:
    """What one document says."""

    name: str
    year: int
    birthplace: str
    trade: str
    home: str
    instrument: str

    def document(self) -> str:
        """The document, with the name as its title."""
        article = "An" if self.trade[0] in "aeiou" else "A"
        return (
            f"{self.name}\n"
            f"{self.name} was born in {self.birthplace} in {self.year}. {article} {self.trade} by trade, {self.name} "
            f"settled in {self.home} and played the {self.instrument} there on Sundays."
        )

    def questions(self) -> list[tuple[str, str]]:
        """``(question, answer)``, as many as there are facts."""
        return [
            (f"In which town was {self.name} born?", self.birthplace),
            (f"In which year was {self.name} born?", str(self.year)),
            (f"What was the trade of {self.name}?", self.trade),
            (f"In which town did {self.name} settle?", self.home),
            (f"Which instrument did {self.name} play?", self.instrument),
        ]


def people(draws: Draws) -> Iterator[Person]:
    """People without end, no two of one name."""
    seen = set[str]()
    while True:
        surname = "".join(draws.choice(SYLLABLES) for _ in range(3)).capitalize()
        if surname in seen:
            continue
        seen.add(surname)
        born = draws.below(len(TOWNS))
        moved = 1 + draws.below(len(TOWNS) - 1)  # never to where one was born
        yield Person(
            name=f"{draws.choice(FIRST_NAMES)} {surname}",
            year=1800 + draws.below(150),
            birthplace=TOWNS[born],
            trade=draws.choice(TRADES),
            home=TOWNS[(born + moved) % len(TOWNS)],
            instrument=draws.choice(INSTRUMENTS),
        )

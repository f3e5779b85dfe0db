"""A task of one's own: when does one bus of a long timetable leave?"""

from dataclasses import dataclass
from typing import ClassVar

from swaa.tasks import Example, SizedTask, register_task
from swaa.tasks.people import people
from swaa.tasks.placing import Draft, Needle


@register_task
@dataclass(frozen=True)
class Timetable(SizedTask[None]):
    """A timetable of bus stops, each with its time, and the question for one of them."""

    name: ClassVar[str] = "timetable"

    first_hour: int = 6

    def open(self):
        return None  # nothing to read

    def lines(self, draws):
        for person in people(draws):  # surnames that no two have
            hour, minute = self.first_hour + draws.below(12), draws.below(60)
            yield person.name.split()[1], f"{hour:02}:{minute:02}"

    def make(self, order, material):
        lines = self.lines(order.draws)
        stop, time = next(lines)
        needle = Needle(f"The bus leaves {stop} at {time}.", order.depths(1)[0])
        others = (f"The bus leaves {name} at {when}." for name, when in lines)
        draft = Draft([needle], others, f"When does the bus leave {stop}?")
        prefix = "The bus leaves"
        padding, tokens = self.fitted(
            order, draft.prompt, prefix, words_in=draft.words_in, needs="one line", mend="Ask for longer prompts."
        )
        context = draft.context(padding)
        facts = {"tokens": tokens, "depths": list(context.depths), "spans": [list(span) for span in context.spans]}
        return Example(order.id, draft.prompt(padding), prefix, f" {stop} at {time}", (time,), facts)

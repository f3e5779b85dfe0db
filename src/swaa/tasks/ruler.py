"""Prompts that RULER's own scripts have written (Hsieh et al., arXiv 2404.06654): one JSON line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from swaa.tasks.fields import answers_of, as_full_text, as_text, as_words, has, need
from swaa.tasks.filetask import Content, Entry, FileTask, LeftOut, after, reference_answer
from swaa.tasks.registry import register_task


@register_task
@dataclass(frozen=True)
class RulerJsonl(FileTask):
    """What RULER's scripts have written, one task at one length: ``index``, ``input``, ``outputs``, ``answer_prefix``.

    Let RULER write for the template ``base``: the model's chat template is applied here. Its question answering wants
    ``grader: any_found`` (the outputs are spellings); all else ``recall``, the default, as RULER scores them.

    The metadata of an example: ``item``, its ``index``; ``ruler_length``, the tokens that RULER counted.
    """

    name: ClassVar[str] = "ruler_jsonl"

    def entries(self, values: Mapping[str, object], number: int) -> Iterator[Entry | LeftOut]:
        name = as_words("index", values["index"]) if has(values, "index") else str(number)
        prompt = as_full_text("input", need(values, "input")).strip()
        references = answers_of("outputs", need(values, "outputs"))
        prefix = as_text("answer_prefix", values["answer_prefix"]).strip() if has(values, "answer_prefix") else ""
        facts: dict[str, object] = {"ruler_length": values["length"]} if has(values, "length") else {}
        answer = after(prefix, reference_answer(self.grader, references))
        yield Entry(name, lambda: Content(prompt, answer, references, prefix, facts=facts))

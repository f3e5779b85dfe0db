"""From what a batch brought to the records of its samples: grading, timing, cost, provenance."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from swaa.compiler import estimate_cost
from swaa.config import Experiment
from swaa.engine.batch import Batch, Sample
from swaa.engine.decode import Forced, Generation, Prefill
from swaa.engine.provenance import git_hash, versions
from swaa.engine.reply import Ending
from swaa.graders import Grade, Question
from swaa.hf import model_shape
from swaa.policies import AttentionPolicy
from swaa.prompting import Final
from swaa.report import Record


class Recorder:
    """Makes the records of batches.

    Args:
        model: what runs; its shape decides the cost.
        experiment: what is asked for.
    """

    def __init__(self, model: Any, experiment: Experiment) -> None:
        self._shape = model_shape(model)
        self._experiment = experiment

    def records(self, batch: Batch, read: Prefill, forced: Forced | None, made: Sequence[Generation]) -> list[Record]:
        """One record a sample and generation, sample by sample; where nothing was generated, one a sample."""
        finals = [_finals(batch, one) for one in made]
        grades = [grade_answers(batch.samples, some) for some in finals]
        records = []
        for row in range(len(batch.samples)):
            if not made:
                records.append(self._record(batch, row, read, forced))
            for place, number in enumerate(batch.generations if made else ()):
                answer = made[place], finals[place][row], grades[place][row]
                records.append(self._record(batch, row, read, forced, number, answer))
        return records

    def _record(
        self,
        batch: Batch,
        row: int,
        read: Prefill,
        forced: Forced | None,
        generation: int = 0,
        answer: tuple[Generation, Final, Grade] | None = None,
    ) -> Record:
        sample, recipe = batch.samples[row], batch.recipe
        scores: dict[str, float] = {}
        size = len(batch.samples)
        timing: dict[str, float] = {"prefill_seconds": read.seconds / size, "batch_size": size}
        new_tokens = len(sample.prompt.answer_ids)
        if forced is not None:
            scores |= {"forced_exact": float(forced.exact[row]), "forced_nll": forced.nll[row]}
        given: dict[str, Any] = {}
        if answer is not None:
            made, final, grade = answer
            if recipe.prompting.reasons:
                scores["truncated"] = float(made.closed[row] or not final.reached)
            if grade.score is not None:
                scores |= {"score": grade.score, "all_correct": float(grade.all_correct)}
            new_tokens = timing["new_tokens"] = made.num_tokens[row]
            if made.step_seconds is not None:
                timing["decode_ms_per_token"] = 1000 * made.step_seconds
            given = {
                "generated": made.texts[row],
                "final": None if final.text == made.texts[row] else final.text,
                "ending": made.endings[row],
                "verdict": grade.verdict,
                "error": grade.error,
            }
        distance = sample.evidence_distance
        return Record(
            recipe=recipe.name,
            recipe_hash=recipe.hash,
            task=sample.task.label,
            length=sample.length,
            example=sample.example.id,
            seed=self._experiment.seed,
            prompt_tokens=len(sample.prompt.ids),
            answer=sample.example.answer,
            metadata={**sample.example.metadata, **({} if distance is None else {"evidence_distance": distance})},
            scores=scores,
            timing=timing,
            cost=self._cost(recipe.policy, len(sample.prompt.ids), new_tokens),
            git=git_hash(),
            versions=versions(),
            prompting=recipe.prompting.name,
            generation=generation,
            **given,
        )

    @functools.lru_cache(maxsize=4096)  # noqa: B019  # the recorder lives as long as the run
    def _cost(self, policy: AttentionPolicy, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
        cost = estimate_cost(policy, self._shape, prompt_tokens, new_tokens)
        return {"visible_pair_share": cost.visible_pair_share, "kv_share": cost.kv_share}


def question_of(sample: Sample) -> Question:
    """What a grader is told of a sample."""
    return Question(sample.example.prompt, sample.example.references, sample.example.metadata)


def reply_of(sample: Sample, text: str, ending: Ending, stop: Sequence[str]) -> str:
    """A generated text without the stop string that ended it."""
    return sample.prompting.before_stop(text, stop) if ending == "stop" else text


def final_of(sample: Sample, text: str, ending: Ending, stop: Sequence[str]) -> Final:
    """The final answer in a generated text, without the stop string that ended it."""
    reply = reply_of(sample, text, ending, stop)
    return sample.prompting.final(reply, cut=ending == "cut", prompt=sample.prompt.text)


def grade_answers(samples: Sequence[Sample], finals: Sequence[Final]) -> list[Grade]:
    """The grades of a generation, in order; each task's answers at once, which a judge grades side by side."""
    grades: dict[int, Grade] = {}
    for task in dict.fromkeys(sample.task for sample in samples):
        rows = [row for row, sample in enumerate(samples) if sample.task == task]
        found = task.grader.grade_all([(finals[row].text, question_of(samples[row])) for row in rows])
        grades |= dict(zip(rows, found, strict=True))
    return [grades[row] for row in range(len(samples))]


def _finals(batch: Batch, made: Generation) -> list[Final]:
    parts = zip(batch.samples, made.texts, made.endings, strict=True)
    return [final_of(*part, batch.recipe.decoding.stop) for part in parts]

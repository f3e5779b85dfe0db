from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from swaa.config import Experiment, load_experiment
from swaa.engine.batch import collate
from swaa.engine.grid import GridData, make_chunks, sample_key
from swaa.engine.samples import make_samples


@pytest.fixture
def experiment(experiment_file: Path) -> Experiment:
    return load_experiment(experiment_file, ["num_examples=2"])


def test_every_recipe_gets_every_sample_once_long_prompts_first(experiment: Experiment, tokenizer: Any) -> None:
    samples = make_samples(experiment, tokenizer, context=None).samples
    assert len(samples) == 2 * 2 * 2
    chunks = make_chunks(experiment, samples, finished=())
    for recipe in experiment.recipes:
        mine = [sample for chunk in chunks if chunk.recipe == recipe for sample in chunk.samples]
        assert {sample.example.id for sample in mine} == {sample.example.id for sample in samples}
        lengths = [len(sample.prompt.ids) for sample in mine]
        assert lengths == sorted(lengths, reverse=True)
    assert [chunk.recipe.name for chunk in chunks] == ["FA"] * 4 + ["swa"] * 4 + ["half"] * 4, "a policy is set once"


def test_finished_samples_leave_the_batches_of_the_others_as_they_were(experiment: Experiment, tokenizer: Any) -> None:
    samples = make_samples(experiment, tokenizer, context=None).samples
    whole = make_chunks(experiment, samples, finished=())
    done = {sample_key(whole[0].recipe, sample) for sample in (*whole[0].samples, whole[1].samples[0])}
    rest = make_chunks(experiment, samples, finished=done)
    assert rest[0].samples == whole[1].samples[1:]
    assert rest[1:] == whole[2:]
    everything = {sample_key(recipe, sample) for recipe in experiment.recipes for sample in samples}
    assert make_chunks(experiment, samples, finished=everything) == []


def test_prompts_are_padded_on_the_left_and_answers_on_the_right(experiment: Experiment, tokenizer: Any) -> None:
    samples = sorted(make_samples(experiment, tokenizer, context=None).samples, key=lambda sample: sample.length)
    chosen = [samples[0], samples[-1]]
    batch = collate(experiment.recipes[0], chosen, pad=0)
    assert batch.prompt_lengths.tolist() == [400, 440]
    assert batch.prompt_mask[0].tolist() == [0] * 40 + [1] * 400
    assert (batch.prompt_ids[0, :40] == 0).all()
    assert batch.prompt_ids[0, 40:].tolist() == list(chosen[0].prompt.ids)
    for row, sample in enumerate(chosen):
        n = len(sample.prompt.answer_ids)
        assert batch.answer_ids[row, :n].tolist() == list(sample.prompt.answer_ids)
        assert batch.answer_mask[row].sum() == n
    alone = batch.head()
    assert torch.equal(alone.prompt_ids, batch.prompt_ids[:1])
    assert alone.samples == (chosen[0],)


def test_the_data_module_yields_the_batches_in_order(experiment: Experiment, tokenizer: Any) -> None:
    chunks = make_chunks(experiment, make_samples(experiment, tokenizer, context=None).samples, finished=())
    batches = list(GridData(chunks, pad=0).predict_dataloader())
    assert [batch.samples for batch in batches] == [chunk.samples for chunk in chunks]

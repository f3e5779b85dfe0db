from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from forking import PATIENCE, Forks
from swaa.config import Distillation, ModelConfig, load_distillation
from swaa.engine.batch import Sample
from swaa.engine.decode import Generation
from swaa.engine.distill import DistillationResult, Teacher, run_distillation
from swaa.engine.distill_folder import DistillationFolder
from swaa.engine.prompting import prepare
from swaa.errors import UserError
from swaa.graders import Grade, Grader, Question
from swaa.policies import AttentionPolicy, FullAttention, SlidingWindow
from swaa.recipe import Decoding, Recipe
from swaa.tasks import CountTokens, Example, Task, registry
from swaa.tasks.conversations import read_conversations

ENDS = (1, *range(100, 130))
"""Tokens that end an answer of the tiny model: enough of them that some answers do end."""
STOPS = ("e", "Z", "7", "q", "(", "K")
DECODING = Decoding(max_new_tokens=10, temperature=1.3, stop=STOPS)


@dataclass(frozen=True)
class Even(Grader):
    """Right if the length is even; one character too many gets half the score."""

    name: ClassVar[str] = "even"

    def grade(self, text: str, question: Question) -> Grade:
        right = len(text) % 2 == 0
        references = question.references
        return Grade(1.0 if right else 0.5, references * right, references * (not right))


@dataclass(frozen=True)
class Failing(Even):
    """Calls everything wrong, or cannot tell."""

    error: str | None = None

    def grade(self, text: str, question: Question) -> Grade:
        return Grade(None if self.error else 0.0, (), question.references, error=self.error)


@dataclass(frozen=True)
class Parrot(Task):
    """Short questions of different lengths. An answer is right if its length is even."""

    name: ClassVar[str] = "parrot"
    graded_by: ClassVar[Grader] = Even()

    @property
    def grader(self) -> Grader:
        return self.graded_by

    def examples(self, *, length: int, num_examples: int, seed: int, count_tokens: CountTokens) -> Iterator[Example]:
        ids = self.example_ids(length=length, num_examples=num_examples, seed=seed)
        for index, name in enumerate(ids):
            prompt = f"Say {seed + index}. " * (1 + index * 7 % 4)
            yield Example(name, prompt, "So:", " yes", ("yes",), {"index": index})


@pytest.fixture(autouse=True)
def parrot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task, known while a test lasts."""
    monkeypatch.setitem(registry._tasks, "parrot", Parrot)


@pytest.fixture(scope="module")
def folder_of_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, which ends its answers more often."""
    folder = tmp_path_factory.mktemp("talker")
    shutil.copytree(model_folder, folder, dirs_exist_ok=True)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": list(ENDS)}))
    return folder


@pytest.fixture
def config(folder_of_model: Path, tmp_path: Path) -> Distillation:
    return Distillation(
        tasks=(Parrot(),),
        lengths=(1, 2),
        output=tmp_path / "out",
        model=ModelConfig(str(folder_of_model), device="cpu"),
        recipe=Recipe("teacher", FullAttention(), decoding=DECODING),
        num_examples=5,
        seed=3,
        batch_size=4,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers_by_prompt(config: Distillation) -> dict[tuple[int, str], list[dict[str, Any]]]:
    return {(line["length"], line["example"]): line["answers"] for line in lines(config.output / "answers.jsonl")}


def oracle_answer(
    model: Any, tokenizer: Any, config: Distillation, key: tuple[int, Example], index: int, window: int
) -> dict[str, Any]:
    """One answer of one prompt alone: without cache, batch or padding, under a mask written as loops."""
    length, example = key
    prompt = list(prepare(tokenizer, example).ids)
    seed = f"{DECODING.seed + index}/parrot/{length}/{example.id}"
    stream = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
    said: list[int] = []
    ending, text = "cut", ""
    while len(said) < DECODING.max_new_tokens and ending == "cut":
        ids = prompt + said
        mask = torch.full((1, 1, len(ids), len(ids)), torch.finfo(torch.float32).min)
        for q in range(len(ids)):
            for k in range(max(0, q - window + 1), q + 1):
                mask[0, 0, q, k] = 0
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False)
        gumbel = -(-torch.rand(260, generator=stream).clamp(min=1e-38).log()).log()
        said.append(int((out.logits[0, -1] / DECODING.temperature + gumbel).argmax()))
        if said[-1] in ENDS:
            ending = "end"
        else:
            text = tokenizer.decode(said)
            if any(stop in text for stop in STOPS):
                ending = "stop"
    reply = text
    for stop in STOPS:
        reply = reply.split(stop)[0]
    return {"text": text, "tokens": len(said), "ending": ending, "reply": reply, "correct": len(reply) % 2 == 0}


@pytest.mark.parametrize(("policy", "window"), [(FullAttention(), 10**6), (SlidingWindow(8), 8)], ids=["full", "slide"])
def test_every_answer_is_that_of_a_step_by_step_oracle(
    config: Distillation, model: Any, tokenizer: Any, policy: AttentionPolicy, window: int
) -> None:
    config = replace(config, recipe=replace(config.recipe, policy=policy), keep="all")
    run_distillation(config)
    found = answers_by_prompt(config)
    expected = {
        (length, example.id): [
            oracle_answer(model, tokenizer, config, (length, example), index, window) for index in range(4)
        ]
        for length in (1, 2)
        for example in Parrot().examples(length=length, num_examples=5, seed=3, count_tokens=lambda *_: 0)
    }
    assert {
        key: [{name: answer[name] for name in ("text", "tokens", "ending", "reply", "correct")} for answer in answers]
        for key, answers in found.items()
    } == expected
    seen = {answer["ending"] for answers in expected.values() for answer in answers}
    assert seen == {"end", "stop", "cut"}, "otherwise this test shows little"


def oracle_data(config: Distillation) -> list[tuple[str, str]]:
    """(id, reply) of what is to be kept, by the plain rules, from the raw answers."""
    kept: list[tuple[str, str]] = []
    said: set[tuple[str, str]] = set()
    records = {(line["length"], line["example"]): line for line in lines(config.output / "answers.jsonl")}
    for length, example in sorted(records, key=lambda key: (key[0], int(key[1].rpartition("-")[2]))):
        record = records[length, example]
        good = []
        for index, answer in enumerate(record["answers"]):
            special = any(mark in answer["reply"] for mark in ("<pad>", "</s>", "<|user|>", "<|assistant|>"))
            wanted = config.keep == "all" or len(answer["reply"]) % 2 == 0
            if wanted and answer["ending"] != "cut" and answer["reply"].strip() and not special:
                good.append((answer["tokens"], index, answer["reply"]))
        mine = []
        for _, index, reply in sorted(good):
            if (record["prompt"], reply) in said or len(mine) == config.keep_per_prompt:
                continue
            said.add((record["prompt"], reply))
            mine.append((index, reply))
        kept += [(f"{example}#{index}", reply) for index, reply in sorted(mine)]
    return kept


@pytest.mark.parametrize(
    "changes", [{}, {"keep": "all"}, {"keep_per_prompt": 1}, {"keep": "all", "keep_per_prompt": 2}]
)
def test_a_run_leaves_the_kept_answers_as_conversations(config: Distillation, changes: dict[str, Any]) -> None:
    config = replace(config, **changes)
    result = run_distillation(config)
    assert result.files == (config.output / "data.jsonl",)
    found = read_conversations(config.output / "data.jsonl")
    expected = oracle_data(config)
    assert [(item.id, item.answer) for item in found] == expected
    assert result.counts.kept == len(expected) >= 4
    assert load_distillation(config.output / "distillation.yaml") == config
    records = {line["example"]: line for line in lines(config.output / "answers.jsonl")}
    for item in found:
        example, _, index = item.id.partition("#")
        record, answer = records[example], records[example]["answers"][int(index)]
        assert [turn.role for turn in item.turns] == ["user", "assistant"]
        assert item.turns[0].content == record["prompt"]
        assert item.answer_prefix == "So:"
        assert item.turns[1].content == f"So:{answer['reply']}"
        assert item.metadata == {
            **{"task": "parrot", "length": record["length"], "example": example, "seed": 3, "sample": int(index)},
            **{"grade": answer["score"], "correct": answer["correct"], "reference": " yes", "tokens": answer["tokens"]},
        }
    check_counts(config, result)


def check_counts(config: Distillation, result: DistillationResult) -> None:
    counts = result.counts
    answers = [answer for line in lines(config.output / "answers.jsonl") for answer in line["answers"]]
    assert (counts.prompts, counts.answers) == (10, 40) == (10, len(answers))
    assert counts.correct == sum(answer["correct"] and answer["ending"] != "cut" for answer in answers)
    assert counts.cut == sum(answer["ending"] == "cut" for answer in answers)
    data = lines(config.output / "data.jsonl")
    assert counts.empty == 10 - len({line["metadata"]["example"] for line in data})
    assert counts.kept + sum(counts.left_out.values()) == 40
    assert set(result.cells) == {("parrot", 1), ("parrot", 2)}
    assert sum(cell.kept for cell in result.cells.values()) == len(data)


def test_the_provenance_says_who_answered_what(config: Distillation) -> None:
    result = run_distillation(config)
    told = json.loads((config.output / "provenance.json").read_text())
    assert told["policy"] == "FullAttention()"
    assert told["decoding"] == DECODING.to_dict()
    assert told["model"]["name"] == config.model.name
    assert told["distillation"] == config.to_dict()
    assert told["counts"]["kept"] == result.counts.kept
    assert [cell["prompts"] for cell in told["cells"]] == [5, 5]
    assert [state["prompts"] for state in told["answered_by"]] == [10]
    assert told["versions"].keys() == {"python", "swaa", "torch", "transformers", "lightning"}
    data = (config.output / "data.jsonl").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    assert told["files"] == {"data.jsonl": {"bytes": len(data), "sha256": sha256}}


def test_the_answers_of_a_prompt_are_draws_of_their_own(config: Distillation) -> None:
    run_distillation(config)
    before = answers_by_prompt(config)
    assert all(len({answer["text"] for answer in answers}) > 1 for answers in before.values())
    other = replace(config.recipe.decoding, seed=4)  # past the four streams of the first run
    run_distillation(replace(config, recipe=replace(config.recipe, decoding=other)), fresh=True)
    after = answers_by_prompt(config)
    assert all(before[key] != after[key] for key in before)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_batch_changes_no_draw(config: Distillation, tmp_path: Path, batch_size: int) -> None:
    run_distillation(config)
    other = replace(config, batch_size=batch_size, output=tmp_path / "other")
    run_distillation(other)
    assert (other.output / "data.jsonl").read_bytes() == (config.output / "data.jsonl").read_bytes()
    assert answers_by_prompt(other) == answers_by_prompt(config)


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(config: Distillation, tmp_path: Path) -> None:
    """Cut after every line, which is after every batch and in the midst of each, and in the midst of a line."""
    run_distillation(config)
    written = (config.output / "answers.jsonl").read_bytes().splitlines(keepends=True)
    assert len(written) == 10
    for number in range(10):
        cut = replace(config, output=tmp_path / f"cut{number}")
        with DistillationFolder(cut):
            (cut.output / "answers.jsonl").write_bytes(b"".join(written[:number]) + written[number][:70])
        result = run_distillation(cut)
        assert result.counts.prompts == 10
        assert (cut.output / "answers.jsonl").read_bytes() == b"".join(written)
        assert (cut.output / "data.jsonl").read_bytes() == (config.output / "data.jsonl").read_bytes()


def test_more_prompts_are_added_to_what_is_there(config: Distillation, tmp_path: Path) -> None:
    run_distillation(replace(config, num_examples=2))
    before = (config.output / "answers.jsonl").read_bytes()
    run_distillation(config)
    assert (config.output / "answers.jsonl").read_bytes().startswith(before)
    whole = replace(config, output=tmp_path / "whole")
    run_distillation(whole)
    assert (whole.output / "data.jsonl").read_bytes() == (config.output / "data.jsonl").read_bytes()
    assert len(lines(config.output / "answers.jsonl")) == 10
    assert run_distillation(replace(config, num_examples=2)).counts.prompts == 4, "fewer are asked for"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("swaa.engine.distill.load", refuse)


def test_what_is_kept_can_be_decided_anew_without_the_model(config: Distillation, request: Any) -> None:
    run_distillation(config)
    first = (config.output / "data.jsonl").read_bytes()
    request.getfixturevalue("no_model")
    both = replace(config, keep="all", formats=("jsonl", "parquet"))
    assert run_distillation(both).files == (config.output / "data.jsonl", config.output / "data.parquet")
    assert [(item.id, item.answer) for item in read_conversations(config.output / "data.jsonl")] == oracle_data(both)
    run_distillation(config)
    assert (config.output / "data.jsonl").read_bytes() == first
    assert not (config.output / "data.parquet").exists(), "it would be of other data"


def test_parquet_holds_what_jsonl_holds(config: Distillation) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run_distillation(replace(config, keep="all", formats=("jsonl", "parquet")))
    assert parquet.read_table(config.output / "data.parquet").to_pylist() == lines(config.output / "data.jsonl")
    assert read_conversations(config.output / "data.parquet") == read_conversations(config.output / "data.jsonl")


@pytest.mark.usefixtures("no_model")
def test_parquet_without_pyarrow_is_told_before_anything_runs(
    config: Distillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"parquet needs pyarrow, which is not installed. Install it with: pip install 'swaa\[parquet\]', or"
    with pytest.raises(UserError, match=message):
        run_distillation(replace(config, formats=("jsonl", "parquet")))
    assert not config.output.exists()


def test_nothing_kept_is_an_error_and_keeps_the_answers(config: Distillation, monkeypatch: pytest.MonkeyPatch) -> None:
    run_distillation(config)
    answers = (config.output / "answers.jsonl").read_bytes()
    cut = sum(
        answer["ending"] == "cut" for line in lines(config.output / "answers.jsonl") for answer in line["answers"]
    )
    monkeypatch.setattr(Parrot, "graded_by", Failing())
    with pytest.raises(UserError) as caught:
        run_distillation(config, fresh=True)
    told = str(caught.value)
    assert told.startswith(f"{config.output}: nothing is kept of 40 answers to 10 prompts: {cut} cut at max_new_tokens")
    assert " wrong. Raise samples_per_prompt or decoding.max_new_tokens (both with --fresh), ease the task, " in told
    assert "or write keep: all. The answers stay in " in told
    assert len(answers.splitlines()) == len(lines(config.output / "answers.jsonl")) == 10
    assert not (config.output / "data.jsonl").exists(), "it would be of other answers"
    assert not (config.output / "provenance.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed: 3 there, 4 now"),
        ({"samples_per_prompt": 5}, "samples_per_prompt: 4 there, 5 now"),
        ({"policy": SlidingWindow(8)}, r"policy: FullAttention\(\) there, SlidingWindow\(8\) now"),
        ({"decoding": replace(DECODING, top_p=0.5)}, r"decoding: .*top_p=1.0.* there, .*top_p=0.5.* now"),
        ({"model": ModelConfig("elsewhere", device="cpu")}, "model.name: .* there, 'elsewhere' now"),
    ],
)
def test_a_folder_of_a_different_distillation_is_refused(
    config: Distillation, changes: dict[str, Any], message: str
) -> None:
    small = replace(config, num_examples=1, lengths=(1,), keep="all")
    run_distillation(small)
    before = {path.name: path.read_bytes() for path in config.output.iterdir()}
    recipe = {name: changes.pop(name) for name in ("policy", "decoding") if name in changes}
    other = replace(small, recipe=replace(config.recipe, **recipe), **changes)
    with pytest.raises(UserError, match=f"holds answers of a different distillation:\n  {message}") as caught:
        run_distillation(other)
    assert "Choose another folder with --output, or delete these results with --fresh." in str(caught.value)
    assert {path.name: path.read_bytes() for path in config.output.iterdir()} == before


def test_a_spoilt_line_is_named(config: Distillation) -> None:
    run_distillation(replace(config, num_examples=1, keep="all"))
    path = config.output / "answers.jsonl"
    good = path.read_text()
    for spoilt in ("{nonsense", '{"answers": []}', "[]", "{}"):
        path.write_text(good + spoilt + "\n")
        with pytest.raises(UserError, match=r"answers.jsonl:3: this line holds no answers .* begin anew with --fresh"):
            run_distillation(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipe": Recipe("teacher", SlidingWindow(8).on_layers([9]), decoding=DECODING)},
            "recipe 'teacher': layer 9",
        ),
        ({"lengths": (2045,)}, "lengths: 2045 prompt tokens and 10 new ones are 2055 tokens, and the context"),
        ({"model": ModelConfig("./no/such/model")}, "there is no such model folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    config: Distillation, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_distillation(replace(config, **changes))
    assert not (config.output / "answers.jsonl").exists()


def test_an_answer_that_no_judge_could_grade_ends_the_run_and_keeps_the_rest(
    config: Distillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parrot, "graded_by", Failing("the endpoint is down."))
    with pytest.raises(UserError, match="an answer could not be graded: the endpoint is down. Run the same command"):
        run_distillation(config)
    assert not (config.output / "data.jsonl").exists()


@pytest.mark.parametrize(("text", "control"), [(" yes", False), (" yes<|user|>no", True), (" yes</s>", True)])
def test_a_reply_that_spells_a_special_token_is_marked(
    config: Distillation, model: Any, tokenizer: Any, text: str, control: bool
) -> None:
    """Trained on, it would be read back as the token: as the end of the reply, or the beginning of a turn."""
    example = next(Parrot().examples(length=1, num_examples=1, seed=0, count_tokens=lambda *_: 0))
    sample = Sample(Parrot(), 1, example, prepare(tokenizer, example))
    config = replace(config, recipe=replace(config.recipe, decoding=replace(DECODING, stop=())))
    made = Generation([text], [3], None, ["end"], [False])
    assert Teacher(model, tokenizer, config)._answers([sample], made)[0].control is control


NEEDLES = """
model: {{name: {model}, device: cpu}}
tasks: [{{name: needle_single}}]
lengths: [300]
num_examples: 14
batch_size: 2
samples_per_prompt: 3
keep: all
decoding: {{max_new_tokens: 12, temperature: 1.3, stop: {stops}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-c"])
def test_a_killed_process_is_continued_to_the_same_bytes(
    forks: Forks, folder_of_model: Path, tmp_path: Path, how: signal.Signals
) -> None:
    file = tmp_path / "needles.yaml"
    file.write_text(NEEDLES.format(model=folder_of_model, stops=json.dumps(STOPS)))
    command, threads = ["distill", str(file), "-o", str(tmp_path / "cut")], torch.get_num_threads()
    process = forks.start(command, threads=threads)
    answers, deadline = tmp_path / "cut" / "answers.jsonl", time.monotonic() + PATIENCE
    while not (answers.exists() and answers.read_bytes().count(b"\n") >= 5):
        assert process.running, process.err
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pids[0], how)
    assert process.end() == [130 if how == signal.SIGINT else -how], process.err
    done = answers.read_bytes()
    assert 5 <= done.count(b"\n") < 14, "the test must end a run that is under way"
    if how == signal.SIGINT:
        assert (
            f"Interrupted; the answers to {done.count(bytes([10]))} prompts are kept in {answers.parent}."
            in process.err
        )
    again = forks.start(command, threads=threads)
    assert again.end() == [0], again.err
    whole = load_distillation(file, output=tmp_path / "whole")
    run_distillation(whole)
    assert answers.read_bytes().startswith(done[: done.rfind(b"\n") + 1]), "what was done stays as it was"
    assert (answers.parent / "data.jsonl").read_bytes() == (whole.output / "data.jsonl").read_bytes()
    cut, uncut = (lines(folder / "answers.jsonl") for folder in (answers.parent, whole.output))
    assert [{**line, "git": ""} for line in cut] == [{**line, "git": ""} for line in uncut], "a commit may fall between"

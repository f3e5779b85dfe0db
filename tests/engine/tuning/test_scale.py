"""Training on several devices: two processes on gloo do what one does, and they end together."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from forking import PATIENCE, Forks, Started
from swaa.config import load_finetuning
from swaa.engine.tuning.folder import differences
from swaa.engine.tuning.run import run_finetuning
from swaa.errors import UserError

NUM_STEPS = 6

FINETUNE = """
model: {{name: {model}, device: cpu, dtype: float32}}
policy: "SlidingWindow(16) | SinkTokens(4)"
train: {{files: [{data}], batch_size: 4, micro_batch_size: 2, epochs: 2}}
lora: {{r: 4, alpha: 8, dropout: 0}}
optimizer: {{learning_rate: 5.0e-3}}
validation: {{files: [{data}], every: 3, batch_size: 2}}
trainer: {{checkpoint_every: 2}}
"""
ACCUMULATED = ("train.micro_batch_size=1",)  # two passes a step and process; three samples leave one process a filler
PACKED = ("train.micro_batch_size=1", "train.pack_length=190")
FULL = ("lora=null", "optimizer.learning_rate=1e-3")
DISTILLED = ("objective.name=self_distillation", "objective.label_weight=0.3", "objective.temperature=2")
TASKS = ("validation.tasks=[{name: needle_single}]", "validation.lengths=[400]", "validation.num_examples=3")
GENERATED = ("validation.scoring=[generate, teacher_forced]", "validation.decoding={max_new_tokens: 3}")

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven conversations of mixed lengths: two steps of four, and one of three that cannot be halved."""
    text = "the quick brown fox jumps over a lazy dog and then runs home to sleep all day long under trees"
    words = text.split()
    lines = []
    for index in range(11):
        prompt = " ".join(words[index % 5 : index % 5 + 3 + (index * 7) % 11])
        lines.append(json.dumps({"prompt": prompt, "answer": " ".join(words[: 2 + index % 3])}))
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def file(data: Path, model_folder: Path) -> Path:
    path = data.with_name("finetune.yaml")
    path.write_text(FINETUNE.format(model=model_folder, data=data))
    return path


def train_in(forks: Forks, file: Path, output: Path, *overrides: str, ranks: int) -> None:
    """A whole training that goes well; each rank's process is started as a launcher would."""
    devices = [f"trainer.devices={ranks}"] if ranks > 1 else []
    started = forks.start(["finetune", str(file), "-o", str(output), *overrides, *devices], ranks=ranks)
    codes, said = started.end(), started.out + started.err
    assert codes == [0] * ranks, f"exit codes {codes}\n{said}"
    assert "Traceback" not in said
    warned = [line for line in said.splitlines() if "Warning" in line and "find_unused_parameters" not in line]
    assert not warned, said


@pytest.fixture(scope="module")
def train(forks: Forks, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """``train(*overrides, ranks=2)`` -> the folder of such a training; each is done once."""
    folder = tmp_path_factory.mktemp("trainings")
    done: dict[tuple[object, ...], Path] = {}
    numbers = itertools.count()

    def run(*overrides: str, ranks: int = 1) -> Path:
        if ranks == 1:
            overrides = tuple(item for item in overrides if item != "trainer.strategy=auto")
        key = (ranks, *overrides)
        if key not in done:
            output = folder / f"training-{next(numbers)}"
            train_in(forks, file, output, *overrides, ranks=ranks)
            done[key] = output
        return done[key]

    return run


def curve(folder: Path, part: int = 0) -> dict[tuple[int, str], float]:
    """What was logged from a step on: (step, name) -> value, without times."""
    found = {}
    with (folder / "logs" / "csv" / f"from_step_{part:06d}" / "metrics.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            for name, value in row.items():
                if value and name not in ("step", "epoch", "train/seconds", "train/tokens_per_second"):
                    found[int(row["step"]), name] = float(value)
    return found


def check_same_curve(one: dict[tuple[int, str], float], other: dict[tuple[int, str], float]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert math.isfinite(value)
        assert other[key] == pytest.approx(value, rel=1e-4 if "norm" in key[1] else 1e-5), key


def check_same_model(one: Path, other: Path, base: Path) -> None:
    """The published weights agree, and they moved a hundred times as far as they may differ."""
    ours, theirs, before = (load_file(path / "model.safetensors") for path in (one / "merged", other / "merged", base))
    assert ours.keys() == theirs.keys()
    apart, moved = 0.0, 0.0
    for name, weight in ours.items():
        apart = max(apart, float((weight - theirs[name]).abs().max()))
        if name in before:
            moved = max(moved, float((weight - before[name]).abs().max()))
    assert moved > 1e-3
    assert apart < moved / 100


CASES = {
    "auto": ("auto", ()),
    "ddp-accumulated": ("ddp", ACCUMULATED),
    "ddp-packed": ("ddp", PACKED),
    "ddp-distilled": ("ddp", DISTILLED),
    "ddp-tasks": ("ddp", (*TASKS, *GENERATED)),
    "ddp-unused": ("ddp_find_unused_parameters_true", ACCUMULATED),
    "fsdp2": ("fsdp2", ()),
    "fsdp2-packed": ("fsdp2", PACKED),
    "fsdp2-full": ("fsdp2", (*FULL, *ACCUMULATED)),
    "fsdp2-distilled": ("fsdp2", DISTILLED),
    "fsdp2-tasks": ("fsdp2", TASKS),
    "fsdp2-checkpointing": ("fsdp2", ("trainer.gradient_checkpointing=true", *ACCUMULATED)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "overrides"), CASES.values(), ids=CASES)
def test_two_processes_train_what_one_does(
    train: Train, model_folder: Path, strategy: str, overrides: tuple[str, ...]
) -> None:
    one, two = train(*overrides), train(*overrides, f"trainer.strategy={strategy}", ranks=2)
    alone = curve(one)
    assert {step for step, name in alone if name == "train/loss"} == set(range(1, NUM_STEPS + 1))
    assert {step for step, name in alone if name == "validation/loss"} == {0, 3, 6}
    assert max(value for (_, name), value in alone.items() if name == "train/gradient_norm") > 1, "clipping clips"
    assert alone[NUM_STEPS, "train/loss"] < alone[1, "train/loss"]
    check_same_curve(alone, curve(two))
    check_same_model(one, two, model_folder)


@pytest.fixture(scope="module")
def tied_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output head is its embedding, as small models have it."""
    folder = tmp_path_factory.mktemp("tied")
    shutil.copytree(model_folder, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_tied_weights_are_trained_once(train: Train, tied_folder: Path, strategy: str) -> None:
    overrides = (f"model.name={tied_folder}", *FULL)
    one, two = train(*overrides), train(*overrides, f"trainer.strategy={strategy}", ranks=2)
    check_same_curve(curve(one), curve(two))
    check_same_model(one, two, tied_folder)


SETUPS = {"one": (1, "auto"), "ddp": (2, "ddp"), "fsdp2": (2, "fsdp2")}


GOING_ON = [
    *((setup, setup) for setup in SETUPS),
    ("one", "ddp"),  # round in a circle, since what they write is of one form: see the next test
    ("ddp", "fsdp2"),
    ("fsdp2", "one"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), GOING_ON)
def test_any_setup_goes_on_from_any_checkpoint(
    forks: Forks, file: Path, train: Train, model_folder: Path, tmp_path: Path, before: str, now: str
) -> None:
    ranks, strategy = SETUPS[before]
    whole = train(*FULL, f"trainer.strategy={strategy}", ranks=ranks)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in ("checkpoints/step-000006", "merged"):
        shutil.rmtree(cut / name)
    ranks, strategy = SETUPS[now]
    train_in(forks, file, cut, *FULL, f"trainer.strategy={strategy}", ranks=ranks)
    expected = {key: value for key, value in curve(train(*FULL)).items() if key[0] > 4}
    assert {step for step, _ in expected} == {5, 6}
    check_same_curve(expected, curve(cut, part=4))
    check_same_model(whole, cut, model_folder)
    if before == now:  # then to the last bit
        assert (cut / "merged/model.safetensors").read_bytes() == (whole / "merged/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_that_of_one(train: Train) -> None:
    states = {}
    for name, (ranks, strategy) in SETUPS.items():
        folder = train(*FULL, f"trainer.strategy={strategy}", ranks=ranks) / "checkpoints" / "step-000006"
        [state] = torch.load(folder / "state.pt", weights_only=True)["optimizer_states"]
        moments: list[torch.Tensor] = []
        for group in state["param_groups"]:
            for number in group["params"]:
                values = state["state"][number]
                moments += [values["exp_avg"], values["exp_avg_sq"], values["step"]]
        states[name] = (load_file(folder / "model.safetensors"), moments)
    weights, moments = states["one"]
    for name in ("ddp", "fsdp2"):
        their_weights, their_moments = states[name]
        assert weights.keys() == their_weights.keys()
        for key, value in weights.items():
            torch.testing.assert_close(their_weights[key], value, rtol=1e-3, atol=1e-5)
        assert len(moments) == len(their_moments) > 100
        for value, theirs in zip(moments, their_moments, strict=True):
            torch.testing.assert_close(theirs, value, rtol=1e-3, atol=1e-6)


def test_devices_may_differ_when_a_training_goes_on(file: Path) -> None:
    before = load_finetuning(file)
    after = ["trainer.devices=4", "trainer.num_nodes=2", "trainer.strategy=fsdp2"]
    assert differences(before, load_finetuning(file, after)) == []
    assert differences(before, load_finetuning(file, ["trainer.mixed_precision=bfloat16"])) != []


# --- what goes over the wire ---

COUNT = """
import os
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

def note():
    with open({path!r} + os.environ["LOCAL_RANK"], "a") as file:
        file.write("x")

def hook(group, bucket):
    note()
    return allreduce_hook(group, bucket)

# what FSDP2 calls: the second is its name in torch up to 2.11
name = "reduce_scatter_single" if hasattr(torch.distributed, "reduce_scatter_single") else "reduce_scatter_tensor"
initialise, scatter = DistributedDataParallel.__init__, getattr(torch.distributed, name)

def initialise_and_count(self, *args, **options):
    initialise(self, *args, **options)
    self.register_comm_hook(None, hook)

def count_and_scatter(*args, **options):
    note()
    return scatter(*args, **options)

DistributedDataParallel.__init__ = initialise_and_count
setattr(torch.distributed, name, count_and_scatter)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "exchanges"), [("ddp", 1), ("fsdp2", 4)], ids=["ddp", "fsdp2"])
def test_gradients_are_exchanged_once_a_step(
    forks: Forks, file: Path, tmp_path: Path, strategy: str, exchanges: int
) -> None:
    """DDP has one bucket for so few weights, FSDP2 one of each of the four layers."""
    plugin, counts = tmp_path / "count.py", tmp_path / "counts"
    plugin.write_text(COUNT.format(path=str(counts)))
    overrides = (f"plugins=[{plugin}]", f"trainer.strategy={strategy}", *ACCUMULATED)
    train_in(forks, file, tmp_path / "out", *overrides, ranks=2)
    for rank in range(2):
        assert len(Path(f"{counts}{rank}").read_text()) == exchanges * NUM_STEPS


# --- processes that end together ---

BROKEN = """
import os
from swaa.engine.tuning.module import FineTuner
from swaa.errors import UserError

step = FineTuner.training_step

def fail(self, batch, index):
    if self.global_step == 2 and os.environ["LOCAL_RANK"] == "1":
        raise UserError("s7 is broken. Mend it.")
    step(self, batch, index)

FineTuner.training_step = fail
"""
EARLY = """
import os
from swaa.errors import UserError

if os.environ.get("LOCAL_RANK") == "1":
    {failure}
"""
FAILURES = {
    "its-own-words": ("raise UserError('not on this machine.')", "not on this machine.\n"),
    "killed": ("os.kill(os.getpid(), 9)", "process 1 of the run ended with code -9: it printed nothing. See "),
}


def start(forks: Forks, file: Path, output: Path, *overrides: str) -> Started:
    """A training whose first process starts the second one itself, as the command line does."""
    return forks.start(["finetune", str(file), "-o", str(output), "trainer.devices=2", *overrides])


def check_one_error(forks: Forks, file: Path, said: str, output: Path, *overrides: str) -> None:
    started = start(forks, file, output, *overrides)
    codes, printed = started.end(), started.out + started.err
    assert codes == [2], printed
    assert said in printed
    assert printed.count("error:") == 1, printed
    assert "Traceback" not in printed
    assert processes_of(started.pids[0]) == []


def processes_of(parent: int) -> list[int]:
    """The processes that a process started and that still run, though it ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended just now
            if f"SWAA_HELPER_OF={parent}\0" in (folder / "environ").read_text(errors="replace"):
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_the_command_starts_the_other_process(forks: Forks, file: Path, train: Train, tmp_path: Path) -> None:
    started = start(forks, file, tmp_path / "out")
    codes, said = started.end(), started.out + started.err
    assert codes == [0], said
    assert said.count("after step 6: loss") == said.count("Model: ") == 1
    assert "rror" not in said
    assert processes_of(started.pids[0]) == []
    check_same_curve(curve(train()), curve(tmp_path / "out"))
    assert "Model: " not in (tmp_path / "out/logs/process-1.log").read_text()


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_one_message(forks: Forks, file: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN)
    check_one_error(forks, file, "swaa: error: s7 is broken. Mend it.\n", tmp_path / "out", f"plugins=[{plugin}]")
    assert (tmp_path / "out/checkpoints/step-000002").is_dir(), "the last good one"


@pytest.mark.slow
@pytest.mark.parametrize(("failure", "said"), FAILURES.values(), ids=FAILURES)
def test_a_process_that_never_joins_ends_the_training(
    forks: Forks, file: Path, tmp_path: Path, failure: str, said: str
) -> None:
    """The first one waits for it where no exception reaches."""
    plugin = tmp_path / "early.py"
    plugin.write_text(EARLY.format(failure=failure))
    check_one_error(forks, file, said, tmp_path / "out", f"plugins=[{plugin}]")


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_told_once(forks: Forks, file: Path, model_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    said = "swaa: error: step 1: the loss is nan"
    check_one_error(forks, file, said, tmp_path / "out", f"model.name={broken}", "validation=null")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_all_processes_stop_with_the_first(forks: Forks, file: Path, tmp_path: Path, how: signal.Signals) -> None:
    checkpoints = tmp_path / "out/checkpoints"
    started = start(forks, file, tmp_path / "out", "train.epochs=400", "validation=null")
    [pid] = started.pids
    deadline = time.monotonic() + PATIENCE - 20
    while not (checkpoints / "step-000002").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(processes_of(pid)) == 1, "the test must stop a training under way"
    os.kill(pid, how)
    codes, said = started.end(), started.out + started.err
    assert codes == [130 if how == signal.SIGINT else -9], said
    if how == signal.SIGINT:
        assert f"Interrupted; the last checkpoint in {checkpoints}: after step" in said
        assert "Traceback" not in said
        assert processes_of(pid) == []
    while processes_of(pid):  # after kill -9, the other process has to see for itself
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_process_deletes_what_others_look_at(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--fresh: .* Delete .*out yourself, and leave --fresh out"):
        run_finetuning(load_finetuning(file, ["trainer.devices=2"], output=tmp_path / "out"), fresh=True)

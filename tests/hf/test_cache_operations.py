"""Random sequences of everything that can be done to an evicting cache, against lists of the tokens so far.

The oracle keeps, for each sample, a Python list with one entry a slot: a token, or None for padding. After every
operation a forward pass through the cache must give the logits that each sample's own tokens give when computed anew:
alone, without padding, without a cache, nothing evicted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

import oracle
import swaa
from hf.batches import CLOSE
from hf.key_oracle import EIGHT, HEADS, LAYERS_DIFFER, heads_of, held
from hf.reference import Composition
from hf.zoo import BY_TYPE, WORDS
from oracle import Atom, Model, Place, Scope
from strategies import ALL_ATOMS, OF_TESTS, ZOO_ATOMS, build, recipes
from swaa import AttentionPolicy
from swaa.hf.spec import policy_on
from swaa.policies import bind, register_policy, registry

SHARE = settings(max_examples=max(10, settings.default.max_examples // 20))
LAYERS, KV_HEADS = 2, 2
MODEL = Model(LAYERS, HEADS)
MOST_SAMPLES = 4


@cache
def model() -> PreTrainedModel:
    return BY_TYPE["llama"].build(num_hidden_layers=LAYERS, max_position_embeddings=512)


@contextmanager
def predicates_of_tests() -> Iterator[None]:
    """Registered in a copy of the registry, which the others never see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_policies", dict(registry._policies))
        for kind in OF_TESTS:
            register_policy(kind)
        yield


# ------------------------------------------------------------------------------------------------- operations


@dataclass(frozen=True)
class Feed:
    """A forward pass: for each sample, which of ``width`` slots hold a token."""

    width: int
    layout: str  # "all", "left", "right", "holes"
    seed: int


@dataclass(frozen=True)
class Record:
    """From here on, nothing is dropped until the next crop."""


@dataclass(frozen=True)
class Crop:
    """Drop the newest slots; if recorded, no more than were fed since."""

    count: int
    recorded: bool


@dataclass(frozen=True)
class Reorder:
    """As beam search does: sample i becomes what sample ``chosen[i]`` was."""

    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Repeat:
    times: int


@dataclass(frozen=True)
class Select:
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Copy:
    """Go on with a deep copy, while the original is fed something else."""


@dataclass(frozen=True)
class Restart:
    """Reset, and another prompt."""

    feed: Feed


Operation = Feed | Record | Crop | Reorder | Repeat | Select | Copy | Restart


@dataclass(frozen=True)
class Scenario:
    """A first prompt and what follows."""

    samples: int
    first: Feed
    operations: tuple[Operation, ...]
    declared: tuple[int, ...] | None
    """Tokens of each sample's prompt, or None: that of the first forward pass."""
    explicit: bool
    """A PolicyCache, or a DynamicCache that becomes one?"""


LAYOUTS = st.sampled_from(("all", "left", "left", "right", "holes"))
SEEDS = st.integers(0, 999)
SAMPLES = st.lists(st.integers(0, MOST_SAMPLES - 1), min_size=1, max_size=MOST_SAMPLES).map(tuple)
LATER_FEEDS = st.builds(Feed, st.sampled_from((1, 1, 1, 2, 3, 5, 40)), LAYOUTS, SEEDS)  # few go in place, many do not
FIRST_FEEDS = st.builds(Feed, st.integers(1, 18) | st.integers(1, 50), LAYOUTS, SEEDS)
OPERATIONS = st.one_of(
    LATER_FEEDS,
    LATER_FEEDS,
    st.just(Record()),
    st.builds(Crop, st.integers(0, 6) | st.integers(0, 50), st.booleans()),
    st.builds(Crop, st.integers(0, 6), st.just(True)),
    st.builds(Reorder, SAMPLES),
    st.builds(Repeat, st.integers(1, 3)),
    st.builds(Select, SAMPLES),
    st.just(Copy()),
    st.builds(Restart, FIRST_FEEDS),
)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    samples = draw(st.integers(1, 3))
    lengths = st.lists(st.integers(0, 24), min_size=samples, max_size=samples).map(tuple)
    return Scenario(
        samples,
        draw(FIRST_FEEDS),
        tuple(draw(st.lists(OPERATIONS, min_size=1, max_size=8))),
        draw(st.none() | lengths | lengths),
        draw(st.booleans()),
    )


# ------------------------------------------------------------------------------------------------- the machine


@dataclass
class Sample:
    """One row: its slots so far, and how many of its tokens are the prompt."""

    slots: list[int | None]
    prompt: int | None

    @property
    def tokens(self) -> list[int]:
        return [token for token in self.slots if token is not None]


@dataclass
class Machine:
    """A cache and what it ought to know. To be made and used while the policy is on the model."""

    scenario: Scenario
    by_phase: bool
    cache: Cache = field(init=False)
    samples: list[Sample] = field(init=False)
    recording: bool = False
    recorded: int = 0
    """Slots fed since recording began, or since the last crop."""
    first_width: int = 0
    """Slots of the first forward pass."""
    declared: bool = field(init=False)
    compared: int = 0
    """Forward passes whose logits were compared."""
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        lengths = self.scenario.declared
        self.declared = lengths is not None
        given = None if lengths is None else torch.tensor(lengths)
        if self.scenario.explicit:
            self.cache = swaa.PolicyCache(model(), given)
        else:
            self.cache = DynamicCache()
            if given is not None:
                swaa.declare_prompt(self.cache, given)
        self.samples = [Sample([], None if lengths is None else lengths[i]) for i in range(self.scenario.samples)]

    @property
    def width(self) -> int:
        return len(self.samples[0].slots)

    def run(self) -> None:
        self.feed(self.scenario.first)
        for index, operation in enumerate(self.scenario.operations):
            self.do(operation)
            if not isinstance(operation, Feed | Restart):
                self.feed(Feed(1 + (index % 3 == 2), "all", seed=1000 + index))

    def do(self, operation: Operation) -> None:
        self.done.add(type(operation).__name__)
        size = len(self.samples)
        match operation:
            case Feed():
                self.feed(operation)
            case Record():
                self.cache.activate_past_recording()
                if not self.recording:
                    self.recording, self.recorded = True, 0
            case Crop(count, recorded):
                self.crop(min(count, self.recorded) if recorded else count)
            case Reorder(chosen):
                order = [chosen[i % len(chosen)] % size for i in range(size)]
                self.cache.reorder_cache(torch.tensor(order))
                self.choose(order)
            case Repeat(times):
                if size * times <= MOST_SAMPLES:
                    self.cache.batch_repeat_interleave(times)
                    self.choose([i for i in range(size) for _ in range(times)])
            case Select(chosen):
                order = [index % size for index in chosen]
                self.cache.batch_select_indices(torch.tensor(order))
                self.choose(order)
            case Copy():
                original, self.cache = self.cache, copy.deepcopy(self.cache)
                self.pass_through(original, torch.full((size, 1), 3), torch.ones(size, 1, dtype=torch.bool))
            case Restart(feed):
                self.cache.reset()
                assert self.cache.get_seq_length() == 0
                self.recording, self.recorded = False, 0  # it may go on recording; that is its own affair
                if self.declared:
                    swaa.declare_prompt(self.cache, torch.tensor([sample.prompt for sample in self.samples]))
                prompts = [sample.prompt if self.declared else None for sample in self.samples]
                self.samples = [Sample([], prompt) for prompt in prompts]
                self.feed(feed)

    def choose(self, order: list[int]) -> None:
        self.samples = [Sample(list(self.samples[i].slots), self.samples[i].prompt) for i in order]

    def crop(self, count: int) -> None:
        """Refused or right; and if what goes was recorded, never refused."""
        into_the_prompt = self.by_phase and not self.declared and self.width - count < self.first_width
        if count >= self.width or into_the_prompt:  # the latter is refused by the next forward pass: test_generate
            return
        if count <= self.recorded:
            self.cache.crop(-count)
        else:
            try:
                self.cache.crop(-count)
            except swaa.UserError:
                self.done.add("a crop was refused")
                return
            self.done.add("a crop of what was not recorded")
        for sample in self.samples:
            del sample.slots[len(sample.slots) - count :]
        self.recorded = 0

    def feed(self, feed: Feed) -> None:
        """A forward pass, and the comparison."""
        later = self.width > 0
        width = 1 if later and self.by_phase and not self.declared else feed.width  # or it is refused
        self.first_width = self.first_width if later else width
        random = torch.Generator().manual_seed(feed.seed)
        tokens = torch.randint(3, WORDS, (len(self.samples), width), generator=random)
        counts = torch.randint(0, width + 1, (len(self.samples), 1), generator=random)
        slots = torch.arange(width)
        real = {
            "all": torch.ones_like(tokens, dtype=torch.bool),
            "left": slots >= width - counts,
            "right": slots < counts,
            "holes": torch.randint(0, 2, tokens.shape, generator=random).bool(),
        }[feed.layout]
        logits = self.pass_through(self.cache, tokens, real)
        for row, sample in enumerate(self.samples):
            sample.slots += [
                token if is_real else None
                for token, is_real in zip(tokens[row].tolist(), real[row].tolist(), strict=True)
            ]
            if sample.prompt is None:
                sample.prompt = int(real[row].sum())
        if self.recording:
            self.recorded += width
        assert self.cache.get_seq_length() == self.width
        for row, sample in enumerate(self.samples):
            new = int(real[row].sum())
            if new:
                torch.testing.assert_close(logits[row, real[row]], self.anew(sample)[-new:], **CLOSE)
        self.compared += 1

    def pass_through(self, kept: Cache, tokens: Tensor, real: Tensor) -> Tensor:
        before = torch.tensor([[token is not None for token in sample.slots] for sample in self.samples])
        mask = torch.cat([before.bool().view(len(self.samples), -1), real], -1)
        given: dict[str, Any] = {}
        if not mask.all():
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            given = {"attention_mask": mask.long(), "position_ids": positions}
        with torch.no_grad():
            logits: Tensor = model()(tokens, past_key_values=kept, **given).logits
        return logits

    def anew(self, sample: Sample) -> Tensor:
        """[T, V]: the sample's logits, computed at once from its tokens alone."""
        with torch.no_grad():
            ids, prompts = torch.tensor([sample.tokens]), torch.tensor([sample.prompt])
            logits: Tensor = model()(ids, use_cache=False, prompt_lengths=prompts).logits[0]
        return logits


def run(scenario: Scenario, policy: AttentionPolicy) -> Machine:
    try:
        bind(policy, LAYERS, HEADS)
    except swaa.UserError as refusal:
        if "chooses no" not in str(refusal):
            raise
        reject()  # by design: a part that no layer or head falls to
    with swaa.apply_policy(model(), policy):
        machine = Machine(scenario, policy_on(model().config).by_phase)
        machine.run()
    return machine


HAND = tuple(composition for composition in EIGHT if composition is not LAYERS_DIFFER)  # that one has three layers
BY_HAND = [
    Scenario(2, Feed(14, "left", 1), (Feed(1, "all", 2), Reorder((1, 0)), Feed(1, "all", 3)), None, False),
    Scenario(2, Feed(14, "left", 1), (Record(), Feed(5, "all", 2), Crop(3, True), Feed(2, "all", 3)), (14, 9), True),
    Scenario(1, Feed(9, "all", 4), (Repeat(3), Select((2, 0)), Copy(), Restart(Feed(11, "all", 5))), (9,), True),
    Scenario(3, Feed(16, "holes", 6), (Feed(3, "right", 7), Feed(5, "left", 8), Feed(3, "holes", 9)), (3, 20, 8), True),
    Scenario(1, Feed(9, "left", 4), (Feed(1, "all", 5), Feed(4, "right", 6), Feed(2, "all", 7)), (6,), True),
    Scenario(
        3, Feed(9, "left", 2), (Record(), Feed(4, "right", 3), Reorder((2, 0, 1)), Crop(4, True)), (9, 9, 9), True
    ),
    Scenario(
        2, Feed(9, "all", 8), (Reorder((1, 0)), Feed(3, "all", 3), Select((1,)), Feed(2, "all", 4)), (3, 30), True
    ),
    Scenario(2, Feed(2, "all", 1), tuple(Feed(1, "right", seed) for seed in range(12)), (1, 2), False),
]


@pytest.mark.parametrize("scenario", BY_HAND, ids=range(len(BY_HAND)))
@pytest.mark.parametrize("composition", HAND, ids=str)
def test_some_sequences(composition: Composition, scenario: Scenario) -> None:
    assert run(scenario, composition.policy).compared == 1 + len(scenario.operations)


@pytest.mark.slow
@SHARE
@given(scenario=scenarios(), composition=st.sampled_from(HAND))
def test_sequences_under_the_compositions(scenario: Scenario, composition: Composition) -> None:
    machine = run(scenario, composition.policy)
    assert machine.compared == 1 + len(scenario.operations), "every operation is followed by a forward pass"
    tell(machine)


@pytest.mark.slow
@SHARE
@given(scenario=scenarios(), recipe=recipes(MODEL, ZOO_ATOMS))
def test_sequences_under_random_policies(scenario: Scenario, recipe: oracle.Recipe) -> None:
    assert_holds_what_is_live(run(scenario, build(recipe)), recipe)


@pytest.mark.slow
@SHARE
@given(scenario=scenarios(), recipe=recipes(MODEL, ALL_ATOMS, max_leaves=3))
def test_sequences_under_policies_of_other_shapes(scenario: Scenario, recipe: oracle.Recipe) -> None:
    """Chunks, stripes, dilated windows: keys die out of order, all at once, or never."""
    with predicates_of_tests():
        assert_holds_what_is_live(run(scenario, build(recipe)), recipe)


def tell(machine: Machine) -> None:
    """To hypothesis's statistics: what was done."""
    for what in sorted(machine.done):
        event(what)


def assert_holds_what_is_live(machine: Machine, recipe: oracle.Recipe) -> None:
    """The forward passes above ask for the next few queries only; this asks for all."""
    tell(machine)
    for layer, heads in enumerate(held(machine.cache)):
        assert len(heads) == KV_HEADS
        for kv_head, stored in enumerate(heads):
            for row, sample in enumerate(machine.samples):
                following = len(sample.tokens)
                for key in set(range(following)) - set(stored.of_row(row)):
                    assert not any(
                        oracle.is_live(recipe, MODEL, layer, head, key, following, sample.prompt, following + 60)
                        for head in heads_of(kv_head, KV_HEADS)
                    ), f"layer {layer}, KV head {kv_head}, sample {row}: key {key} is gone"


def test_chunks_die_together() -> None:
    """At the end of a chunk nothing is held; going back into it is refused, and changes nothing."""
    recipe = Scope(Atom("Chunked", (4,)), Place(layers=0))
    with predicates_of_tests(), swaa.apply_policy(model(), build(recipe)):
        machine = Machine(Scenario(1, Feed(8, "all", 1), (), None, True), by_phase=False)
        machine.run()
        assert [[stored.of_row(0) for stored in heads] for heads in held(machine.cache)] == [
            [[], []],
            [list(range(8))] * 2,
        ]
        machine.crop(1)
        assert machine.width == 8, "refused"
        for seed in range(6):
            machine.feed(Feed(1, "all", seed))


class TestMutatedBookkeeping:
    """The same comparison, with the oracle's own books wrong: it must notice."""

    def assert_caught(self, scenario: Scenario, monkeypatch: pytest.MonkeyPatch, **wrong: Any) -> None:
        for name, method in wrong.items():
            monkeypatch.setattr(Machine, name, method)
        with pytest.raises(AssertionError):
            run(scenario, HAND[1].policy)

    def test_samples_not_reordered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.assert_caught(BY_HAND[0], monkeypatch, choose=lambda self, order: None)

    def test_nothing_cropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.assert_caught(BY_HAND[1], monkeypatch, crop=lambda self, count: self.cache.crop(-count))

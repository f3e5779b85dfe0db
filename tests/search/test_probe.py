"""The probe: its figures against an oracle, prefixes that are shared and change nothing, and the score book."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import swaa
from hf.zoo import BY_TYPE, Architecture
from search.probe_oracle import BASE, BOTH, items_of, measured
from swaa import FullAttention, SlidingWindow
from swaa.errors import UserError
from swaa.search.book import ScoreBook
from swaa.search.choices import Unit, first_difference, in_order, policy_of
from swaa.search.probe import METRICS, Probe
from swaa.search.scorers import parse_scorer

LAYERS, HEADS = 3, 4
EVERY = range(LAYERS)
ITEMS = items_of((9, 3), (14, 1), (11, 4), (14, 2))
CLOSE = {"atol": 2e-4, "rtol": 1e-3}
UNITS = st.one_of(st.integers(0, LAYERS - 1), st.tuples(st.integers(0, LAYERS - 1), st.integers(0, HEADS - 1)))


@cache
def llama() -> PreTrainedModel:
    return BY_TYPE["llama"].build()


@cache
def expected(place: int, chosen: frozenset[Unit], phases: bool) -> dict[str, float]:
    return measured(llama(), ITEMS[place], chosen, phases=phases)


def check(probe: Probe, chosen: Collection[Unit], metric: str, *, phases: bool = True) -> None:
    got = probe.measure(chosen, metric)
    wanted = [expected(place, frozenset(chosen), phases)[metric] for place in range(len(ITEMS))]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("phases", [True, False], ids=["prefill", "both"])
@pytest.mark.parametrize("chosen", [(), (1,), (0, 2), EVERY, ((0, 1), (2, 3)), (1, (0, 0))], ids=repr)
def test_figures_are_those_of_loops(chosen: Collection[Unit], phases: bool) -> None:
    probe = Probe(llama(), ITEMS, BASE if phases else BOTH, batch_size=3)
    for metric in METRICS:
        check(probe, chosen, metric, phases=phases)


def test_nll_and_kl_are_metrics_by_name() -> None:
    probe = Probe(llama(), ITEMS, BASE)
    for chosen in ({1}, set(EVERY)):
        assert torch.equal(probe.nll(chosen), probe.measure(chosen, "nll"))
        assert torch.equal(probe.kl(chosen), probe.measure(chosen, "kl"))
        assert torch.equal(probe.exact(chosen), probe.measure(chosen, "exact"))
    assert probe.kl(EVERY).abs().max() < 1e-6


@given(
    st.lists(
        st.tuples(
            st.none() | st.sets(st.integers(0, LAYERS - 1)), st.sets(UNITS, max_size=4), st.sampled_from(METRICS)
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 4),
    st.integers(0, 3),
)
@settings(max_examples=max(5, settings.default.max_examples // 100))
def test_no_order_of_references_and_choices_changes_a_figure(
    asked: list[tuple[set[int] | None, set[Unit], str]], batch_size: int, layers_in_memory: int
) -> None:
    slots = sum(batch.input_ids.numel() for batch in Probe(llama(), ITEMS, BASE, batch_size=batch_size).batches)
    memory = slots * 32 * 4 * layers_in_memory  # 32 float32 numbers a slot
    probe = Probe(llama(), ITEMS, BASE, batch_size=batch_size, memory=memory)
    for reference, chosen, metric in asked:
        if reference is not None:
            probe.start_from(reference)
        check(probe, chosen, metric)


DIFFERENT = (
    *("llama", "gemma2", "gemma3_text", "gpt2", "opt", "gpt_neox", "gpt_oss", "qwen3_moe", "llama4_text"),
    *("deepseek_v3", "cohere2", "phi", "smollm3", "exaone4"),
)


@pytest.mark.parametrize("architecture", DIFFERENT)
def test_sharing_prefixes_gives_what_whole_passes_give(architecture: str) -> None:
    model = BY_TYPE[architecture].build()
    items = ITEMS[:2]
    shared, whole = Probe(model, items, BASE), Probe(model, items, BASE, memory=0)
    for reference in ((), EVERY, (2,)):
        shared.start_from(reference)
        for layer in EVERY:
            chosen = frozenset(reference) ^ {layer}
            torch.testing.assert_close(shared.nll(chosen), whole.nll(chosen), atol=1e-5, rtol=1e-5)
    assert shared._kept.kept_layers == (0, 1), "nothing was shared"
    assert len({float(shared.nll([layer])[0]) for layer in EVERY}) == LAYERS


def test_a_pass_computes_the_layers_from_the_first_difference_on() -> None:
    ran: list[int] = []
    model = BY_TYPE["llama"].build()
    layers = list(model.model.layers)  # type: ignore[arg-type]
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    probe = Probe(model, ITEMS, BASE, batch_size=4)
    probe.start_from([])
    probe.nll([1])
    ran.clear()
    for chosen, wanted in (({2}, [2]), ({1, 2}, [1, 2]), ({0}, [0, 1, 2]), ({(2, 1)}, [2]), ({2}, []), (set(), [])):
        probe.nll(chosen)
        assert ran == wanted, chosen
        ran.clear()
    assert list(model.model.layers) == layers, "the layers are in their places again"  # type: ignore[arg-type]
    before = probe.evaluations
    probe.nll({1, (2, 0)})  # two layers of three, four items
    assert probe.evaluations - before in (2, 3)


def test_little_memory_keeps_some_layers_only() -> None:
    model = Architecture("llama", {"num_hidden_layers": 7}).build()
    slots = sum(batch.input_ids.numel() for batch in Probe(model, ITEMS, BASE).batches)
    for fit, kept in ((0, ()), (1, (5,)), (2, (2, 5)), (3, (1, 3, 5)), (5, (1, 3, 5)), (6, tuple(range(6)))):
        probe = Probe(model, ITEMS, BASE, memory=slots * 32 * 4 * fit)
        assert probe._kept.kept_layers == kept


def gemma3n(layers: int, readers: int) -> PreTrainedModel:
    """Its last layers read the keys of earlier ones: of the last that have their own, one of each kind."""
    kinds = ["sliding_attention", "full_attention"] * (layers // 2)
    return Architecture(
        "gemma3n_text",
        {
            "num_kv_shared_layers": readers,
            "num_hidden_layers": layers,
            "sliding_window": 7,
            "layer_types": kinds,
            "vocab_size_per_layer_input": 40,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * layers,
        },
    ).build()


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize(("layers", "readers"), [(4, 1), (8, 2), (8, 3)])
def test_a_model_whose_layers_hand_things_past_each_other_shares_nothing(
    layers: int, readers: int, interrupted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where those that hand and those that read are all in the upper half; and after a proof that was cut off."""
    model, ran = gemma3n(layers, readers), list[int]()
    probe, whole = Probe(model, ITEMS, BOTH), Probe(model, ITEMS, BOTH, memory=0)
    probe.start_from([])
    if interrupted:

        def cut(*_: object) -> None:
            ran.append(1)
            if len(ran) == 2:  # the first was the reference's own pass
                raise KeyboardInterrupt

        hook = model.model.layers[3].register_forward_hook(cut)  # type: ignore[index, union-attr]
        with pytest.raises(KeyboardInterrupt):
            probe.nll([layers - 2])
        hook.remove()
    with caplog.at_level(logging.WARNING):
        for layer in range(layers):
            assert torch.equal(probe.nll([layer]), whole.nll([layer])), layer
    assert caplog.text.count("its layers cannot run apart") == 1


def test_the_model_is_left_as_it_was() -> None:
    model = BY_TYPE["llama"].build()
    model.train()
    state, before = set(model.state_dict()), model.config._attn_implementation
    probe = Probe(model, ITEMS, BASE)
    probe.start_from([])
    probe.kl([1])
    assert model.training
    assert set(model.state_dict()) == state
    assert model.config._attn_implementation == before
    assert swaa.saved_policy(model.config) is None


def test_the_book_is_asked_before_the_model(tmp_path: Path) -> None:
    path = tmp_path / "made" / "book.jsonl"
    first = Probe(llama(), ITEMS, BASE, book=ScoreBook(path))
    first.start_from([])
    wanted = {
        (metric, chosen): first.measure(chosen, metric) for metric in METRICS for chosen in ((), (1,), (2, (0, 1)))
    }
    again = Probe(llama(), ITEMS, BASE, book=ScoreBook(path))
    again.start_from([])
    for (metric, chosen), values in wanted.items():
        assert torch.equal(again.measure(chosen, metric), values)
    assert again.evaluations == 0


def test_a_torn_line_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    wanted = Probe(llama(), ITEMS, BASE, book=ScoreBook(path)).nll([1])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    probe = Probe(llama(), ITEMS, BASE, book=ScoreBook(path))
    assert torch.equal(probe.nll([1]), wanted)
    probe.nll([2])
    assert len(ScoreBook(path)) == len(ScoreBook(path)._values) == 4  # nll and exact of two choices


def test_a_line_that_is_no_score_is_named(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    path.write_text('{"subject": "a", "metric": "nll", "chosen": [], "values": ["x"]}\n')
    with pytest.raises(UserError, match=r"book.jsonl:1: this line is no score .* Delete the file; what was in it"):
        ScoreBook(path)


def test_other_items_weights_or_base_are_another_subject() -> None:
    subject = Probe(llama(), ITEMS, BASE).subject
    assert Probe(BY_TYPE["llama"].build(), ITEMS, BASE).subject == subject
    tuned = BY_TYPE["llama"].build()
    with torch.no_grad():
        tuned.model.layers[1].self_attn.q_proj.weight.mul_(1.001)  # type: ignore[index, union-attr]
    others = (Probe(tuned, ITEMS, BASE), Probe(llama(), ITEMS[:3], BASE), Probe(llama(), ITEMS, BOTH))
    assert len({subject, *(other.subject for other in others)}) == 4


def test_what_cannot_be_measured_is_refused() -> None:
    probe = Probe(llama(), ITEMS, BASE)
    for unit in (3, -1, (0, 4), (3, 0)):
        with pytest.raises(UserError, match="chosen: expected layers from 0 to 2, or pairs of these with heads from 0"):
            probe.nll([unit])
    with pytest.raises(UserError, match="metric: unknown value 'nl'. Did you mean 'nll'?"):
        probe.measure([], "nl")
    with pytest.raises(UserError, match="Probe.items: expected a list of at least one item"):
        Probe(llama(), [], BASE)
    with pytest.raises(UserError, match=r"item item-0: it has 129 tokens, and the model's context is 128"):
        Probe(llama(), items_of((120, 10)), BASE)
    model = BY_TYPE["llama"].build()
    mend = "Remove it, or apply FullAttention\\(\\) on top."
    with (
        swaa.apply_policy(model, SlidingWindow(3), "SoftCap(9.0)"),
        pytest.raises(
            UserError, match=rf"without a policy on it, .* got SlidingWindow\(3\) with SoftCap\(9.0\). {mend}"
        ),
    ):
        Probe(model, ITEMS, BASE)
    with (
        swaa.apply_policy(model, FullAttention(), "SoftCap(9.0)"),
        pytest.raises(UserError, match=r"got FullAttention\(\) with SoftCap\(9.0\). Remove"),
    ):
        Probe(model, ITEMS, BASE)


def test_full_attention_on_top_of_another_policy_is_no_policy() -> None:
    model = BY_TYPE["llama"].build()
    with swaa.apply_policy(model, SlidingWindow(2)), swaa.apply_policy(model, FullAttention(), kernel="dense"):
        probe = Probe(model, ITEMS, BASE)
        probe.start_from([])
        check(probe, [1], "nll")
        check(probe, [1], "kl")
        assert probe.subject == Probe(llama(), ITEMS, BASE).subject
        assert swaa.saved_policy(model.config) == FullAttention()


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = BY_TYPE["llama"].build()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.inf  # type: ignore[index, operator, union-attr]
    probe = Probe(model, ITEMS, BASE, book=ScoreBook(tmp_path / "book.jsonl"))
    message = r"item item-0: its nll is not finite under \(SlidingWindow\(3\) .*, in float32. Check the weights, or set"
    with pytest.raises(UserError, match=message):
        probe.nll([1])
    with pytest.raises(UserError, match=r"item item-2: its own is not finite"):
        probe.remembered("own", lambda: torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, torch.nan], [torch.nan, 0.0]]))
    assert len(ScoreBook(tmp_path / "book.jsonl")) == 0


@given(st.integers(0, 40), st.sampled_from(["add_one", "drop_one", "greedy"]), st.sampled_from(["nll", "kl"]))
@settings(max_examples=max(6, settings.default.max_examples // 50), deadline=None)
def test_a_scorer_cut_off_anywhere_goes_on_to_the_same_scores(passes: int, name: str, metric: str) -> None:
    """In the same process, with what is kept, and in another one, from the book alone."""
    scorer = parse_scorer({"name": name, "metric": metric})
    model, left = BY_TYPE["llama"].build(), [passes]

    def cut(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    wanted = scorer.score(Probe(llama(), ITEMS, BASE, batch_size=3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "book.jsonl"
        probe = Probe(model, ITEMS, BASE, batch_size=3, book=ScoreBook(path))
        hook = model.model.layers[-1].register_forward_hook(cut)  # type: ignore[union-attr, index]
        layers = list(model.model.layers)  # type: ignore[union-attr, arg-type]
        with contextlib.suppress(KeyboardInterrupt):
            scorer.score(probe)
        hook.remove()
        assert list(model.model.layers) == layers  # type: ignore[union-attr, arg-type]
        assert swaa.saved_policy(model.config) is None
        before = path.read_bytes() if path.exists() else b""
        path.write_bytes(before + b'{"subject": "torn')
        again = Probe(model, ITEMS, BASE, batch_size=3, book=ScoreBook(path))
        assert again.book.path == path
        for one in (probe, again):
            assert scorer.score(one) == pytest.approx(wanted, abs=1e-5)
        assert path.read_bytes().startswith(before)


def test_states_of_a_reference_that_was_cut_off_are_not_used() -> None:
    model, ran = BY_TYPE["llama"].build(), list[int]()
    probe = Probe(model, ITEMS, BASE, batch_size=2)
    probe.start_from([])
    check(probe, [2], "nll")

    def cut(*_: object) -> None:
        ran.append(1)
        if len(ran) == 2:  # in the second batch of two
            raise KeyboardInterrupt

    hook = model.model.layers[-1].register_forward_hook(cut)  # type: ignore[union-attr, index]
    probe.start_from([0])
    with pytest.raises(KeyboardInterrupt):
        probe.nll([0, 2])
    hook.remove()
    probe.start_from([])
    check(probe, [1], "nll")


def test_two_books_of_one_file_lose_nothing(tmp_path: Path) -> None:
    one, other = ScoreBook(tmp_path / "book.jsonl"), ScoreBook(tmp_path / "book.jsonl")
    for place in range(20):
        (one if place % 2 else other).add("s", "nll", frozenset([place]), torch.full((2000,), float(place)))
    found = ScoreBook(tmp_path / "book.jsonl")
    assert [float(value[0]) for place in range(20) if (value := found.find("s", "nll", [place])) is not None] == [
        *map(float, range(20))
    ]


def test_a_book_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    book = ScoreBook(tmp_path / "file" / "book.jsonl")
    with pytest.raises(UserError, match=r"score book .*book.jsonl: .*\. Choose another folder."):
        book.add("s", "nll", frozenset(), torch.zeros(1))
    assert book.find("s", "nll") is None
    with pytest.raises(UserError, match=r"score book .*: Is a directory. Choose another folder."):
        ScoreBook(tmp_path)


def test_a_model_with_layers_that_do_not_attend_is_refused() -> None:
    lfm = Architecture("lfm2", {"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3}).build()
    with pytest.raises(UserError, match="layer 0 of 'lfm2' is 'conv', not attention"):
        Probe(lfm, ITEMS, BASE)


def test_the_policy_of_a_choice() -> None:
    size = {"num_layers": 4, "num_heads": 2}
    assert policy_of(BASE, [3, 1], **size) == FullAttention().on_layers([1, 3], otherwise=BASE)
    assert policy_of(BASE, [], **size) == BASE
    assert policy_of(BASE, range(4), **size) == FullAttention()
    assert policy_of(BASE, [(0, 0), (0, 1)], **size) == policy_of(BASE, [0], **size)
    heads = FullAttention().on_heads([1], otherwise=BASE)
    assert policy_of(BASE, [(2, 1), 0], **size) == FullAttention().on_layers(
        [0], otherwise=heads.on_layers([2], otherwise=BASE)
    )
    assert policy_of(SlidingWindow(3), [0]) == FullAttention().on_layers([0], otherwise=SlidingWindow(3))


def test_units_and_their_order() -> None:
    assert first_difference({0, 3}, {3, (2, 1)}) == 0
    assert first_difference({3}, {3, (2, 1)}) == 2
    assert first_difference({3}, {3}) is None
    assert in_order({(2, 0), 3, (0, 1), 0}) == (0, (0, 1), (2, 0), 3)

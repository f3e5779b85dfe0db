"""The zoo against its loops: every policy and pattern, in every reading, at its examples and at drawn parameters.

Those that look ahead or depend on content have tests of their own.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

import oracle
import swaa
import zoo_oracle
from oracle import Contiguous, Packed, Padded, Scene
from strategies import BLOCK_SIZES, layout_of, scenes
from swaa import AttentionPolicy, SlidingWindow, parse_policy, policy_to_dict
from swaa.compiler import block_mask, dense_mask, live_keys
from swaa.compiler.kernel import mask_mod
from swaa.compiler.picture import mask_pictures
from swaa.compiler.refine import block_verdicts
from swaa.policies import bind, get_pattern, get_policy, zoo, zoo_entries
from swaa.policies.registry import find
from swaa.report.draw import to_text

LAYERS, HEADS = 4, 4  # every example fits a model of this size
HUNDREDTH = settings(max_examples=max(5, settings.default.max_examples // 100))

Call = tuple[str, tuple[Any, ...]]


def has_its_own_tests(policy: AttentionPolicy) -> bool:
    """Does it look ahead, or depend on more than positions?"""
    return any(layer.looks_ahead or layer.by_content for layer in bind(policy, LAYERS, HEADS).layers)


def example_calls(name: str, kind: str) -> list[Call]:
    """The name with the arguments of each example."""
    if kind == "pattern":
        return [(name, tuple(call.values())) for call in get_pattern(name).calls]
    return [(name, tuple(policy.parameters().values())) for policy in get_policy(name).examples()]


ENTRIES = [entry for entry in zoo_entries() if not has_its_own_tests(entry.examples[0].policy)]
NAMES = [entry.name for entry in ENTRIES]
CALLS = [call for entry in ENTRIES for call in example_calls(entry.name, entry.kind)]


def test_every_one_has_its_loop() -> None:
    assert set(NAMES) == zoo_oracle.KEYS.keys() | zoo_oracle.PATTERNS.keys()


# ----------------------------------------------------------------------------------------- parameters to draw

_FEW = st.integers(1, 12)
_COUNT = st.integers(0, 6)
_SEED = st.integers(0, 2**31 - 1)
_HEADS = st.sets(st.integers(0, HEADS - 1)).map(lambda chosen: tuple(sorted(chosen)))
_LAYERS = st.sets(st.integers(0, LAYERS - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


def _ascending(low: int, high: int, least: int = 1) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(low, high), min_size=least, max_size=4).map(lambda chosen: tuple(sorted(chosen)))


ARGUMENTS: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "FullAttention": st.just(()),
    "SlidingWindow": st.tuples(_FEW),
    "SinkTokens": st.tuples(_FEW),
    "DilatedWindow": st.tuples(st.integers(1, 8), st.integers(1, 6)),
    "ChunkedAttention": st.tuples(_FEW),
    "BlockWindow": st.tuples(st.integers(1, 8), st.integers(1, 4)),
    "RandomBlocks": st.tuples(st.integers(1, 8), st.sets(_SEED, min_size=1, max_size=3).map(sorted).map(tuple)),
    "RandomKeys": st.tuples(st.integers(1, 24), _SEED),
    "StridedAttention": st.tuples(_FEW),
    "FixedAttention": _FEW.flatmap(lambda stride: st.tuples(st.just(stride), st.integers(1, stride))),
    "EveryNthToken": _FEW.flatmap(lambda step: st.tuples(st.just(step), st.integers(1, step), st.integers(0, 20))),
    "LogSparse": st.just(()),
    "DocumentIsolation": st.tuples(_ascending(1, 24)),
    "VerticalLines": st.tuples(_ascending(0, 24)),
    "SlashLines": st.tuples(_ascending(0, 24)),
    "GlobalTokens": st.tuples(_ascending(0, 24)),
    "AShape": st.tuples(_COUNT, _FEW),
    "StreamingLLM": st.tuples(_COUNT, _FEW),
    "LMInfinite": st.tuples(_COUNT, _FEW),
    "Longformer": st.tuples(st.integers(1, 8), _ascending(0, 24, least=0), st.integers(1, 4)),
    "BigBird": st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), _COUNT),
    "StreamingHeads": st.tuples(st.lists(_HEADS, max_size=LAYERS).map(tuple), _COUNT, _FEW),
    "LazyLayers": st.tuples(_LAYERS, _COUNT, _FEW),
    "WindowsByLayer": st.tuples(st.lists(_FEW, min_size=1, max_size=LAYERS).map(tuple), _COUNT),
    "WindowPyramid": st.tuples(_FEW, _FEW, st.integers(2, LAYERS), _COUNT),
    "WindowsByPhase": st.tuples(_FEW, _FEW, _COUNT),
    "InterleavedLayers": st.tuples(_FEW, st.integers(2, 5), _COUNT),
    "VerticalSlash": st.tuples(_ascending(0, 24), _ascending(0, 24)),
}


# ------------------------------------------------------------------------------- masks, blocks and the kernel


def expected(call: Call, layer: int, head: int, scene: Scene) -> list[list[list[bool]]]:
    """[sample][query][key] by the loops."""

    def row(query: oracle.Slot, keys: Sequence[oracle.Slot]) -> list[bool]:
        if query.position is None:
            return [False] * len(keys)
        seen = zoo_oracle.keys(*call, layer, head, query.phase, query.position)
        return [key.position in seen and key.document == query.document for key in keys]

    return [[row(query, keys) for query in queries] for queries, keys in oracle.slots(scene)]


def check(call: Call, layer: int, scene: Scene, block_size: tuple[int, int]) -> None:
    """The dense mask and the verdicts on blocks are the loops'."""
    bound, layout = bind(find(call[0])(*call[1]), LAYERS, HEADS).layers[layer], layout_of(scene)
    mask = dense_mask(bound, layout)
    for heads, head in bound.groups:
        verdicts = block_verdicts(head, layout, block_size)
        for each in {heads[0], heads[-1]}:
            truth = expected(call, layer, each, scene)
            for b, rows in enumerate(truth):
                shown = mask[b if len(mask) > 1 else 0, each if mask.shape[1] > 1 else 0]
                assert shown.tolist() == rows, (call, layer, each)
        for b, rows in enumerate(truth):
            at = b if len(verdicts.visible_BMN) > 1 else 0
            for m, n, some, whole in oracle.blocks(rows, *block_size):
                assert bool(verdicts.visible_BMN[at, m, n]) == some, (call, layer, m, n)
                assert bool(verdicts.full_BMN[at, m, n]) == whole, (call, layer, m, n)


@pytest.mark.parametrize("name", NAMES)
@HUNDREDTH
@given(data=st.data())
def test_every_layout_at_drawn_parameters(name: str, data: st.DataObject) -> None:
    """Padding left and right, packed documents, cached queries, phases that change, and blocks that overhang."""
    args, layer = data.draw(ARGUMENTS[name]), data.draw(st.integers(0, LAYERS - 1))
    check((name, args), layer, data.draw(scenes()), data.draw(BLOCK_SIZES))


REAL = tuple(tuple(left <= slot < right for slot in range(70)) for left, right in ((0, 70), (30, 70), (10, 60)))
SCENES = {
    "contiguous": Contiguous(150, 150, prompts=100),
    "padded": Padded(REAL, prompts=(70, 20, 0)),
    "packed": Packed(((40, 20, 10),), prompts=((30, 0, 10),)),
}


def blocks_of(mask: BlockMask) -> list[Any]:
    """The partial and the full blocks of each row of blocks."""
    listed = []
    for counts, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        rows = zip(counts.flatten().tolist(), indices.flatten(0, -2).tolist(), strict=True)
        listed.append((tuple(counts.shape), [row[:count] for count, row in rows]))
    return listed


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_examples(call: Call, scene: str) -> None:
    """In every distinct layer: the loops' mask, and torch's lists of blocks, from the mask_mod that kernels get."""
    layout = layout_of(SCENES[scene])
    for layer, indices in bind(find(call[0])(*call[1]), LAYERS, HEADS).distinct.items():
        check(call, indices[0], SCENES[scene], (16, 32))
        mine = block_mask(layer, layout, block_size=(32, 16))
        batch, heads = layout.batch_size if layout.batch_size > 1 else None, HEADS if layer.by_head else None
        size = layout.query_length
        theirs = create_block_mask(mask_mod(layer, layout), batch, heads, size, size, "cpu", BLOCK_SIZE=(32, 16))
        assert blocks_of(mine) == blocks_of(theirs)


IMPLYING = [name for name in zoo_oracle.KEYS if "implies" in vars(get_policy(name))]


@pytest.mark.parametrize("name", IMPLYING)
@HUNDREDTH
@given(data=st.data())
def test_implications_hold(name: str, data: st.DataObject) -> None:
    """A wrong ``implies`` would simplify a policy into another one. All pairs of what is drawn."""
    calls = [(name, args) for args in data.draw(st.lists(ARGUMENTS[name], min_size=6, max_size=8))]
    calls += [("SlidingWindow", (size,)) for size in range(1, 12)]
    for one, two in itertools.product(calls, repeat=2):
        if find(one[0])(*one[1]).implies(find(two[0])(*two[1])):
            for q in range(50):
                assert zoo_oracle.keys(*one, 0, 0, "prefill", q) <= zoo_oracle.keys(*two, 0, 0, "prefill", q)


# -------------------------------------------------------------------------------------------------- retention

KEEPS_ALL = {"RandomBlocks", "RandomKeys", "BigBird"}
"""What is drawn at random may be drawn of any key, later. The others keep no key in vain."""


def is_seen_later(call: Call, layer: int, head: int, key: int, start: int, prompt: int) -> bool:
    """By one of the next queries, or by one at the distance of a power of two (which lies 2**30 ahead)?"""
    later = {*range(max(start, key), start + 90), *(key + 2**power for power in range(31))}
    return any(
        key in zoo_oracle.keys(*call, layer, head, "prefill" if q < prompt else "decode", q)
        for q in later
        if q >= start and (q < 200 or "LogSparse" in call)
    )


@pytest.mark.parametrize("name", NAMES)
@HUNDREDTH
@given(data=st.data())
def test_retention(name: str, data: st.DataObject) -> None:
    """Never drops what is seen later; and once the prompt is read, keeps nothing else."""
    call, layer = (name, data.draw(ARGUMENTS[name])), data.draw(st.integers(0, LAYERS - 1))
    start, prompt = data.draw(st.integers(0, 40)), data.draw(st.sampled_from((0, 50)))
    bound = bind(find(name)(*call[1]), LAYERS, HEADS).layers[layer]
    prompts = torch.tensor([prompt]) if prompt else None
    held = torch.arange(min(start, 30))[None]  # a cache holds no key of a query still to come
    live = live_keys(bound, held, torch.tensor([start]), prompts, num_kv_heads=HEADS)[0]
    if name == "LogSparse" and not prompt:
        assert live.all(), "a query that lies 2**30 ahead sees it"
        return
    for head, row in enumerate(live.tolist()):  # one row where heads do not differ
        for key, kept in enumerate(row):
            needed = is_seen_later(call, layer, head, key, start, prompt)
            assert kept >= needed, (call, key, "is dropped, and a later query sees it")
            if not prompt and name not in KEEPS_ALL:
                assert kept == needed, (call, key, "is kept in vain")


# ------------------------------------------------------------------------------------- text, YAML and drawing


@pytest.mark.parametrize("entry", zoo_entries(), ids=lambda entry: entry.name)
def test_what_is_written_comes_back(entry: Any) -> None:
    for example in entry.examples:
        assert parse_policy(example.text) == example.policy == parse_policy(dict(example.mapping))
        assert parse_policy(yaml.safe_load(yaml.safe_dump(dict(example.mapping)))) == example.policy
        assert eval(repr(example.policy), vars(swaa)) == example.policy == parse_policy(repr(example.policy))
        mapping = policy_to_dict(example.policy)
        assert parse_policy(json.loads(json.dumps(mapping))) == example.policy
        assert parse_policy(yaml.safe_load(yaml.safe_dump(mapping))) == example.policy


@pytest.mark.parametrize("call", [call for name in NAMES for call in CALLS if call[0] == name][::2], ids=str)
def test_drawing_shows_the_loops(call: Call) -> None:
    policy = find(call[0])(*call[1])
    pictures = mask_pictures(policy, num_layers=LAYERS, num_heads=HEADS, length=40, prompt_length=30, resolution=40)
    assert to_text(pictures).count("layers") == len(pictures) >= len(bind(policy, LAYERS, HEADS).distinct)
    for picture in pictures:
        layer, head = picture["layers"][0], (picture["heads"] or [0])[0]
        rows = expected(call, layer, head, Contiguous(40, 40, prompts=30))[0]
        drawn = ["".join("██" if shown else "··" for shown in row[: q + 1]) for q, row in enumerate(rows)]
        text = to_text([picture]).splitlines()
        assert [line for line in text if set(line) <= set("█·")] == drawn


# ----------------------------------------------------------------------------------------------------- random


def test_random_blocks_fall_evenly_on_all_earlier_ones() -> None:
    """The place of the drawn block among the earlier ones, in ten classes, over many query blocks and seeds."""
    places = torch.zeros(10)
    for seed in range(6):
        own, block = torch.arange(500, 1500), torch.arange(1500)
        drawn = (swaa.RandomBlocks(1, (seed,)).visible(own[:, None], block) & (block < own[:, None])).int()
        assert (drawn.sum(-1) == 1).all(), "one earlier block each, and not its own"
        places += torch.histc(drawn.argmax(-1) / own, 10, 0, 1)
    chances = places.sum() / 10
    assert ((places - chances) ** 2 / chances).sum() < 27.9, "chi-square, 9 degrees of freedom, p = 0.001"


def test_each_earlier_block_is_drawn_about_equally_often() -> None:
    drawn = torch.zeros(8)
    for seed in range(1600):
        drawn += swaa.RandomBlocks(4, (seed,)).visible(torch.tensor(35), torch.arange(0, 32, 4)).float()
    assert drawn.sum() == 1600
    assert ((drawn - 200) ** 2 / 200).sum() < 24.3, "chi-square, 7 degrees of freedom, p = 0.001"


@pytest.mark.parametrize("seed", [0, 1, 77])
def test_random_keys_have_a_windows_budget_at_every_query(seed: int) -> None:
    """400 queries far apart; the budget of each is a sum of independent draws, so its spread is known."""
    window, q = 16, torch.arange(100, 4100, 10)[:, None]
    k = torch.arange(4100)
    seen = swaa.RandomKeys(window, seed).visible(q, k) & (k <= q)
    budget = (SlidingWindow(window).visible(q, k) & (k <= q)).sum(-1)
    chance = (window - 1) / q[:, 0]
    away = (seen.sum(-1) - budget) / (q[:, 0] * chance * (1 - chance)).sqrt()
    assert abs(away.mean()) < 4 / 20, "the mean of 400 standard numbers has a spread of 1/20"
    assert 0.8 < away.std() < 1.2
    drawn = seen & (k < q)
    near = (drawn & (q - k <= q // 2)).sum() / drawn.sum()
    assert abs(near - 0.5) < 0.026, "the nearer half of the text is drawn half the time, of 6,000 draws"


def test_random_keys_of_few_tokens_see_all_and_seeds_differ() -> None:
    positions = torch.arange(40)
    q, k = positions[:, None], positions
    assert (swaa.RandomKeys(41).visible(q, k) | (k > q)).all()
    assert (swaa.RandomKeys(1).visible(q, k) & (k <= q)).equal(torch.eye(40, dtype=torch.bool))
    masks = [swaa.RandomKeys(9, seed).visible(q, k) & (k < q) for seed in range(3)]
    assert not masks[0].equal(masks[1])
    assert not masks[1].equal(masks[2])


# ---------------------------------------------------------------------------------------------- what it takes


def code_lines(source: str) -> int:
    """Lines with code on them: neither blank, nor comment, nor docstring."""
    documented = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    with_code = {
        line for token in tokens if token.type not in silent for line in range(token.start[0], token.end[0] + 1)
    }
    return len(with_code - documented)


COUNTED = '''"""Not this.

Nor this."""

import os  # this one


def f():
    """Not this."""
    # nor this
    return """and this,
    to its

    end"""
'''


def test_lines_of_code_are_counted() -> None:
    assert code_lines(COUNTED) == 6


@pytest.mark.parametrize("file", sorted(Path(zoo.__file__).parent.glob("[a-z]*.py")), ids=lambda file: file.name)
def test_each_is_at_most_40_lines_of_code(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert code_lines(source) <= 40 * max(1, source.count("\n@register_"))


@pytest.mark.parametrize("entry", zoo_entries(), ids=lambda entry: entry.name)
def test_each_says_what_it_is(entry: Any) -> None:
    documented = find(entry.name).__doc__ or ""
    assert entry.summary
    assert entry.summary[0].isupper()
    for name, _ in entry.parameters:
        assert f"        {name}: " in documented, f"{entry.name} does not say what {name} is"
    assert "Source: " in documented or entry.name == "FullAttention"
    assert all(example.policy == parse_policy(example.text) for example in entry.examples)


ERRORS = [
    ("DilatedWindow(0)", "DilatedWindow.window_size: expected an int >= 1 (tokens), got 0"),
    ("DilatedWindow(4, 0)", "DilatedWindow.dilation: expected an int >= 1 (tokens), got 0"),
    ("ChunkedAttention(True)", "ChunkedAttention.chunk_size: expected an int >= 1 (tokens), got True"),
    ("BlockWindow(8, 0)", "BlockWindow.num_blocks: expected an int >= 1 (blocks), got 0"),
    ("RandomBlocks(0)", "RandomBlocks.block_size: expected an int >= 1 (tokens), got 0"),
    ("RandomBlocks(8, ())", "RandomBlocks.seeds: expected a tuple with at least one of ints >= 0 (seeds), got ()"),
    ("RandomBlocks(8, (1, -1))", "RandomBlocks.seeds[1]: expected an int >= 0 (seeds), got -1"),
    ("RandomBlocks(8, 3)", "RandomBlocks.seeds: expected a tuple with"),
    ("RandomKeys(0)", "RandomKeys.num_keys: expected an int >= 1 (tokens), got 0"),
    ("RandomKeys(8, -1)", "RandomKeys.seed: expected an int >= 0 (a seed), got -1"),
    ("RandomKeys(8, 2147483648)", "RandomKeys.seed: expected an int from 0 to 2147483647 (a seed), got 2147483648"),
    ("StridedAttention(1.5)", "StridedAttention.stride: expected an int >= 1 (tokens), got 1.5"),
    ("FixedAttention(4, 5)", "FixedAttention.num_summary: expected an int from 1 to stride (4 tokens), got 5"),
    ("EveryNthToken(4, 5)", "EveryNthToken.width: expected an int from 1 to step (4 tokens), got 5"),
    ("EveryNthToken(4, 1, -1)", "EveryNthToken.start: expected an int >= 0 (tokens), got -1"),
    ("DocumentIsolation(())", "DocumentIsolation.starts: expected a tuple with at least one of ints >= 1 (tokens)"),
    ("DocumentIsolation((0, 4))", "DocumentIsolation.starts[0]: expected an int >= 1 (tokens), got 0"),
    ("DocumentIsolation((4, 4))", "DocumentIsolation.starts[1]: expected an int > 4, the one before, got 4. Sort the"),
    ("VerticalLines((3, 1))", "VerticalLines.positions[1]: expected an int > 3, the one before, got 1"),
    ("SlashLines('1')", "SlashLines.distances: expected a tuple"),
    ("GlobalTokens((1, 2.0))", "GlobalTokens.positions[1]: expected an int >= 0 (tokens), got 2.0"),
    ("AShape(-1, 8)", "AShape.num_sinks: expected an int >= 0 (tokens), got -1"),
    ("LMInfinite(4, 0)", "LMInfinite.window_size: expected an int >= 1 (tokens), got 0"),
    ("Longformer(0)", "Longformer.window_size: expected an int >= 1"),
    ("Longformer(8, (4, 2))", "Longformer.global_positions[1]: expected an int > 4"),
    ("Longformer(8, (), 0)", "Longformer.dilation: expected an int >= 1"),
    ("BigBird(0)", "BigBird.block_size: expected an int >= 1"),
    ("BigBird(8, 0)", "BigBird.window_blocks: expected an int >= 1"),
    ("BigBird(8, global_blocks=-1)", "BigBird.global_blocks: expected an int >= 0 (blocks), got -1"),
    ("BigBird(8, random_blocks=-1)", "BigBird.random_blocks: expected an int >= 0 (blocks), got -1"),
    ("BigBird(8, seed=-1)", "BigBird.seed: expected an int >= 0"),
    ("StreamingHeads(3, 4, 8)", "StreamingHeads.streaming_heads: expected a tuple with one tuple of heads for each"),
    ("StreamingHeads((1, 2), 4, 8)", "StreamingHeads.streaming_heads[0]: expected a tuple with ints >= 0 (heads)"),
    ("StreamingHeads(((1, 1),), 4, 8)", "StreamingHeads.streaming_heads[0][1]: expected an int > 1"),
    ("LazyLayers('x')", "LazyLayers.lazy_layers: expected an int, a slice"),
    ("LazyLayers([])", "LazyLayers.lazy_layers: expected"),
    ("WindowsByLayer(())", "WindowsByLayer.window_sizes: expected a tuple with at least one of ints >= 1"),
    ("WindowsByLayer((8, 0))", "WindowsByLayer.window_sizes[1]: expected an int >= 1"),
    ("WindowPyramid(8, 4, 1)", "WindowPyramid.num_layers: expected an int >= 2 (layers), got 1"),
    ("WindowPyramid(8, 4, 3, -1)", "WindowPyramid.num_sinks: expected an int >= 0"),
    ("WindowPyramid(0, 4, 3)", "WindowPyramid.first_window: expected an int >= 1"),
    ("WindowsByPhase(8, 0)", "WindowsByPhase.decode_window: expected an int >= 1"),
    ("InterleavedLayers(8, 1)", "InterleavedLayers.period: expected an int >= 2 (layers), got 1"),
    ("VerticalSlash((), (0,))", "VerticalSlash.positions: expected a tuple with at least one of ints >= 0"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[text for text, _ in ERRORS])
def test_bad_values_are_named(text: str, message: str) -> None:
    with pytest.raises(swaa.UserError) as told:
        parse_policy(text)
    assert str(told.value).startswith(message)

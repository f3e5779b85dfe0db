"""A decoder's layers: found, their outputs kept, and passes that begin above them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf.zoo import BY_TYPE
from swaa.hf.layers import beginning_after, decoder_layers, ending_after, keeping_outputs

IDS = torch.tensor([[5, 9, 3, 17, 8, 8], [4, 4, 11, 30, 2, 7]])


class Holder(nn.Module):
    """A model inside another module, behind whatever else that has."""

    def __init__(self, model: Any, *others: nn.Module) -> None:
        super().__init__()
        self.config = model.config
        self.others = nn.Sequential(*others)
        self.inner = model


def test_the_decoders_layers_are_told_from_other_lists() -> None:
    model: Any = BY_TYPE["llama"].build()
    adapters = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    heads = nn.ModuleList(layer.mlp for layer in model.model.layers)
    assert decoder_layers(Holder(model, adapters, heads)) is model.model.layers


@pytest.mark.parametrize(
    "spoil",
    [
        lambda layers: nn.ModuleList(list(layers)[::-1]),  # an order that is not theirs
        lambda layers: nn.ModuleList(list(layers)[:2]),
        lambda layers: nn.Sequential(*layers),
    ],
)
def test_layers_kept_in_another_way_are_not_told(spoil: Callable[[nn.ModuleList], nn.Module]) -> None:
    model: Any = BY_TYPE["llama"].build()
    model.model.layers = spoil(model.model.layers)
    assert decoder_layers(model) is None


def layers_of(model: Any) -> nn.ModuleList:
    found = decoder_layers(model)
    assert found is not None
    return found


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt"])
def test_what_is_kept_is_what_the_model_itself_calls_its_hidden_states(architecture: str) -> None:
    model: Any = BY_TYPE[architecture].build()
    layers, kept = layers_of(model), dict[int, Any]()
    with keeping_outputs(layers, [0, 1], kept):
        states = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    assert sorted(kept) == [0, 1]
    for index, output in kept.items():
        mine = output[0] if isinstance(output, tuple) else output
        assert torch.equal(mine, states[index + 1])
        assert not mine.requires_grad, "no graph is kept alive"
    before = dict(kept)
    model(input_ids=IDS.flip(0), use_cache=False)
    assert all(kept[index] is before[index] for index in kept), "nobody listens any more"


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt"])
def test_a_pass_begins_with_the_output_it_is_given(architecture: str) -> None:
    """Another prompt's output makes another prompt's logits."""
    model: Any = BY_TYPE[architecture].build()
    layers, ran, kept = layers_of(model), list[int](), dict[int, Any]()
    original = list(layers)
    other = IDS.flip(1)
    with torch.no_grad(), keeping_outputs(layers, [0, 1, 2], kept):
        wanted = model(input_ids=other, use_cache=False).logits
    for index, layer in enumerate(original):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    for after in range(3):
        ran.clear()
        with torch.no_grad(), beginning_after(layers, after, kept[after]):
            got = model(input_ids=IDS, use_cache=False).logits
        assert torch.equal(got, wanted)
        assert ran == list(range(after + 1, 3))
        assert list(layers) == original


def test_the_layers_are_back_after_an_error() -> None:
    model: Any = BY_TYPE["llama"].build()
    layers, names = layers_of(model), set(model.state_dict())
    original = list(layers)
    with (
        contextlib.suppress(KeyboardInterrupt),
        keeping_outputs(layers, [2], {}),
        beginning_after(layers, 1, torch.ones(1)),
    ):
        assert layers[1] is not original[1]
        assert layers[1].self_attn is original[1].self_attn, "what it is asked, the layer itself answers"
        raise KeyboardInterrupt
    assert list(layers) == original
    assert set(model.state_dict()) == names
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.parametrize("until", [0, 1, 2])
def test_a_pass_that_ends_early_gives_what_a_layer_gives(until: int) -> None:
    model: Any = BY_TYPE["llama"].build()
    layers, kept, found, ran = layers_of(model), dict[int, Any](), list[Any](), list[int]()
    with keeping_outputs(layers, [until], kept):
        model(input_ids=IDS, use_cache=False)
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    with ending_after(layers, until, found):
        model(input_ids=IDS, use_cache=False)
    (output,) = found
    assert torch.equal(output, kept[until])
    assert ran == list(range(until + 1))
    with pytest.raises(KeyError), ending_after(layers, until, found):  # the model's own errors stay
        raise KeyError
    ran.clear()
    model(input_ids=IDS, use_cache=False)
    assert ran == [0, 1, 2], "the next pass goes to its end"


class Gives(nn.Module):
    """A layer that gives a tuple, as those of some models."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None, str]:
        return hidden_states * 2, None, "aside"


def test_tuples_are_kept_and_given_whole() -> None:
    layers, kept = nn.ModuleList([Gives(), Gives()]), dict[int, Any]()
    with keeping_outputs(layers, [0], kept):
        layers[0](torch.ones(2, requires_grad=True))
    assert not kept[0][0].requires_grad
    with beginning_after(layers, 0, kept[0]):
        output, nothing, aside = layers[0](torch.zeros(2))
    assert output.tolist() == [2, 2]
    assert (nothing, aside) == (None, "aside")

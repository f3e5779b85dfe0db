"""Low-rank adapters (LoRA) through PEFT: put on, switched off for a while, saved, loaded and merged.

PEFT is an optional extra, imported when an adapter is put on. Full fine-tuning uses this module, too: a trainable state
is whatever a model trains, by its name.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from swaa.errors import UserError, invalid, unknown

if TYPE_CHECKING:
    from peft import PeftModel

ALL_LINEAR = "all-linear"
"""The target that stands for every linear layer but the output head."""

_HALF = (torch.bfloat16, torch.float16)
_INSTALL = "LoRA needs the library peft, which is not installed. Run: pip install 'swaa[peft]'"


def add_lora(
    model: PreTrainedModel,
    *,
    r: int = 16,
    alpha: float = 32,
    rslora: bool = True,
    dropout: float = 0.1,
    targets: Sequence[str] | str = ("q_proj", "k_proj", "v_proj"),
    seed: int | None = None,
    in_float32: bool = True,
) -> PeftModel:
    """A model with a LoRA adapter that computes what it did before, until it is trained: only the adapter is trainable.

    The defaults are those of arXiv 2512.10411. The model is wrapped in place: the one that was given runs the adapter,
    too. With gradient checkpointing, use the kind that is not reentrant: what goes into a layer may have no gradient.

    Args:
        model: a transformers model without an adapter; a policy may be on it.
        r: the adapter's rank.
        alpha: its scale: the update is ``alpha / sqrt(r)`` times the product, or ``alpha / r`` without ``rslora``.
        rslora: rank-stabilised scaling.
        dropout: probability of dropping an input of the adapter, in training only.
        targets: linear layers by the end of their name: ``"q_proj"``, ``"mlp.up_proj"``, or ``"all-linear"`` for all
            but the output head. Each of them has to match. Fused projections are named as such (``"query_key_value"``).
        seed: of the adapter's weights; None draws them from torch's global generator.
        in_float32: keep the adapter of a half-precision model in float32, as stable training needs; else it has the
            dtype of the layer below, which halves its memory and that of its optimizer. FSDP2 takes both: it needs one
            dtype among the weights that are trained.

    Raises:
        UserError: PEFT is missing; a value is out of its range; the model has an adapter already; a target matches no
            linear layer, or one whose weight is tied to another layer's.
    """
    _check_options(r, alpha, dropout)
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise UserError(_INSTALL) from error
    if _adapter_layers(model):
        raise UserError("the model already has an adapter. Merge it first: swaa.hf.lora.merged(model).")
    if not isinstance(model, PreTrainedModel):
        mend = "Load one with swaa.load, and add the adapter before wrapping it."
        raise invalid("model", accepted="a transformers model", got=type(model).__name__, mend=mend)
    names = _target_layers(model, (targets,) if isinstance(targets, str) else targets)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT's annotation says int; it divides it
        use_rslora=rslora,
        lora_dropout=dropout,
        target_modules=names,  # full names: PEFT rewrites short ones for some mixtures of experts
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in names),
        task_type=TaskType.CAUSAL_LM,
    )
    generator = torch.default_generator  # PEFT draws on the CPU, whatever the model's device
    state = generator.get_state()
    try:
        if seed is not None:
            generator.manual_seed(seed)
        with warnings.catch_warnings():  # PEFT 0.21 asks by a name that transformers 5.23 deprecates
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=in_float32)
    finally:
        if seed is not None:
            generator.set_state(state)
    return wrapped.train(model.training)  # new layers would drop out in a model that is in eval mode


def _check_options(r: int, alpha: float, dropout: float) -> None:
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise invalid("r", accepted="an int >= 1", got=r, mend="Set it to 16, say.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise invalid("alpha", accepted="a number > 0", got=alpha, mend="Set it to twice the rank, say.")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise invalid("dropout", accepted="a number in [0, 1)", got=dropout, mend="Set it to 0.1, say.")


def _target_layers(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """The full names of the linear layers that the targets name, in the model's order."""
    if not targets:
        mend = "Name at least one linear layer, such as 'q_proj', or 'all-linear'."
        raise invalid("targets", accepted="at least one target", got=targets, mend=mend)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    tied = _tied_layers(model)
    head = model.get_output_embeddings()
    chosen: set[str] = set()
    for target in targets:
        if target == ALL_LINEAR:
            found = [name for name in linear if model.get_submodule(name) is not head and name not in tied]
        else:
            found = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not found:
            known = {name.rpartition(".")[2] for name in linear if name not in tied}
            raise unknown("LoRA target", target, {*known, ALL_LINEAR})
        for name in found:
            if name in tied:
                raise UserError(
                    f"LoRA target {target!r}: {name} shares its weight with {tied[name]}, so merging the adapter "
                    f"would change both. Leave this target out."
                )
        chosen.update(found)
    return [name for name in linear if name in chosen]


def _tied_layers(model: nn.Module) -> dict[str, str]:
    """Modules that share a parameter with another one, and which."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    return {name: min(names - {name}) for names in owners.values() if len(names) > 1 for name in names}


# --- what is trained ---


def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back the parameters that were trained, by their names, into a model that trains the same ones.

    Values are cast to the model's dtypes, and sharded where the model is. Nothing is changed if it does not fit.

    Raises:
        UserError: see :func:`check_trainable_state`.
    """
    check_trainable_state(model, state)
    with torch.no_grad():
        for name, parameter in _trained(model).items():
            value = state[name].to(parameter.device, parameter.dtype)
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


def check_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse a state that is not that of the parameters which the model trains, all of them and no other.

    Raises:
        UserError: a parameter is missing in the state, or is not one that the model trains, or has another shape.
    """
    trained = _trained(model)
    where = f"trainable state: {len(state)} tensors for a model that trains {len(trained)}"
    mend = "Make the model as it was trained: the same base model and the same adapter settings."
    if missing := sorted(trained.keys() - state.keys()):
        raise UserError(f"{where}: {len(missing)} are missing, one of them {missing[0]!r}. {mend}")
    if extra := sorted(state.keys() - trained.keys()):
        raise UserError(f"{where}: {len(extra)} are not trained by it, one of them {extra[0]!r}. {mend}")
    for name, parameter in trained.items():
        if state[name].shape != parameter.shape:
            shapes = f"expected shape {list(parameter.shape)}, got {list(state[name].shape)}"
            raise UserError(f"{where}: {name}: {shapes}. {mend}")


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- with and without the adapter ---


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside the block, the model computes what it did before the adapter was put on, bit for bit.

    Blocks can be nested. Which parameters are trained stays as it is, unlike in PEFT's own ``disable_adapter``. What is
    recomputed in a backward pass (gradient checkpointing) has to be recomputed where it was computed.

    Raises:
        UserError: the model has no adapter, or its adapter is merged into its weights.
    """
    layers = _adapter_layers(model)
    if not layers:
        raise UserError(
            "adapter_off: the model has no adapter to switch off. Put one on: swaa.hf.lora.add_lora(model)."
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise UserError(
            "adapter_off: the adapter is merged into the weights. Call unmerge_adapter() first, or load the base model."
        )
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def merged(model: nn.Module) -> PreTrainedModel:
    """A plain transformers model with the adapter merged into a copy of the weights; the model itself without one.

    A half-precision layer is merged in float32 and rounded once. A policy that is on the model is on the copy, too.

    Raises:
        UserError: the model is neither a transformers model nor one with a LoRA adapter, or the merged weights are
            not finite.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not _adapter_layers(model):
        if not isinstance(model, PreTrainedModel):
            mend = "Unwrap it first."
            accepted = "a transformers model, with or without a LoRA adapter"
            raise invalid("model", accepted=accepted, got=type(model).__name__, mend=mend)
        return model
    wrapped: Any = copy.deepcopy(model)
    halves = []
    for layer in _adapter_layers(wrapped):
        inner = getattr(layer, "base_layer", layer)  # PEFT's wrapper of a module trained whole has none: no sum
        dtype = next((parameter.dtype for parameter in inner.parameters() if parameter.dtype in _HALF), None)
        if inner is not layer and dtype is not None:
            halves.append((inner, dtype))
            layer.float()
    try:
        plain: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"cannot merge the adapter: {error}. Use an earlier checkpoint of the training.") from error
    for inner, dtype in halves:
        inner.to(dtype)
    return plain.requires_grad_(True)


def _adapter_layers(model: nn.Module) -> list[Any]:
    """PEFT's layers in a model."""
    tuners, other = (sys.modules.get(name) for name in ("peft.tuners.tuners_utils", "peft.utils.other"))
    if tuners is None or other is None:  # without PEFT, there is none
        return []
    kinds = (tuners.BaseTunerLayer, other.AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]

"""From a name, a folder or a hub id to a model that is ready to use: weights, tokenizer, attention policy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from swaa.errors import UserError, invalid, unknown
from swaa.hf.apply import ScoresLike, apply_policy
from swaa.hf.mark import mark_expected
from swaa.hf.sinks import restore_sinks
from swaa.hf.spec import read_spec, saved_policy, saved_scores
from swaa.hf.weights import CATALOGUE, fetch
from swaa.policies import FullAttention

if TYPE_CHECKING:
    from swaa.policies import AttentionPolicy

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load(
    name_or_path: str | Path,
    policy: AttentionPolicy | str | Mapping[str, Any] | None = None,
    scores: ScoresLike | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    kernel: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode, and its tokenizer, set up for generation.

    The tokenizer pads on the left and has a pad token: the end-of-sequence token if the checkpoint has none.

    Args:
        name_or_path: a catalogue name (fetched on first use), a local folder or a hub id. A catalogue name
            wins over a folder of that name; write ``./name`` for the folder.
        policy: what each query may attend to: a policy, the Python expression that makes one, or its dict.
            None takes the policy saved with the checkpoint, if any; `FullAttention()` overrides a saved one.
        scores: what becomes of attention scores besides, see `swaa.hf.apply.apply_policy`. None takes those saved with
            the checkpoint, if any, with the sink logits that they have learned.
        dtype: "auto" is the checkpoint's own on every device, so that moving to another device never changes
            the precision (catalogue models are float32); else one of `DTYPES` by name, or a torch dtype.
        device: "auto" is CUDA if there is a CUDA device, else the CPU; else a torch device.
        kernel: which attention kernel runs the policy, see `swaa.hf.apply.apply_policy`; None takes the one saved
            with the checkpoint, if any, else "auto".
        trust_remote_code: whether to run Python code that the checkpoint brings along. Read that code first.

    Raises:
        UserError: the model is not there, can't be reached, is damaged or incomplete; the dtype or device
            can't be had; and everything that `apply_policy` raises.
    """
    torch_dtype, torch_device = _dtype(dtype), _device(device)
    source = model_source(name_or_path)
    with _explaining(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, padding_side="left", trust_remote_code=trust_remote_code
        )
    model = _weights(source, dtype=torch_dtype, trust_remote_code=trust_remote_code)
    _ensure_pad_token(tokenizer, model, source)
    model = model.to(torch_device).eval()
    spec = read_spec(model.config) or {}
    policy = saved_policy(model.config) if policy is None else policy
    changes = saved_scores(model.config) if scores is None else scores
    if policy is not None or changes is not None:
        options = {name: spec[name] for name in ("kernel", "evict") if name in spec}
        options = options if kernel is None else options | {"kernel": kernel}
        apply_policy(model, FullAttention() if policy is None else policy, changes, **options)
        if scores is None:
            restore_sinks(model, source)
    return model, tokenizer


def load_plain(
    name_or_path: str | Path, *, device: str | torch.device = "auto", attn_implementation: str | None = None
) -> PreTrainedModel:
    """A causal language model in eval mode as transformers alone loads it: a policy saved with it stays off.

    Args:
        name_or_path: as in :func:`load`.
        device: as in :func:`load`.
        attn_implementation: one of transformers' own, such as ``"eager"``; None is transformers' choice.

    Raises:
        UserError: the model is not there, can't be reached, is damaged or incomplete, or lacks this implementation.
    """
    torch_device = _device(device)
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model: PreTrainedModel = _weights(model_source(name_or_path), dtype="auto", **options).to(torch_device).eval()
    return model


def _weights(source: str, **options: Any) -> Any:
    auto_model: Any = AutoModelForCausalLM  # its signature does not know output_loading_info's second value
    with _explaining(source), mark_expected():
        model, loading = auto_model.from_pretrained(source, output_loading_info=True, **options)
    _refuse_random_weights(loading["missing_keys"], source)
    return model


@contextmanager
def _explaining(source: str) -> Iterator[None]:
    """Tells what transformers raises inside as the user's mistake."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _explained(error, source) from error


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise invalid("dtype", accepted="a floating-point dtype", got=dtype, mend="Use torch.bfloat16, say.")
        return dtype
    if dtype != "auto" and dtype not in DTYPES:
        raise unknown("dtype", dtype, ["auto", *DTYPES])
    return DTYPES.get(dtype, dtype)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ["'auto'", "'cpu'", *(f"'cuda:{index}'" for index in range(torch.cuda.device_count()))]
        accepted = f"a device of this machine ({', '.join(here)})"
        raise invalid("device", accepted=accepted, got=str(device), mend="Name one of these.") from error
    return chosen


def model_source(name_or_path: str | Path) -> str:
    """Where to load from: a folder that has a config.json, or something that can be a hub id."""
    name = str(name_or_path)
    if name in CATALOGUE:
        return str(fetch(name))
    if difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.5) and not Path(name).exists() and "/" not in name:
        raise unknown("model", name, CATALOGUE)  # at once: the hub takes many retries to say that it has no such model
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            mend = "Give the folder that `save_pretrained` wrote."
            raise UserError(f"{folder}: expected a model folder, and it has no config.json. {mend}")
        return str(folder)
    if folder.is_file():
        raise UserError(f"{folder}: expected a model folder, got a file. Give the folder that it lies in.")
    if isinstance(name_or_path, Path) or not _HUB_ID.fullmatch(name):
        mend = "Check the path, or give one of the names that `swaa ls models` prints."
        raise UserError(f"{folder}: there is no such model folder. {mend}")
    return name


def _explained(error: Exception, source: str) -> UserError:
    """The user's view of an error that transformers raised while it loaded from `source`."""
    reason = str(error).strip().partition("\n")[0]
    folder = Path(source)
    if "trust_remote_code" in str(error):
        return UserError(
            f"{source}: this model runs Python code that it brings along, which is off unless you say so. "
            "Read its .py files; if you trust them, pass trust_remote_code=True."
        )
    if not folder.is_dir():
        known = str(unknown("model", source, CATALOGUE))
        return UserError(f"{known} It is no folder here, and the hub did not serve it: {reason}")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as damage:
            return UserError(f"damaged weights: {file} cannot be read ({damage}). Copy or download it again.")
    return UserError(f"cannot load the model in {source}: {reason}")


def _refuse_random_weights(missing_keys: set[str], source: str) -> None:
    """transformers only warns of weights that a checkpoint lacks, and makes them up."""
    if missing_keys:
        raise UserError(
            f"{source}: the checkpoint lacks {len(missing_keys)} of the model's tensors, one of them "
            f"{min(missing_keys)!r}; they would be random. Load a complete checkpoint of a language model."
        )


def _ensure_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, source: str) -> None:
    """Gives the tokenizer a pad token if it has none, and generation the same one."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            mend = "Set `pad_token` in its tokenizer_config.json."
            raise UserError(f"{source}: the tokenizer has no pad token and no end-of-sequence token. {mend}")
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id

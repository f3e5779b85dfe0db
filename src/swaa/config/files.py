"""A YAML file and the command line's overrides -> plain values. The only importer of omegaconf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]  # comes with omegaconf
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from swaa.errors import UserError, invalid
from swaa.reading import check_mapping, within


def load_fields(path: Path | str, overrides: Sequence[str], output: Path | str | None = None) -> dict[str, object]:
    """The fields that a file and its overrides give, interpolated, without ``vars``; ``output`` wins over both.

    Raises:
        UserError: the file is missing or is no YAML (the line is named), or an override cannot be applied.
    """
    path = Path(path)
    config = _read(path)
    for override in overrides:
        _override(config, override)
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(
            f"{path}: {error.full_key}: {_first_line(error)}. Define it, for example under vars."
        ) from error
    with within(str(path)):
        mapping = {str(key): value for key, value in check_mapping("file", values).items() if key != "vars"}
    if output is not None:
        mapping["output"] = str(output)
    return mapping


def to_yaml(values: Mapping[str, object]) -> str:
    """The YAML text of plain values."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def _read(path: Path) -> Any:
    """The file as an OmegaConf node; an empty file is an empty mapping."""
    if not path.is_file():
        here = ", ".join(sorted(str(file) for file in Path("experiments").glob("*.yaml")))
        raise UserError(f"no file {str(path)!r}. {f'There are: {here}.' if here else 'Check the path.'}")
    try:
        return OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        mend = "Mend this line; expressions with commas, brackets or quotes stand in quotes themselves."
        raise UserError(f"{place}: YAML syntax error: {error.problem or error.context}. {mend}") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {_first_line(error)}. Save it as UTF-8 text.") from error


def _override(config: Any, override: str) -> None:
    """Set one ``dotted.key=value`` in ``config``; a mapping or list is replaced, not merged."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        mend = "For example num_examples=8."
        raise invalid("override", accepted="dotted.key=value", got=override, mend=mend)
    try:
        value = cast(dict[str, object], OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        mend = "Write the value as in YAML: lengths=[400, 900]."
        raise UserError(f"override {override!r}: {_first_line(error)}. {mend}") from error
    try:
        OmegaConf.update(config, key.strip(), value["value"], merge=False)
    except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        mend = "Lists are addressed by number: recipes[0].name=FA."
        raise UserError(f"override {override!r}: {_first_line(error)}. {mend}") from error


def _first_line(error: Exception) -> str:
    text = getattr(error, "problem", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")

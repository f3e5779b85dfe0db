"""The folder of a distillation. It can be continued after any interruption.

distillation.yaml    the distillation, complete; ``swaa distill`` reads it again
answers.jsonl        one line per prompt with all its raw answers, appended and flushed as the prompt's batch ends
data.jsonl           the conversations that were kept, written whole when the run ends; data.parquet if asked for
provenance.json      where the data come from: code, versions, model, policy, decoding, counts
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
from collections.abc import Iterable, Sequence

from swaa.config import Distillation, load_distillation
from swaa.engine.distill_answers import PromptAnswers, read_answers
from swaa.engine.resumable import MEND, ResumableFolder, changed
from swaa.errors import UserError
from swaa.tasks.conversations import Conversation

DISTILLATION, ANSWERS, PROVENANCE = "distillation.yaml", "answers.jsonl", "provenance.json"
DATA = {"jsonl": "data.jsonl", "parquet": "data.parquet"}


class DistillationFolder(ResumableFolder):
    """The folder ``config.output``; a context that locks it. ``fresh`` deletes what a former run wrote there.

    Raises:
        UserError: the folder cannot be made, another process runs in it, or it holds the answers of a distillation that
            differs in a way that would mix incomparable answers; the differences are named.
    """

    def __init__(self, config: Distillation, *, fresh: bool = False) -> None:
        super().__init__(config.output)
        self._config = config
        self._fresh = fresh

    def answers(self) -> list[PromptAnswers]:
        """The prompts so far with their answers, in the order they were written."""
        return read_answers(self.path / ANSWERS)

    def append(self, records: Iterable[PromptAnswers]) -> None:
        """Add the prompts of a batch, flushed to the operating system.

        They are written at one stroke, so that a process that is killed hardly ever leaves half a batch: the rest of
        one would be run as a smaller batch, whose sums round otherwise.
        """
        with (self.path / ANSWERS).open("a", encoding="utf-8") as file:
            file.write("".join(record.to_json() + "\n" for record in records))

    def write_data(self, conversations: Sequence[Conversation], provenance: dict[str, object]) -> list[str]:
        """Write the data in every format asked for, then where they come from; the names of the data's files.

        Every file appears whole or not at all. Data of a former run that are not written again are deleted.
        """
        self.delete_data()
        contents = {"jsonl": _jsonl(conversations)}
        if "parquet" in self._config.formats:
            contents["parquet"] = _parquet(conversations)
        for name, content in contents.items():
            self._replace(DATA[name], content)
        files = {
            DATA[name]: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        }
        text = json.dumps({**provenance, "files": files}, ensure_ascii=False, indent=2)
        self._replace(PROVENANCE, f"{text}\n".encode())
        return list(files)

    def delete_data(self) -> None:
        """Delete the data and their provenance; the answers stay."""
        self._delete(PROVENANCE, *DATA.values())

    def _begin(self) -> None:
        if self._fresh:
            self._delete(DISTILLATION, ANSWERS)
            self.delete_data()
        self._drop_torn_line(ANSWERS)
        self._check_same()
        self._replace(DISTILLATION, self._config.to_yaml().encode())

    def _check_same(self) -> None:
        if not self.answers():
            return
        if not (self.path / DISTILLATION).exists():
            raise UserError(f"{self.path} has answers, and no {DISTILLATION} to say of what. {MEND}")
        before = load_distillation(self.path / DISTILLATION)
        self._refuse(differences(before, self._config), what="answers of a different distillation")


def differences(before: Distillation, now: Distillation) -> list[str]:
    """What changed between two distillations that makes their answers incomparable, a line each.

    Adding or dropping tasks, lengths and examples is no such change, nor is the batch size, nor what is kept of the
    answers and in which format: that is decided anew when the run ends.
    """
    recipes = vars(before.recipe), vars(now.recipe)
    return changed(
        [
            *((f"model.{name}", getattr(before.model, name), getattr(now.model, name)) for name in vars(now.model)),
            *((name, *(recipe[name] for recipe in recipes)) for name in ("policy", "prompting", "decoding")),
            ("seed", before.seed, now.seed),
            ("samples_per_prompt", before.samples_per_prompt, now.samples_per_prompt),
        ]
    )


def check_formats(config: Distillation) -> None:
    """Refuse a format that cannot be written, before anything runs.

    Raises:
        UserError: Parquet is asked for without pyarrow.
    """
    if "parquet" in config.formats and importlib.util.find_spec("pyarrow") is None:
        mend = "Install it with: pip install 'swaa[parquet]', or write formats: [jsonl]."
        raise UserError(f"formats: parquet needs pyarrow, which is not installed. {mend}")


def _jsonl(conversations: Sequence[Conversation]) -> bytes:
    return "".join(conversation.to_json() + "\n" for conversation in conversations).encode()


def _parquet(conversations: Sequence[Conversation]) -> bytes:
    """One row per conversation; the columns are the fields of a line of ``data.jsonl``."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    text, whole = pa.string(), pa.int64()
    metadata = {
        **{"task": text, "length": whole, "example": text, "seed": whole, "sample": whole},
        **{"grade": pa.float64(), "correct": pa.bool_(), "reference": text, "tokens": whole},
    }
    schema = pa.schema(
        {
            "id": text,
            "messages": pa.list_(pa.struct({"role": text, "content": text}.items())),
            "answer_prefix": text,
            "metadata": pa.struct(metadata.items()),
        }
    )
    rows = [
        {
            "id": conversation.id,
            "messages": [{"role": turn.role, "content": turn.content} for turn in conversation.turns],
            "answer_prefix": conversation.answer_prefix,
            "metadata": dict(conversation.metadata),
        }
        for conversation in conversations
    ]
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return buffer.getvalue()

"""Folders of runs as the engine writes them, made without a model: real records, and the paper's rows with noise."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swaa.report import Record

EVIL = "</script><script>alert(1)</script></textarea>\"'<!--<b>&amp;é\u2028漢字🪤\x07"
"""Everything that must not end up as markup."""

WINDOW = 128
_PREFILL = ".in_phase('prefill')"
_NOT_FOURTH = ".on_layers(['::4', '2::4', '3::4'])"
_PAPER = (  # name, policy, direct %, chain of thought %, seconds; research/paper.md's Instruct and Thinking columns
    ("full attention", "FullAttention()", 62.0, 73.0, 3.44),
    ("naive SWA", "SlidingWindow(128)", 11.0, 3.2, 0.43),
    ("sink 10", "SlidingWindow(128) | SinkTokens(10)", 15.6, 16.0, 0.43),
    ("sink 10 + FA decode", f"(SlidingWindow(128) | SinkTokens(10)){_PREFILL}", 20.6, 38.2, 2.01),
    ("sink 100 + FA decode", f"(SlidingWindow(128) | SinkTokens(100)){_PREFILL}", 17.8, 50.0, 2.01),
    ("sink 10 + 1/2 FA layers", "(SlidingWindow(128) | SinkTokens(10)).on_layers('::2')", 36.4, 25.8, 1.92),
    (
        "sink 10 + FA decode + 1/4 FA layers",
        f"(SlidingWindow(128) | SinkTokens(10)){_PREFILL}{_NOT_FOURTH}",
        31.4,
        53.2,
        2.37,
    ),
    (
        "sink 10 + FA decode + 1/2 FA layers",
        f"(SlidingWindow(128) | SinkTokens(10)){_PREFILL}.on_layers('::2')",
        53.6,
        65.0,
        2.72,
    ),
    (
        "sink 100 + FA decode + 1/2 FA layers",
        f"(SlidingWindow(128) | SinkTokens(100)){_PREFILL}.on_layers('::2')",
        50.6,
        68.8,
        2.72,
    ),
    ("SFT: full attention", "FullAttention()", 63.4, 74.6, 3.44),
    ("SFT: naive SWA", "SlidingWindow(128)", 23.8, 18.8, 0.43),
    ("SFT: FA decode", f"SlidingWindow(128){_PREFILL}", 42.0, 57.9, 2.01),
    ("SFT: sink 100 + FA decode", f"(SlidingWindow(128) | SinkTokens(100)){_PREFILL}", 42.6, 62.2, 2.01),
    ("SFT: 1/2 FA layers", "SlidingWindow(128).on_layers('::2')", 54.6, 63.6, 1.92),
    (
        "SFT: FA decode + 1/4 FA layers",
        f"SlidingWindow(128){_PREFILL}{_NOT_FOURTH}",
        47.0,
        68.8,
        2.37,
    ),
    ("SFT: FA decode + 1/2 FA layers", f"SlidingWindow(128){_PREFILL}.on_layers('::2')", 58.8, 73.2, 2.72),
    ("SFT: sink 10 + 1/2 FA layers", "(SlidingWindow(128) | SinkTokens(10)).on_layers('::2')", 55.2, 64.4, 1.92),
)
_FULL_SECONDS = 3.44
_TOPICS = ("lighthouse", "harbour", "orchard", "railway", "observatory", "library", "glacier", "market")


@dataclass(frozen=True)
class Row:
    """A recipe with the accuracy and seconds a request that its records are drawn from."""

    name: str
    policy: str
    accuracy: float
    seconds: float
    prompting: str = "direct"
    fine_tuning: str | None = None

    @property
    def hash(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


def paper_rows() -> list[Row]:
    """The paper's 17 rows, asked directly and with a chain of thought."""
    rows = []
    for prompting, column in (("direct", 2), ("chain_of_thought", 3)):
        for line in _PAPER:
            tuned = f"{line[0]}, LoRA r 16" if line[0].startswith("SFT") else None
            name = line[0] if prompting == "direct" else f"{line[0]}, CoT"
            seconds = line[4] * (1 if prompting == "direct" else 1.45)
            rows.append(Row(name, str(line[1]), float(line[column]) / 100, seconds, prompting, tuned))  # type: ignore[arg-type]
    return rows


@dataclass
class Folder:
    """What a run's folder is made of; change a field and :meth:`write`."""

    rows: Sequence[Row] = field(default_factory=lambda: paper_rows()[:4])
    tasks: Sequence[str] = ("needle_multikey",)
    lengths: Sequence[int] = (900,)
    examples: int = 10
    generations: int = 1
    seed: int = 0
    status: str = "finished"
    asked: int | None = None
    judge: bool = False
    evil: bool = False
    stop_after: int | None = None
    dropped: Sequence[dict[str, Any]] = ()
    words: int = 120
    perplexity: bool = False

    def write(self, path: Path) -> Path:
        """Write the folder; the same fields give the same bytes."""
        path.mkdir(parents=True, exist_ok=True)
        self._random = random.Random(self.seed)
        examples = [self._example(*one) for one in self._places()]
        records = [
            self._record(row, example, generation)
            for row in self.rows
            for example in examples
            for generation in range(self.generations)
        ]
        asked = len(records) if self.asked is None else self.asked
        _lines(path / "records.jsonl", [json.loads(one.to_json()) for one in records[: self.stop_after]])
        promptings = dict.fromkeys(row.prompting for row in self.rows)
        _lines(path / "samples.jsonl", [self._sample(one, way) for one in examples for way in promptings])
        if self.perplexity:
            _lines(path / "perplexity.jsonl", list(self._stretches()))
        (path / "run.json").write_text(json.dumps(self._info(asked), ensure_ascii=False), encoding="utf-8")
        return path

    def _places(self) -> list[tuple[str, int, int]]:
        return [
            (task, length, index) for task in self.tasks for length in self.lengths for index in range(self.examples)
        ]

    def _example(self, task: str, length: int, index: int) -> dict[str, Any]:
        rng, topic = self._random, _TOPICS[index % len(_TOPICS)]
        depth = (index + 0.5) / self.examples
        needle = f"The special number of the {topic} is {rng.randrange(10**6, 10**7)}."
        words = " ".join(rng.choice(("The", "quiet", "grass", "is", "green", "and", "long")) for _ in range(self.words))
        cut = words.find(" ", int(depth * len(words)))
        before, after = words[:cut], words[cut:]
        prompt = f"{before} {needle}{after} Which number belongs to the {topic}?"
        answer = needle.split()[-1].rstrip(".")
        if self.evil:
            prompt, answer = f"{EVIL} {prompt} {EVIL}", f"{answer} {EVIL}"
        start = prompt.index(needle)
        return {
            "task": task,
            "length": length,
            "example": f"{task}-{length}-{index}{EVIL if self.evil else ''}",
            "prompt": prompt,
            "answer": answer,
            "hardness": rng.random(),
            "metadata": {
                "spans": [[start, start + len(needle)]],
                "depths": [depth],
                "question_type": "single" if index % 2 else "multi",
            },
        }

    def _sample(self, example: dict[str, Any], prompting: str) -> dict[str, Any]:
        before = "<|im_start|>user\n🪤 "  # a character of two UTF-16 units, which would move JavaScript's offsets
        extra = "" if prompting == "direct" else "\n\nThink step by step."
        return {
            **{name: example[name] for name in ("task", "length", "example", "answer")},
            "prompting": prompting,
            "prompt": f"{before}{example['prompt']}{extra}<|im_end|>\n<|im_start|>assistant\n",
            "prompt_tokens": example["length"] - 3,
            "references": [example["answer"]],
            "metadata": {**example["metadata"], "prompt_start": len(before)},
        }

    def _record(self, row: Row, example: dict[str, Any], generation: int) -> Record:
        rng = self._random
        near = example["metadata"]["depths"][0] > 1 - WINDOW / example["length"]
        chance = row.accuracy + (0.35 if near and "Sliding" in row.policy else 0)
        right = 0.55 * example["hardness"] + 0.45 * rng.random() < 0.5 + (chance - 0.5) * 0.85
        thinks = row.prompting != "direct"
        cut = thinks and rng.random() < 0.06
        words = example["answer"] if right else str(rng.randrange(10**6, 10**7))
        final = None if not thinks else "" if cut else words
        text = f" {words}" if not thinks else f"Let me look for it step by step. Answer: {'' if cut else words}"
        failed, unparsed = self.judge and rng.random() < 0.05, self.judge and rng.random() < 0.05
        verdict = float(right and not cut)
        scores = {} if failed or unparsed else {"score": verdict, "all_correct": verdict}
        if thinks:
            scores["truncated"] = float(cut)
        distance = int((1 - example["metadata"]["depths"][0]) * example["length"])
        prefill = 0.6 * row.seconds * (0.95 + 0.1 * rng.random()) * example["length"] / self.lengths[0]
        pairs = row.seconds / _FULL_SECONDS / 1.5
        full, tokens = "Full" in row.policy, 60 if thinks else 12
        return Record(
            recipe=row.name,
            recipe_hash=row.hash,
            task=example["task"],
            length=example["length"],
            example=example["example"],
            seed=self.seed,
            prompt_tokens=example["length"] - 3,
            answer=example["answer"],
            metadata={**example["metadata"], "evidence_distance": distance},
            generated=text,
            scores=scores,
            timing={
                "prefill_seconds": prefill,
                "decode_ms_per_token": 1000 * 8 * 0.4 * row.seconds / (tokens - 1),
                "batch_size": 8,
                "new_tokens": tokens,
            },
            cost={"visible_pair_share": 1.0 if full else pairs, "kv_share": 1.0 if full else 0.4},
            git="0123abc",
            versions={"torch": "2.13.0"},
            prompting=row.prompting,
            generation=generation,
            final=final,
            ending="cut" if cut else "end",
            verdict=None if not self.judge else "unparsed" if unparsed else "correct" if right else "wrong",
            error=f"judge: HTTP 500 {EVIL}" if failed else None,
        )

    def _stretches(self) -> Any:
        for row in self.rows:
            for stretch in range(3):
                nll = 2.5 + (0.0 if "Full" in row.policy else 0.3) + 0.1 * stretch
                yield {
                    **{"recipe": row.name, "recipe_hash": row.hash, "stretch": stretch, "nll": nll},
                    **{"delta_nll": nll - 2.5 - 0.1 * stretch, "long_nll": 1.5, "key_tokens": 20, "tokens": 500},
                }

    def _info(self, asked: int) -> dict[str, Any]:
        grader = {"name": "judge", "model": "a-judge"} if self.judge else {"name": "recall"}
        return {
            "format": 1,
            "status": self.status,
            "model": {
                **{"name": "smollm2-135m-instruct", "dtype": "bfloat16", "device": "cpu"},
                **{"num_layers": 30, "num_heads": 9, "context": 8192},
            },
            "recipes": [
                {
                    **{"name": row.name, "hash": row.hash, "policy": row.policy, "prompting": row.prompting},
                    **{"fine_tuning": row.fine_tuning, "decoding": {"max_new_tokens": 64, "temperature": 0.0}},
                    "window": WINDOW if "Sliding" in row.policy else None,
                }
                for row in self.rows
            ],
            "tasks": [{"label": task, "name": task, "grader": grader} for task in self.tasks],
            "lengths": list(self.lengths),
            "num_examples": self.examples,
            "seed": self.seed,
            "scoring": ["generate"],
            "asked": asked,
            "dropped": list(self.dropped),
            "provenance": {
                "git": "0123abc+",
                "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
                "hardware": {
                    "processor": "A <processor> & co",
                    "cores": 2,
                    "gpu": None,
                    "memory_bytes": 16_000_000_000,
                },
                "command": "swaa run experiments/paper-miniature.yaml",
                "started": "2026-11-22T07:00:00+00:00",
            },
        }


def _lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")

"""The baseline that runs in an environment of its own: kvpress wants a transformers that is not ours.

A worker process, :mod:`swaa.hf.kvpress_worker`, is started by the other interpreter, loads the same weights and answers
one line of JSON with another.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import swaa.hf
from swaa.config import Baseline, Benchmark
from swaa.engine.bench_measure import LeftOut, Timing
from swaa.errors import UserError

NO_PYTHON = "no kvpress_python is given (docs/performance.md says how to make an environment)"
WORKER = Path(swaa.hf.__file__).with_name("kvpress_worker.py")


@dataclass(eq=False)
class KvPress:
    """kvpress's StreamingLLM on the same weights: it reads the prompt densely, then keeps sinks and the last keys.

    What it answers differs from every recipe, because its prompt is read under full attention.
    """

    name: str
    hash: str
    versions: dict[str, str]
    _worker: subprocess.Popen[str]
    _ask: dict[str, Any]

    @classmethod
    def start(cls, baseline: Baseline, identity: str, benchmark: Benchmark, model: Any) -> KvPress:
        """Start the worker on the benchmark's model.

        Raises:
            LeftOut: no interpreter is named, it is not there or lacks kvpress, or the model does not load in it.
        """
        python = benchmark.kvpress_python
        if python is None:
            raise LeftOut(NO_PYTHON)
        source = {"config": dict(benchmark.model.config)} if benchmark.model.config else {"folder": model.name_or_path}
        told = {
            **source,
            "dtype": benchmark.model.dtype,
            "device": str(model.device),
            "seed": benchmark.seed,
            "threads": torch.get_num_threads(),
        }
        command = [python, "-I", str(WORKER), json.dumps(told)]  # -I: our modules must not shadow its own
        try:  # a session of its own: Ctrl-C is ours to handle
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        except OSError as error:
            raise LeftOut(f"{python} cannot be run ({error.strerror})") from error
        press = cls(baseline.name, identity, {}, worker, {})
        try:
            press.versions = press._answer("start")["versions"]
        except UserError as error:
            press.close()
            raise LeftOut(str(error)) from error
        press._ask = {"kept_keys": baseline.kept_keys, "num_sinks": baseline.num_sinks}
        return press

    def request(self, prompt: torch.Tensor, new_tokens: int) -> Timing:
        """Run and time a request for the prompt [1, S]; the worker measures as ``bench_measure`` does."""
        ask = {**self._ask, "prompt": prompt[0].tolist(), "new_tokens": new_tokens}
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(json.dumps(ask) + "\n")
            self._worker.stdin.flush()
        except OSError as error:
            raise UserError(f"kvpress: its process has ended ({error.strerror}). Look at what it printed.") from error
        got = self._answer("request")
        return Timing(**{**got, "step_seconds": tuple(got["step_seconds"])})

    def close(self) -> None:
        """End the worker."""
        assert self._worker.stdin is not None
        with contextlib.suppress(OSError):
            self._worker.stdin.close()
        try:
            self._worker.wait(timeout=2)  # in the middle of a request it does not listen
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()

    def _answer(self, what: str) -> dict[str, Any]:
        assert self._worker.stdout is not None
        line = self._worker.stdout.readline()
        if not line:
            code = self._worker.wait()
            raise UserError(f"kvpress: its process ended at the {what} with exit code {code}. Look at what it printed.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(f"kvpress: {answer['error']}")
        return answer

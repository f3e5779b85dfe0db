"""kvpress's StreamingLLM, timed: a plain script for an interpreter that has kvpress, and that has not swaa.

Started by :mod:`swaa.engine.bench_kvpress`:

    PYTHON -I kvpress_worker.py '{"folder": …, "dtype": "bfloat16", "device": "cpu", "seed": 0, "threads": 2}'

It answers with one line of JSON when the model is loaded, and then each line of JSON on standard input, a request, with
one that has the fields of ``swaa.engine.bench_measure.Timing``. What the libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Load the model, then answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers on our standard output

    def say(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    told = json.loads(sys.argv[1])
    try:
        import kvpress  # type: ignore[import-not-found]
        import torch
        import transformers
    except ImportError as error:
        say(error=f"{sys.executable} lacks a library ({error}). Install kvpress there.")
        return
    try:
        torch.set_num_threads(told["threads"])
        model = load(told)
    except Exception as error:  # told to the benchmark, which leaves this row out
        say(error=f"the model does not load with transformers {transformers.__version__} ({error}).")
        return
    from importlib.metadata import version

    say(versions={name: version(name) for name in ("kvpress", "torch", "transformers")})
    for line in sys.stdin:
        ask = json.loads(line)
        prompt = torch.tensor([ask["prompt"]], device=model.device)
        ratio = max(0.0, 1 - (ask["kept_keys"] + 0.5) / prompt.shape[1])
        press = kvpress.StreamingLLMPress(compression_ratio=ratio, n_sink=ask["num_sinks"])
        with torch.no_grad():
            say(**request(model, prompt, ask["new_tokens"], press))


def load(told: dict[str, Any]) -> Any:
    """The model in eval mode: from a folder, or random weights from the fields of a config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = getattr(torch, told["dtype"])
    if "folder" in told:
        model = AutoModelForCausalLM.from_pretrained(told["folder"], dtype=dtype)
    else:
        fields = dict(told["config"])
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        torch.manual_seed(told["seed"])
        with torch.device(told["device"]):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.to(told["device"]).eval()


def request(model: Any, prompt: Any, new_tokens: int, press: Any) -> dict[str, Any]:
    """Read the prompt under the press, then generate greedily; the fields of a ``Timing``."""
    import torch

    on_gpu = prompt.device.type == "cuda"
    length, kv_bytes = prompt.shape[1], 0

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    rest = torch.cuda.memory_allocated() if on_gpu else resident("VmRSS", forget_peak=True)
    start = now()
    with press(model):
        out = model(prompt, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    prefill_seconds = now() - start
    cache = out.past_key_values
    for layer in cache.layers:
        kv_bytes += sum(part.untyped_storage().nbytes() for part in (layer.keys, layer.values))
    steps = []
    for step in range(new_tokens - 1):
        start = now()
        position = torch.tensor([[length + step]], device=prompt.device)
        out = model(token, past_key_values=cache, position_ids=position, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        steps.append(now() - start)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    return {
        "prefill_seconds": prefill_seconds,
        "step_seconds": steps,
        "kv_bytes": kv_bytes,
        "rest_bytes": rest,
        "peak_bytes": peak,
    }


def resident(name: str, *, forget_peak: bool = False) -> int | None:
    """Bytes of the process that are resident (``VmRSS``) or were at most (``VmHWM``); None where nothing tells."""
    try:
        if forget_peak:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


if __name__ == "__main__":
    main()

"""Runs scripts in processes of their own, without seconds of imports for each.

Of what swaa stands on, the large libraries have been imported when such a process begins. Of swaa nothing has: so a
script that forgets an import fails as it would for its reader.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

LIBRARIES = ["lightning.pytorch", "peft", "torch", "transformers.models.llama.modeling_llama"]


def run_script(script: Path, seconds: float = 300) -> tuple[int | None, str]:
    """Run a script in its own folder: its exit code, None if it took longer than this, and all that it printed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    log = script.with_suffix(".log")
    process = context.Process(target=_run, args=(script, log))
    process.start()
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code, log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def _run(script: Path, log: Path) -> None:
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    already = sorted(name for name in sys.modules if name.partition(".")[0] == "swaa")
    assert not already, f"imported before the script began: {already}"
    os.chdir(script.parent)
    sys.argv = [str(script)]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")

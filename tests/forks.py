"""Forks processes that run ``swaa``, so that torch and transformers are imported once for many tests (forking.py).

A line of JSON in: ``{"argv": [...], "ranks": 2, "threads": 1, "seconds": 60, "log": "path", "folder": "path"}``. A line
out at once: the ids of the processes, rank by rank; and one when they have ended: their exit codes, null for one that
had to be killed. Each rank prints into ``path.<rank>``, errors into ``path.<rank>.err``.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import socket
import sys
import time
from typing import Any

import torch
from tqdm import tqdm

import swaa.engine.tuning.run  # noqa: F401
from swaa.cli import main


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def child(order: dict[str, Any], rank: int, port: int) -> None:
    for stream, ending in ((1, ""), (2, ".err")):
        os.dup2(os.open(f"{order['log']}.{rank}{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    faulthandler.dump_traceback_later(order["seconds"] - 5)  # one that hangs says where
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored
    torch.set_num_threads(order["threads"])
    os.chdir(order["folder"])
    if order["ranks"] > 1:  # as torchrun does
        size = str(order["ranks"])
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="forks")
    code = 70
    try:
        code = main(order["argv"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def carry_out(order: dict[str, Any]) -> list[int | None]:
    port, ranks = free_port(), {}
    for rank in range(order["ranks"]):
        pid = os.fork()
        if not pid:
            child(order, rank, port)
        ranks[pid] = rank
    print(json.dumps(list(ranks)), flush=True)
    codes: list[int | None] = [None] * order["ranks"]
    deadline = time.monotonic() + order["seconds"]
    while ranks and time.monotonic() < deadline:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[ranks.pop(pid)] = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.02)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return codes


torch.set_num_threads(1)
tqdm.monitor_interval = 0  # it would be a thread, and a lock that it holds during a fork is held in the child for good
main(sys.argv[1:])  # a training in this process, for all that is imported when it is first needed
gc.collect()
gc.freeze()  # no child looks through it again
print("[]", flush=True)
for line in sys.stdin:
    print(json.dumps(carry_out(json.loads(line))), flush=True)

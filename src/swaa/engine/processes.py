"""The processes of a training or an evaluation on several devices: one starts the others, and they end together.

Lightning's own launcher would do, were it not for errors: it kills every process, the first one too, within five
seconds after another one ended, so that nobody says why. Where something else starts the processes (torchrun, SLURM),
it has to end them as well.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from swaa.engine.interrupt import StopRequested
from swaa.errors import UserError

_PARENT = "SWAA_HELPER_OF"
_ENVIRONMENT = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
_GRACE = 5.0
"""Seconds in which a process that an error reached by way of another one may end by itself."""
_PREFIX = "swaa: error: "  # what the command line puts before a UserError


class Devices(Protocol):
    """How many processes there are."""

    @property
    def devices(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...


class Distributed(Protocol):
    """What is asked for of several processes, each of which reads it from a file: a fine-tuning, an experiment."""

    @property
    def trainer(self) -> Devices: ...

    def to_yaml(self) -> str: ...


@contextlib.contextmanager
def company(config: Distributed, trainer: Any, logs: Path, *, command: str) -> Iterator[None]:
    """Inside, the other processes of this machine run, each for one device. They run ``swaa COMMAND``, too.

    What they print goes to ``logs/process-1.log`` and so on. An error in any process ends all of them.

    Args:
        config: what they do; each process loads it from a file.
        trainer: Lightning's, which has started nothing yet.
        logs: a folder.
        command: of the command line, which reads the file.

    Raises:
        UserError: another process failed; the message is its own.
    """
    cluster = getattr(trainer.strategy, "cluster_environment", None)  # one device in one process has none
    if cluster is None:
        yield
        return
    threads = torch.get_num_threads()
    try:
        if cluster.creates_processes_externally:
            yield
        else:
            with _restored_environment():
                first = cluster.node_rank() * config.trainer.devices
                os.environ.update(
                    MASTER_ADDR=cluster.main_address,
                    MASTER_PORT=str(cluster.main_port),
                    NODE_RANK=str(cluster.node_rank()),
                    WORLD_SIZE=str(config.trainer.devices * config.trainer.num_nodes),
                    LOCAL_RANK="0",  # from here on Lightning takes the processes as started
                )
                with _started(config, first, logs, command) as helpers, _together(helpers):
                    yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # what follows is done by one process alone
        torch.set_num_threads(threads)  # Lightning divides them by the number of processes


def check_world_size(config: Distributed) -> None:
    """Refuse a launcher that starts other than the processes that the run is made for.

    Raises:
        UserError: the environment has another WORLD_SIZE.
    """
    settings, told = config.trainer, os.environ.get("WORLD_SIZE")
    size = settings.devices * settings.num_nodes
    if told and told != str(size):
        raise UserError(
            f"trainer.devices: {settings.devices} on each of trainer.num_nodes: {settings.num_nodes} makes {size} "
            f"processes, and WORLD_SIZE is {told}, as torchrun sets it. Set trainer.devices to the processes of a "
            f"machine (--nproc-per-node), or unset WORLD_SIZE if nothing has started this process."
        )


def helps(config: Distributed) -> bool:
    """Is this a process that another one started, or a later rank of a launcher's? It does its part and no more.

    What the environment says of ranks counts only where there are several processes.
    """
    names = ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK")
    return _several(config) and any(int(os.environ.get(name, "0") or 0) > 0 for name in names)


def from_outside(config: Distributed) -> bool:
    """Does something else start processes of this run: torchrun, SLURM, or a user on several machines?"""
    tasks = (os.environ.get(name) or "1" for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    launched = config.trainer.num_nodes > 1 or any(int(number) > 1 for number in tasks)
    return _PARENT not in os.environ and _several(config) and launched


def _several(config: Distributed) -> bool:
    return config.trainer.devices * config.trainer.num_nodes > 1


@contextlib.contextmanager
def helping() -> Iterator[None]:
    """Around the work of a process that helps: it ends when its parent does, and lets the first process speak."""
    parent = os.environ.get(_PARENT)
    if parent is not None:
        threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()
    try:
        yield
    except UserError:
        if parent is None:  # a launcher ends this process if the first one has the same to say
            time.sleep(_GRACE)
        raise


def _follow(parent: int) -> None:
    """End this process when its parent is gone, killed perhaps: nobody else would."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Helpers:
    """Processes that were started here.

    Args:
        processes: running.
        logs: what each prints.
        first: rank of the first of them.
    """

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path], first: int) -> None:
        self._processes = processes
        self._logs = logs
        self._first = first

    def failure(self) -> str | None:
        """What the first process that failed has to say; None while none has."""
        for place, (process, log) in enumerate(zip(self._processes, self._logs, strict=True)):
            code = process.poll()
            if code:
                text = log.read_text(encoding="utf-8", errors="replace").strip()
                if code == 2 and _PREFIX in text:
                    return text.rpartition(_PREFIX)[2]
                rank = self._first + place
                last = text.rpartition("\n")[2].removeprefix(f"[rank{rank}]: ") or "it printed nothing"
                return f"process {rank} of the run ended with code {code}: {last}. See {log}."
        return None

    def wait_for_failure(self, seconds: float) -> str | None:
        """The same, waiting so long for one that is about to fail."""
        end = time.monotonic() + seconds
        while (failure := self.failure()) is None and time.monotonic() < end:
            if all(process.poll() is not None for process in self._processes):
                break
            time.sleep(0.05)
        return failure

    def end(self, seconds: float) -> None:
        """Wait for their own end so long, then kill."""
        end = time.monotonic() + seconds
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _started(config: Distributed, first: int, logs: Path, command: str) -> Iterator[_Helpers]:
    """The processes of this machine's other devices; afterwards there are none."""
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="swaa-") as folder, contextlib.ExitStack() as files:
        file = Path(folder, f"{command}.yaml")
        file.write_text(config.to_yaml(), encoding="utf-8")
        line = [sys.executable, "-m", "swaa", command, str(file)]
        processes: list[subprocess.Popen[bytes]] = []
        names = [logs / f"process-{first + local}.log" for local in range(1, config.trainer.devices)]
        helpers = _Helpers(processes, names, first + 1)
        try:
            for local, name in enumerate(names, start=1):
                log = files.enter_context(name.open("wb"))
                environment = {**os.environ, "LOCAL_RANK": str(local), _PARENT: str(os.getpid())}
                processes.append(
                    subprocess.Popen(
                        line,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which ends the others
                    )
                )
            yield helpers
        finally:
            helpers.kill()


@contextlib.contextmanager
def _together(helpers: _Helpers) -> Iterator[None]:
    """An error of a helper's becomes one of this process; when this one is through, so are they."""
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(helpers, over), daemon=True)
    watch.start()
    try:
        yield
        helpers.end(60)
    except (UserError, StopRequested, KeyboardInterrupt):
        raise
    except BaseException as error:
        failure = helpers.wait_for_failure(6 * _GRACE)  # a lost connection, say, comes before the news of its cause
        if failure is None:
            raise
        raise UserError(failure) from error
    finally:
        over.set()
        watch.join()


def _watch(helpers: _Helpers, over: threading.Event) -> None:
    """End this process if a helper failed while it waits for that helper, in code that no exception can reach."""
    while not over.wait(0.2):
        failure = helpers.failure()
        if failure is not None:
            if over.wait(_GRACE):  # it noticed
                return
            helpers.kill()
            print(f"\n{_PREFIX}{failure}", file=sys.stderr, flush=True)
            os._exit(2)


@contextlib.contextmanager
def _restored_environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

"""Several processes for one piece of work, each on its share of the cores; they end together, however they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from models.errors import RankyardError, RefusedError

_PATIENCE_S = 60.0
"""How long a worker may take to stop: a step of a network, and its checkpoint."""


def run(n_workers: int, work: Callable[..., None], arguments: tuple[Any, ...], say: Callable[[str], None]) -> None:
    """Call `work(number, *arguments)` in `n_workers` processes, numbered from 1, and wait for all of them.

    Ctrl-C stops all of them as it would stop one; so does the end of this process. A worker that is killed is said and
    the others go on. The first RankyardError of a worker is raised; RefusedError where all were killed.
    """
    context = multiprocessing.get_context("spawn")
    ours: list[Connection] = []
    processes: list[BaseProcess] = []
    try:
        for number, cores in enumerate(_shares(n_workers), start=1):
            here, there = context.Pipe()
            process = context.Process(
                target=_main, args=(number, cores, there, work, arguments), name=f"worker {number}"
            )
            ours.append(here)
            processes.append(process)  # before it is started, lest a Ctrl-C between the two leaves it behind
            with _threads(len(cores)):
                process.start()
            there.close()
        errors = [_outcome(process, pipe) for process, pipe in zip(processes, ours, strict=True)]
    except BaseException:
        _stop(processes)
        raise
    killed = [number for number, process in enumerate(processes, start=1) if (process.exitcode or 0) < 0]
    for number in killed:
        say(f"worker {number} was killed by signal {-(processes[number - 1].exitcode or 0)}")
    for error in errors:
        if error is not None:
            raise error
    if len(killed) == n_workers:
        raise RefusedError("all workers were killed; the same command goes on where they stopped")


def _outcome(process: BaseProcess, pipe: Connection) -> BaseException | None:
    """Wait for a worker: None, or the error that ended it."""
    error: BaseException | None = None
    with suppress(EOFError):
        error = pipe.recv()
    process.join()
    if error is None and process.exitcode == 1:
        return RefusedError(f"{process.name} failed; its traceback is above")
    return error


def _stop(processes: list[BaseProcess]) -> None:
    started = [process for process in processes if process.pid is not None]
    for process in started:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    for process in started:
        process.join(_PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()


def _main(
    number: int, cores: list[int], pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """Be a worker: a process group of its own, as the terminal's Ctrl-C comes through the first process, once."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores)
    threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
    try:
        work(number, *arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except RankyardError as error:
        pipe.send(error)


def _watch(pipe: Connection) -> None:
    """Stop where the first process is no more, which would otherwise leave workers that nobody waits for."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGINT)


def _shares(n_workers: int) -> list[list[int]]:
    """Cores of each worker; with more workers than cores, several share one."""
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else [*range(os.cpu_count() or 1)]
    return [cores[worker::n_workers] or [cores[worker % len(cores)]] for worker in range(n_workers)]


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    """What a process started inside reads when it loads its numerical libraries."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(n_threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""Threads that an event loop hands its calls to.

`loop.run_in_executor` with a ThreadPoolExecutor does the same through two futures and their locks, and takes two and a
half times as long: 280 instead of 110 microseconds to and fro on a busy machine, which a lone request waits for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_NICE = 10
_STARVED_S, _STARVED, _STARVED_CALLS = 0.02, 4.0, 3
"""Calls in a row that each waited for a core for so many seconds, and so many times as long as they computed."""

_log = logging.getLogger("rankyard.gateway")

_Call = tuple[asyncio.Future[Any], Callable[[Any], Any], Any]


class Workers:
    """So many threads, one call each at a time, first come, first served, which let the event loop go before them.

    yields: whether they take only what everybody else leaves of the cores, as long as that is something.
    """

    def __init__(self, n_threads: int, name: str, *, yields: bool = False) -> None:
        self._n_threads = n_threads
        self._name = name
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._start(yields=yields)

    def run(self, call: Callable[[Argument], Result], argument: Argument) -> asyncio.Future[Result]:
        """Give what `call(argument)` gives on one of the threads; it is not begun where the future is done before."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._calls.put((future, call, argument))
        return future

    async def close(self) -> None:
        """Let running calls end, and cancel those not begun."""
        self._is_closed = True
        for _ in range(self._n_threads):
            self._calls.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _start(self, *, yields: bool) -> None:
        self._yields = yields
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        for number in range(self._n_threads):
            thread = threading.Thread(
                target=self._work, args=(self._calls, yields), name=f"{self._name}-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _work(self, calls: queue.SimpleQueue[_Call | None], yields: bool) -> None:
        step_back(yields=yields)
        n_starved = 0
        while (asked := calls.get()) is not None:
            future, call, argument = asked
            if future.done():
                continue
            if self._is_closed:
                _tell(future, future.cancel)
                continue
            waited_s, computed_s = time.monotonic(), time.thread_time()
            try:
                result = call(argument)
            except BaseException as error:
                _tell(future, _fail, future, error)
            else:
                _tell(future, _answer, future, result)
            if yields:
                computed_s = time.thread_time() - computed_s
                waited_s = time.monotonic() - waited_s - computed_s
                n_starved = n_starved + 1 if waited_s > max(_STARVED_S, _STARVED * computed_s) else 0
                if n_starved == _STARVED_CALLS:
                    _tell(future, self._insist)

    def _insist(self) -> None:
        """Let other threads go on, which share the cores: a thread that has yielded may not take that back."""
        if self._is_closed or not self._yields:
            return
        _log.warning("other programs leave the models hardly any time; from now on they share the cores with those")
        before = self._calls
        self._start(yields=False)
        with suppress(queue.Empty):
            while True:
                self._calls.put(before.get_nowait())
        for _ in range(self._n_threads):
            before.put(None)


def step_back(*, yields: bool) -> None:
    """Let the event loop go before the calling thread where all cores are busy: everybody waits for it.

    yields: let every other thread and program go first, whenever it wants the core. Linux preempts a thread of a low
    priority only where the other one has not had its share yet, and else up to 4 ms later; such a thread at once.
    """
    if sys.platform != "linux":  # elsewhere a thread has no priority of its own
        return
    thread = threading.get_native_id()
    if yields:
        with suppress(OSError):  # where a sandbox allows no such policy
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            return
    os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)


def _tell(future: asyncio.Future[Any], *call: Any) -> None:
    with suppress(RuntimeError):  # the loop has closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(*call)


def _answer(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from serving.runtime.workers import Workers


def test_calls_give_their_own_results_and_errors():
    def halve(number):
        if number % 2:
            raise ValueError(number)
        return number // 2

    async def run():
        workers = Workers(3, "test")
        found = await asyncio.gather(*(workers.run(halve, n) for n in range(500)), return_exceptions=True)
        await workers.close()
        return found

    for number, found in enumerate(asyncio.run(run())):
        assert str(found) == str(number) if number % 2 else found == number // 2


def test_as_many_calls_run_at_once_as_there_are_threads():
    meeting = threading.Barrier(3)

    async def run():
        workers = Workers(3, "test")
        places = await asyncio.gather(*(workers.run(meeting.wait, 60) for _ in range(3)))
        await workers.close()
        return places

    assert sorted(asyncio.run(run())) == [0, 1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_the_event_loop_goes_before_the_workers():
    def nice(_nothing):
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def run():
        workers = Workers(1, "test")
        found = await workers.run(nice, None)
        await workers.close()
        return found

    assert asyncio.run(run()) == min(nice(None) + 10, 19)


CROWDED = """
import asyncio, os, subprocess, sys, threading, time
from serving.runtime.workers import Workers

def compute(number):
    while time.thread_time() < 0.002 * (number + 1):
        pass
    thread = threading.get_native_id()
    return number, os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)

async def run():
    workers = Workers(1, "test", yields=True)
    print(*await workers.run(compute, -1))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for thread in threading.enumerate():
        os.sched_setaffinity(thread.native_id, {min(os.sched_getaffinity(0))})
    busy = [sys.executable, "-c", "print(flush=True)\\nwhile True: pass"]
    with subprocess.Popen(busy, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            for found in await asyncio.gather(*(workers.run(compute, n) for n in range(40))):
                print(*found)
        finally:
            other.kill()
    await workers.close()

asyncio.run(run())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_workers_that_yield_share_the_cores_where_another_program_takes_all_they_left():
    ran = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True, check=True, timeout=240)
    found = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert [number for number, _, _ in found] == [-1, *range(40)]
    policies = [policy for _, policy, _ in found]
    n_yielded = policies.count(os.SCHED_IDLE)
    assert 2 < n_yielded < 20
    assert policies == [os.SCHED_IDLE] * n_yielded + [os.SCHED_OTHER] * (41 - n_yielded)
    assert found[-1][2] == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    assert "other programs leave the models hardly any time" in ran.stderr


def test_what_nobody_waits_for_any_more_is_not_begun():
    gate, begun = threading.Event(), []

    async def run():
        workers = Workers(1, "test")
        first = workers.run(gate.wait, 60)
        given_up, kept = workers.run(begun.append, "given up"), workers.run(begun.append, "kept")
        given_up.cancel()
        gate.set()
        await asyncio.gather(first, kept)
        await workers.close()

    asyncio.run(run())
    assert begun == ["kept"]


def test_closing_ends_what_runs_and_cancels_the_rest():
    gate, entered = threading.Event(), threading.Event()

    def wait(_):
        entered.set()
        return gate.wait(60)

    async def run():
        workers = Workers(1, "test")
        running, waiting = workers.run(wait, None), workers.run(wait, None)
        await asyncio.to_thread(entered.wait, 60)
        closing = asyncio.create_task(workers.close())
        await asyncio.sleep(0)
        gate.set()
        await closing
        assert await running is True
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-")]


def test_a_loop_that_has_ended_meanwhile_hurts_no_thread():
    gate, entered = threading.Event(), threading.Event()
    workers = []

    def wait(_):
        entered.set()
        gate.wait(60)

    async def run():
        workers.append(Workers(1, "test"))
        workers[0].run(wait, None)
        await asyncio.to_thread(entered.wait, 60)

    asyncio.run(run())
    gate.set()

    async def again():
        assert await workers[0].run(str, 5) == "5"
        await workers[0].close()

    asyncio.run(again())

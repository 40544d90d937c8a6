"""Triton killed, hung, slow, restarted, and answering wrongly: everything is answered, and Triton is asked again."""

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress

import grpc
import numpy as np
import pytest

from models.errors import DeadlineError, RankyardError, UnavailableError
from serving.runtime import breaker, hedging
from serving.runtime import fallback as fallback_runtime
from serving.runtime import triton as triton_runtime
from serving.runtime.fallback import FallbackRuntime
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel
from serving.runtime.triton import TritonRuntime
from serving.triton import server
from tests.bundles import tiny_bundle
from tests.serving.runtime.faulty_triton import faulty_triton
from tests.triton_server import TritonServer, needs_triton

CHANGES = {
    "a row too many": lambda outputs: {"score": np.concatenate([outputs["score"], outputs["score"][:1]])},
    "a column too many": lambda outputs: {"score": np.repeat(outputs["score"], 2, axis=1)},
    "rows and columns changed places": lambda outputs: {"score": outputs["score"].T},
    "another type": lambda outputs: {"score": outputs["score"].astype(np.float64)},
    "whole numbers": lambda outputs: {"score": outputs["score"].astype(np.int64)},
    "NaN": lambda outputs: {"score": np.full_like(outputs["score"], np.nan)},
    "another name": lambda outputs: {"scores": outputs["score"]},
    "nothing": lambda _outputs: {},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ServedModel:
    return ServedModel("faulty", "1", tiny_bundle(tmp_path_factory.mktemp("faulty"), "ranking"))


@pytest.fixture(autouse=True)
def quick_trials(monkeypatch):
    monkeypatch.setattr(breaker, "_TRIAL_EVERY_S", 0.02)


@asynccontextmanager
async def fallback(url, model, hedge_share=0.05):
    """The runtime as a gateway on Triton has it, and how often and why it asked its own process."""
    reasons = Counter()
    runtime = FallbackRuntime(
        TritonRuntime(url), OnnxRuntime(n_workers=2), hedge_share, lambda reason: reasons.update([reason])
    )
    try:
        await runtime.load(model)
        yield runtime, reasons
    finally:
        await runtime.close()


async def ask(runtime, model, popularity, *, n_rows=3, timeout_s=60.0):
    """Score rows that only this caller has; their score is popularity - price / 100."""
    features_DF = np.array([[100 * row, popularity] for row in range(n_rows)], dtype=np.float32)
    answer = await runtime.infer(model, {"features": features_DF}, timeout_s=timeout_s)
    np.testing.assert_allclose(answer["score"], popularity - np.arange(n_rows, dtype=np.float32), rtol=1e-6)


async def until(condition, seconds=60.0):
    give_up_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_s
        await asyncio.sleep(0.005)


def spoil(triton, name):
    if name == "half a tensor":
        triton.truncate = True
    elif name in CHANGES:
        triton.change = CHANGES[name]
    else:
        triton.status = grpc.StatusCode[name]


FAULTS = [*CHANGES, "half a tensor", "INTERNAL", "UNAVAILABLE", "UNKNOWN", "RESOURCE_EXHAUSTED"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_answer_is_an_error_of_triton_and_answered_in_this_process_until_it_is_right(model, name):
    async def scenario():
        async with faulty_triton(model) as (triton, url), fallback(url, model) as (runtime, reasons):
            alone = TritonRuntime(url)
            await alone.load(model)
            spoil(triton, name)
            with pytest.raises(RankyardError, match="Triton"):
                await ask(alone, model, 1.0)
            await alone.close()
            for number in range(10):
                await ask(runtime, model, float(number))
            assert reasons == {"failed": 3, "open": 7}
            assert runtime.is_degraded
            triton.heal()
            await until(lambda: not runtime.is_degraded)
            n_asked = triton.n_asked
            await ask(runtime, model, 3.0)
            assert (triton.n_asked, reasons.total()) == (n_asked + 1, 10)

    asyncio.run(scenario())


def test_the_golden_rows_are_tried_until_they_are_right(model):
    async def scenario():
        async with faulty_triton(model) as (triton, url), fallback(url, model) as (runtime, _):
            triton.change = lambda outputs: {"score": outputs["score"] + 1}  # of the right form
            runtime._breakers[model.ref].open("as if it had failed")
            n_asked = triton.n_asked
            await until(lambda: triton.n_asked >= n_asked + 3)
            assert runtime.is_degraded
            triton.heal()
            await until(lambda: not runtime.is_degraded)

    asyncio.run(scenario())


def test_a_straggler_is_asked_of_this_process_and_given_up_at_triton(model):
    async def scenario():
        async with faulty_triton(model) as (triton, url), fallback(url, model, hedge_share=1.0) as (runtime, reasons):
            for number in range(40):
                await ask(runtime, model, float(number))
            n_given_up, begun, never = triton.n_given_up, asyncio.Event(), asyncio.Event()
            second = runtime._second.infer

            async def hang(_number):
                begun.set()
                await never.wait()

            async def after_triton_has_read_it(*arguments, **settings):
                await begun.wait()
                return await second(*arguments, **settings)

            triton.delay, runtime._second.infer = hang, after_triton_has_read_it
            await ask(runtime, model, 41.0, timeout_s=600)
            assert set(reasons) == {"hedged"}
            await until(lambda: triton.n_given_up > n_given_up)

    asyncio.run(scenario())


def test_a_server_that_is_slow_as_a_whole_is_hedged_for_a_share_of_the_batches_alone(model, monkeypatch):
    monkeypatch.setattr(breaker, "_SILENT_S", 600)  # a busy machine is no reason to leave Triton alone here

    async def scenario():
        async def slow(number):
            await asyncio.sleep(0.001 if number % 10 else 0.05)

        async with faulty_triton(model) as (triton, url), fallback(url, model) as (runtime, reasons):
            triton.delay = slow
            for number in range(300):
                await ask(runtime, model, float(number), timeout_s=600)
            assert reasons["hedged"] <= 15  # how many wait longer than 95 of 100 is up to the machine
            assert reasons.total() == reasons["hedged"]

    asyncio.run(scenario())


def test_every_caller_gets_its_own_answer_whoever_wins(model, monkeypatch):
    """Half of the batches are hedged: answers come from both sides, in any order, and losers are cut off midway."""
    monkeypatch.setattr(hedging, "_LATE", 0.5)
    monkeypatch.setattr(breaker, "_SILENT_S", 600)  # a busy machine is no reason to leave Triton alone here

    async def scenario():
        async with faulty_triton(model) as (triton, url), fallback(url, model, hedge_share=1.0) as (runtime, reasons):

            async def uneven(number):
                await asyncio.sleep((number * 2_654_435_761 % 8) / 2_000)

            async def caller(seed):
                random = np.random.default_rng(seed)
                for _ in range(60):
                    await ask(runtime, model, float(random.integers(10_000)), n_rows=int(random.integers(1, 9)))

            triton.delay = uneven
            await asyncio.gather(*(caller(seed) for seed in range(16)))
            assert reasons["hedged"] > 100
            await until(lambda: triton.n_given_up > 0)

    asyncio.run(scenario())


def test_a_caller_who_goes_away_is_given_up_on_both_sides(model):
    async def scenario():
        never = asyncio.Event()
        async with faulty_triton(model) as (triton, url), fallback(url, model) as (runtime, _):
            triton.delay = lambda _number: never.wait()
            n_asked = triton.n_asked
            task = asyncio.create_task(ask(runtime, model, 1.0, timeout_s=600))
            await until(lambda: triton.n_asked > n_asked)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await until(lambda: triton.n_given_up == 1)
            await until(lambda: [one for one in asyncio.all_tasks() if "infer" in repr(one.get_coro())] == [])

    asyncio.run(scenario())


def test_a_late_answer_still_counts_where_this_process_cannot_answer(model, monkeypatch):
    monkeypatch.setattr(fallback_runtime, "_SHARE", 0.005)

    async def scenario():
        async with faulty_triton(model) as (triton, url), fallback(url, model) as (runtime, reasons):
            await runtime._second.close()
            triton.delay = lambda _number: until(lambda: reasons)
            await ask(runtime, model, 7.0)
            assert reasons == {"late": 1}
            triton.delay = lambda _number: asyncio.sleep(60)
            with pytest.raises(UnavailableError):
                await ask(runtime, model, 7.0, timeout_s=0.2)

    asyncio.run(scenario())


def test_a_gateway_that_stops_does_not_wait_for_a_trial_that_hangs(model, monkeypatch):
    monkeypatch.setattr(triton_runtime, "_LOAD_TIMEOUT_S", 600.0)

    async def scenario():
        never = asyncio.Event()
        async with faulty_triton(model) as (triton, url), fallback(url, model) as (runtime, _):
            triton.delay = lambda _number: never.wait()
            n_asked = triton.n_asked
            runtime._breakers[model.ref].open("as if it had failed")
            await until(lambda: triton.n_asked > n_asked)

    asyncio.run(scenario())  # which waits for threads too


async def keep_asking(runtime, model, stopping, seed):
    n_asked = 0
    while not stopping.is_set():
        await ask(runtime, model, float(seed * 1_000 + n_asked % 1_000), timeout_s=8.0)
        n_asked += 1
        await asyncio.sleep(0)
    return n_asked


@needs_triton
def test_no_batch_fails_while_a_real_server_is_killed_and_started_again(model, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_USUAL_PORTS", server._ports((0, 0, 0)))
    repository = tmp_path / "repository"

    async def scenario():
        opened = TritonServer(await asyncio.to_thread(server.up, tmp_path, repository))
        await asyncio.to_thread(opened.serve, [model])
        async with fallback(opened.running.grpc, model) as (runtime, reasons):
            stopping = asyncio.Event()
            callers = [asyncio.create_task(keep_asking(runtime, model, stopping, seed)) for seed in range(4)]
            for _ in range(2):
                pid = server.status(tmp_path).pid
                os.kill(pid, signal.SIGKILL)
                await until(lambda: runtime.is_degraded)
                await until(lambda: server.status(tmp_path) is None)
                await asyncio.to_thread(server.up, tmp_path, repository)
                await until(lambda: not runtime.is_degraded)
            stopping.set()
            n_asked = await asyncio.gather(*callers)
            assert min(n_asked) > 3
            assert reasons["failed"] >= 3
            assert reasons["open"] > 0
            before = Counter(reasons)
            await ask(runtime, model, 5.0)
            assert set(reasons - before) <= {"hedged"}  # any batch may be one of the five of 100 that are later

    try:
        asyncio.run(scenario())
    finally:
        server.down(tmp_path)


def test_no_batch_fails_while_a_real_server_hangs_and_goes_on(model, triton_server):
    triton_server.serve([model])

    async def scenario():
        async with fallback(triton_server.running.grpc, model) as (runtime, reasons):
            stopping = asyncio.Event()
            callers = [asyncio.create_task(keep_asking(runtime, model, stopping, seed)) for seed in range(4)]
            with triton_server.hung():
                await until(lambda: runtime.is_degraded)
            await until(lambda: not runtime.is_degraded)
            stopping.set()
            assert min(await asyncio.gather(*callers)) > 3
            assert reasons["late"] + reasons["hedged"] >= 3

    asyncio.run(scenario())


def test_without_a_fallback_a_hung_server_is_a_deadline(model, triton_server):
    triton_server.serve([model])

    async def scenario():
        runtime = TritonRuntime(triton_server.running.grpc)
        await runtime.load(model)
        with triton_server.hung(), pytest.raises(DeadlineError):
            await ask(runtime, model, 1.0, timeout_s=0.2)
        await runtime.close()

    asyncio.run(scenario())

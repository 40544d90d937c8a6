"""What happens when the first runtime fails, hangs, answers late, and comes back."""

import asyncio
import contextlib
import gc
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from models.errors import DeadlineError, NotFoundError, RankyardError, UnavailableError
from serving.runtime import breaker, fallback
from serving.runtime.fallback import FallbackRuntime
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop whose clock stands while anything is to be done, and goes on to the next timer where nothing is."""

    def __init__(self):
        super().__init__()
        self._now_s = 0.0

    def time(self):
        return self._now_s

    def _run_once(self):
        timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]
        if timers and not self._ready:
            self._now_s = max(self._now_s, min(timers))
        super()._run_once()


@pytest.fixture(autouse=True)
def one_clock(monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    for module in (breaker, fallback):
        monkeypatch.setattr(module, "time", clock)


class Scripted:
    """Answers rows of `value`; does `fault` instead where there is one."""

    n_workers = 2
    n_ahead = 0
    is_degraded = False

    def __init__(self, value):
        self.value, self.fault, self.load_fault, self.failing = value, None, None, None
        self.n_loaded = 0
        self.asked_for = Counter()

    @property
    def n_asked(self):
        return self.asked_for.total()

    async def load(self, model):  # noqa: ARG002
        self.n_loaded += 1
        if self.load_fault is not None:
            raise self.load_fault

    async def infer(self, model, inputs, *, timeout_s, **_):
        self.asked_for[model.ref] += 1
        if model.ref == self.failing:
            raise UnavailableError("not this one")
        n_rows = len(inputs["features"])
        if self.fault == "hang":
            await asyncio.sleep(timeout_s)
            raise DeadlineError(f"{model.ref} is late")
        if self.fault is not None:
            raise self.fault
        return {"score": np.full(n_rows, self.value, np.float32)}

    async def close(self):
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ServedModel("r", "1", tiny_bundle(tmp_path_factory.mktemp("r"), "ranking"))


async def until(condition, seconds=10.0):
    clock = asyncio.get_running_loop().time
    give_up_s = clock() + seconds
    while not condition():
        assert clock() < give_up_s
        await asyncio.sleep(0.002)


def run(scenario, model):
    async def opened():
        first = Scripted(1.0)
        runtime = FallbackRuntime(first, Scripted(2.0))
        await runtime.load(model)

        async def ask(timeout_s=1.0):
            found = await runtime.infer(model, {"features": np.zeros((3, 2), np.float32)}, timeout_s=timeout_s)
            return found["score"].tolist()

        try:
            await scenario(runtime, first, ask)
        finally:
            await runtime.close()

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(opened())


@pytest.mark.parametrize("fault", [UnavailableError("gone"), RankyardError("broken"), KeyError("a bug")], ids=str)
def test_what_the_first_fails_on_the_second_answers(model, fault):
    async def scenario(runtime, first, ask):
        assert await ask() == [1.0] * 3
        first.fault = fault
        for _ in range(10):
            assert await ask() == [2.0] * 3
        assert runtime.is_degraded
        assert first.n_asked == 4

    run(scenario, model)


def test_a_hanging_first_runtime_leaves_time_for_the_second(model, monkeypatch):
    monkeypatch.setattr(breaker, "_SILENT_S", 0.8)

    async def scenario(runtime, first, ask):
        first.fault = "hang"
        clock = asyncio.get_running_loop().time
        started = clock()
        for _ in range(20):
            assert await ask(1.2) == [2.0] * 3
        assert clock() - started == pytest.approx(4 * 0.6)  # where every ask waited for it: 20 * 0.6
        assert runtime.is_degraded
        assert first.n_asked == 4  # of which the first had no time to tell

    run(scenario, model)


def test_a_moment_of_silence_is_no_reason_to_leave_the_first(model):
    async def scenario(runtime, first, ask):
        first.fault = "hang"
        for _ in range(5):
            assert await ask(0.02) == [2.0] * 3
        assert not runtime.is_degraded
        first.fault = None
        assert await ask() == [1.0] * 3

    run(scenario, model)


def test_time_in_which_nobody_waits_is_no_silence(model):
    async def scenario(runtime, first, ask):
        first.fault = "hang"
        for _ in range(10):
            with contextlib.suppress(DeadlineError):
                await ask(timeout_s=0.006)
            assert not runtime.is_degraded
            await asyncio.sleep(1)
        for _ in range(100):
            with contextlib.suppress(DeadlineError):
                await ask(timeout_s=0.006)
        assert runtime.is_degraded

    run(scenario, model)


def test_one_model_that_fails_there_leaves_the_others_there(model):
    other = replace(model, name="other")

    async def scenario(runtime, first, ask):
        await runtime.load(other)
        first.failing = other.ref
        for _ in range(5):
            await runtime.infer(other, {"features": np.zeros((1, 2), np.float32)}, timeout_s=1.0)
            assert await ask() == [1.0] * 3
        assert runtime.is_degraded
        assert first.asked_for[other.ref] == 3

    run(scenario, model)


def test_a_request_that_both_fail_on_says_nothing_about_the_first(model):
    async def scenario(runtime, first, ask):
        first.fault = runtime._second.fault = RankyardError("a bad row")
        for _ in range(10):
            with pytest.raises(RankyardError, match="a bad row"):
                await ask()
        assert not runtime.is_degraded

    run(scenario, model)


def test_it_comes_back_to_the_first_when_that_proves_itself(model, monkeypatch):
    monkeypatch.setattr(breaker, "_TRIAL_EVERY_S", 0.01)

    async def scenario(runtime, first, ask):
        first.fault = first.load_fault = UnavailableError("gone")
        for _ in range(3):
            await ask()
        first.fault = None
        n_tried = first.n_loaded
        await until(lambda: first.n_loaded > n_tried + 2)
        assert await ask() == [2.0] * 3
        first.load_fault = None
        await until(lambda: not runtime.is_degraded)
        assert await ask() == [1.0] * 3

    run(scenario, model)


def test_after_a_trial_the_next_failure_leaves_it_again_and_for_twice_as_long(model, monkeypatch):
    monkeypatch.setattr(breaker, "_TRIAL_EVERY_S", 0.01)

    async def scenario(runtime, first, ask):
        own = runtime._breakers[model.ref]
        first.fault = UnavailableError("answers golden rows alone")
        for wait_s in (0.01, 0.02, 0.04):
            n_asked = first.n_asked
            assert own._wait_s == pytest.approx(wait_s)
            while not runtime.is_degraded:
                assert await ask() == [2.0] * 3
            assert first.n_asked - n_asked == (3 if wait_s == 0.01 else 1)
            await until(lambda: not runtime.is_degraded)
        first.fault = None
        assert await ask() == [1.0] * 3
        assert own._wait_s == pytest.approx(0.01)

    run(scenario, model)


def test_one_failure_between_answers_does_not_leave_the_first(model):
    async def scenario(runtime, first, ask):
        for _ in range(5):
            first.fault = UnavailableError("away for a moment")
            assert await ask() == [2.0] * 3
            first.fault = None
            assert await ask() == [1.0] * 3
        assert not runtime.is_degraded

    run(scenario, model)


def test_what_both_fail_on_is_the_seconds_error(model):
    async def scenario(runtime, first, ask):
        first.fault = UnavailableError("gone")
        runtime._second.fault = RankyardError("a bad row")
        with pytest.raises(RankyardError, match="a bad row"):
            await ask()

    run(scenario, model)


def test_without_a_server_it_begins_with_the_second_and_without_the_model_it_does_not_begin(model):
    async def scenario():
        first = Scripted(1.0)
        first.load_fault = UnavailableError("no server")
        runtime = FallbackRuntime(first, Scripted(2.0))
        await runtime.load(model)
        assert runtime.is_degraded
        await runtime.close()
        first.load_fault = NotFoundError("not deployed")
        runtime = FallbackRuntime(first, Scripted(2.0))
        with pytest.raises(NotFoundError, match="not deployed"):
            await runtime.load(model)
        await runtime.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", [None, "hang", "failing"])
def test_what_both_fail_on_leaves_nothing_to_the_collector(model, fault):
    async def scenario(runtime, first, ask):
        first.fault = "hang" if fault == "hang" else None
        first.failing = runtime._second.failing = model.ref if fault == "failing" else None
        runtime._second.fault = "hang" if fault == "hang" else None
        while gc.collect():
            pass  # what other tests have left, which may come in several goes
        for _ in range(5):
            with contextlib.suppress(RankyardError):
                await ask()
        assert gc.collect() == 0

    run(scenario, model)

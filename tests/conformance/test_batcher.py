"""What a batcher owes its callers, on a runtime whose faults can be forced and on the real one."""

import asyncio
import contextlib
import gc
import random
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import Encoded, collate, split
from models.errors import DeadlineError, OverloadedError, RankyardError, UnavailableError
from models.model import open_model
from registry import golden
from serving.gateway.batcher import Batcher, priority
from serving.gateway.config import BatchConfig
from serving.gateway.cost import Cost
from serving.gateway.flow import Decoding, Flow
from serving.gateway.telemetry import Telemetry
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel
from tests.bundles import FEATURES, tiny_bundle

POISON = 400


@pytest.fixture(scope="module")
def intent(tmp_path_factory) -> ServedModel:
    return ServedModel("tiny-intent", "1", tiny_bundle(tmp_path_factory.mktemp("intent")))


@pytest.fixture(scope="module")
def ranking(tmp_path_factory) -> ServedModel:
    return ServedModel("tiny-ranking", "1", tiny_bundle(tmp_path_factory.mktemp("ranking"), "ranking"))


class EchoRuntime:
    """Answers every request with its own number, when `pause` lets it; fails where a batch holds POISON."""

    def __init__(self, n_workers: int = 1, pause: Callable[[], object] | None = None, n_ahead: int = 0) -> None:
        self.n_workers, self.n_ahead = n_workers, n_ahead
        self.batches: list[list[int]] = []
        self.lone_s: list[float | None] = []
        self.n_running = self.most_running = 0
        self.gate = asyncio.Event()
        self._pause = pause

    async def load(self, model):
        del model

    async def infer(self, model, inputs, *, timeout_s, lone_s=None):
        self.lone_s.append(lone_s)
        column = inputs["ngram_ids"] if "ngram_ids" in inputs else inputs["features"]
        numbers = column[:, 0]
        self.batches.append([int(number) for number in numbers])
        self.n_running += 1
        self.most_running = max(self.most_running, self.n_running)
        try:
            async with asyncio.timeout(timeout_s):
                await (self._pause() if self._pause else self.gate.wait())
        except TimeoutError:
            raise DeadlineError("too slow") from None
        finally:
            self.n_running -= 1
        return self.echo(model, numbers)

    def echo(self, model, numbers):
        if POISON in numbers:
            raise RankyardError("poison")
        name = model.bundle.manifest.signature.outputs[0].name
        return {name: numbers.astype(np.float32)}

    async def close(self):
        pass


class AtOnceRuntime(EchoRuntime):
    """Answers what is alone before it is left."""

    n_at_once = 0

    def infer(self, model, inputs, *, timeout_s, lone_s=None):
        if lone_s is None:
            return super().infer(model, inputs, timeout_s=timeout_s)
        self.n_at_once += 1
        self.lone_s.append(lone_s)
        numbers = (inputs["ngram_ids"] if "ngram_ids" in inputs else inputs["features"])[:, 0]
        self.batches.append([int(number) for number in numbers])
        ran = asyncio.get_running_loop().create_future()
        ran.set_result(self.echo(model, numbers))
        return ran


def text(number: int, length: int = 3) -> Encoded:
    return Encoded(
        {
            "ngram_ids": np.full(length, number, dtype=np.int64),
            "ngram_counts": np.ones(length, dtype=np.float32),
        }
    )


def candidates(number: int, n: int) -> Encoded:
    return Encoded({"features": np.full((n, len(FEATURES)), number, dtype=np.float32)})


def in_s(seconds: float) -> float:
    return time.monotonic() + seconds


def batcher(runtime, *, max_queue_length: int = 100, costs=None, **config) -> Batcher:
    return Batcher(runtime, BatchConfig(**config), max_queue_length, Telemetry(), costs)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def number(future) -> int:
    return int((await future)["intent_logits"])


def test_a_batch_that_fails_leaves_no_garbage(intent):
    async def fail():
        raise UnavailableError("gone")

    async def run():
        queue = batcher(EchoRuntime(pause=fail), max_batch_size=4)
        gc.collect()
        futures = [queue.submit(intent, text(number), in_s(60)) for number in range(4)]
        while futures:
            with pytest.raises(UnavailableError, match="gone"):
                await futures.pop()
        await settle()
        return gc.collect()

    gc.disable()
    try:
        assert asyncio.run(run()) == 0
    finally:
        gc.enable()


def test_a_lone_request_starts_at_once(intent):
    async def run():
        runtime = EchoRuntime(n_workers=2)
        future = batcher(runtime, max_batch_size=8).submit(intent, text(7), in_s(60))
        await settle()
        assert runtime.batches == [[7]]
        runtime.gate.set()
        assert await number(future) == 7

    asyncio.run(run())


def test_requests_that_wait_for_a_worker_go_together_and_no_batch_is_too_large(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=4)
        futures = [queue.submit(intent, text(0), in_s(60))]
        await settle()
        futures += [queue.submit(intent, text(n), in_s(60)) for n in range(1, 11)]
        runtime.gate.set()
        assert [await number(future) for future in futures] == list(range(11))
        assert [len(batch) for batch in runtime.batches] == [1, 4, 4, 2]

    asyncio.run(run())


def test_what_arrives_together_is_shared_among_idle_workers(intent):
    async def run():
        runtime = EchoRuntime(n_workers=2)
        queue = batcher(runtime, max_batch_size=8)
        for n in range(6):
            queue.submit(intent, text(n), in_s(60))
        await settle()
        assert [len(batch) for batch in runtime.batches] == [3, 3]
        runtime.gate.set()
        await queue.drain(60)

    asyncio.run(run())


def test_the_most_urgent_goes_first_with_its_neighbours_in_length(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=2, costs={intent.ref: Cost(0.01, 0.01)})
        queue.submit(intent, text(0), in_s(60))
        await settle()
        for n, length, seconds in ((1, 3, 60), (2, 40, 5), (3, 4, 60), (4, 41, 60)):
            queue.submit(intent, text(n, length), in_s(seconds))
        runtime.gate.set()
        await queue.drain(60)
        assert runtime.batches == [[0], [2, 4], [1, 3]]

    asyncio.run(run())


def test_padding_is_bounded(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=8, max_padding=0.4)
        queue.submit(intent, text(0), in_s(60))
        await settle()
        for n, length in enumerate((10, 10, 100), start=1):
            queue.submit(intent, text(n, length), in_s(60))
        runtime.gate.set()
        await queue.drain(60)
        assert runtime.batches == [[0], [1, 2], [3]]

    asyncio.run(run())


def test_every_window_of_a_long_text_counts_as_a_row(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=4)
        queue.submit(intent, text(0), in_s(60))
        await settle()
        windows = [text(n).arrays for n in (4, 5, 9)]
        rows = {name: np.stack([window[name] for window in windows]) for name in windows[0]}
        futures = [queue.submit(intent, Encoded(rows, n_windows=3), in_s(50))]
        futures += [queue.submit(intent, text(n), in_s(60)) for n in (2, 3)]
        runtime.gate.set()
        await queue.drain(60)
        assert runtime.batches == [[0], [4, 5, 9, 2], [3]]
        # A number that is said of the whole text is the mean over its windows.
        assert (await futures[0])["intent_logits"] == 6
        assert [await number(future) for future in futures[1:]] == [2, 3]

    asyncio.run(run())


def test_candidate_lists_share_a_matrix_up_to_its_rows(ranking):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=8, max_batch_rows=10)
        queue.submit(ranking, candidates(0, 1), in_s(60))
        await settle()
        futures = [
            queue.submit(ranking, candidates(n, size), in_s(60)) for n, size in ((1, 4), (2, 5), (3, 3), (4, 50))
        ]
        runtime.gate.set()
        answers = [(await future)["score"] for future in futures]
        assert [len(batch) for batch in runtime.batches] == [1, 9, 3, 50]
        for answer, (n, size) in zip(answers, ((1, 4), (2, 5), (3, 3), (4, 50)), strict=True):
            np.testing.assert_array_equal(answer, np.full(size, n))

    asyncio.run(run())


def test_a_cancelled_caller_leaves_the_queue_and_hurts_nobody(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime)
        futures = [queue.submit(intent, text(0), in_s(60))]
        await settle()
        futures += [queue.submit(intent, text(n), in_s(60)) for n in (1, 2, 3)]
        waiting = asyncio.create_task(number(futures[2]))
        await settle()
        waiting.cancel()
        runtime.gate.set()
        assert [await number(futures[n]) for n in (0, 1, 3)] == [0, 1, 3]
        assert runtime.batches == [[0], [1, 3]]

    asyncio.run(run())


def test_a_caller_that_leaves_while_its_batch_runs_hurts_nobody(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime)
        futures = [queue.submit(intent, text(n), in_s(60)) for n in (1, 2)]
        await settle()
        futures[0].cancel()
        runtime.gate.set()
        assert await number(futures[1]) == 2

    asyncio.run(run())


def test_an_error_in_one_request_fails_that_one_alone(intent):
    async def run():
        runtime = EchoRuntime()
        runtime.gate.set()
        queue = batcher(runtime)
        futures = [queue.submit(intent, text(n), in_s(60)) for n in (1, POISON, 3)]
        assert [await number(futures[n]) for n in (0, 2)] == [1, 3]
        with pytest.raises(RankyardError, match="poison"):
            await futures[1]
        assert await number(queue.submit(intent, text(9), in_s(60))) == 9

    asyncio.run(run())


def test_a_request_that_does_not_fit_its_model_fails_alone_and_the_log_says_why(intent, caplog):
    async def run():
        runtime = EchoRuntime()
        runtime.gate.set()
        queue = batcher(runtime)
        wrong = Encoded({"ngram_ids": np.zeros(3, dtype=np.int64)})
        futures = [queue.submit(intent, encoded, in_s(60)) for encoded in (text(1), wrong, text(3))]
        assert [await number(futures[n]) for n in (0, 2)] == [1, 3]
        with pytest.raises(RankyardError, match="its log says why"):
            await futures[1]

    asyncio.run(run())
    assert "ngram_counts" in caplog.text


def test_a_runtime_that_is_gone_is_not_asked_once_more_for_every_request(intent):
    async def gone():
        raise UnavailableError("gone")

    async def run():
        runtime = EchoRuntime(pause=gone)
        queue = batcher(runtime)
        futures = [queue.submit(intent, text(n), in_s(60)) for n in (1, 2, 3)]
        for future in futures:
            with pytest.raises(UnavailableError):
                await future
        assert len(runtime.batches) == 1

    asyncio.run(run())


def test_answers_of_a_wrong_shape_go_to_nobody(intent):
    class Short(EchoRuntime):
        async def infer(self, model, inputs, *, timeout_s, **_):
            return {
                name: array[:-1] for name, array in (await super().infer(model, inputs, timeout_s=timeout_s)).items()
            }

    async def run():
        runtime = Short()
        runtime.gate.set()
        queue = batcher(runtime)
        for future in [queue.submit(intent, text(n), in_s(60)) for n in (1, 2, 3)]:
            with pytest.raises(RankyardError, match="must answer 1 rows"):
                await future

    asyncio.run(run())


def test_a_request_is_lone_where_nothing_else_is_there_nor_came_while_the_last_one_ran(intent):
    async def run():
        runtime, cost = EchoRuntime(pause=lambda: asyncio.sleep(0)), Cost(0.5, 0.25)
        queue = batcher(runtime, costs={intent.ref: cost})
        await queue.submit(intent, text(1), in_s(60))
        assert runtime.lone_s == [0.5 + 3 * 0.25]
        await queue.submit(intent, text(2), in_s(60))
        await asyncio.gather(*(queue.submit(intent, text(number), in_s(60)) for number in (3, 4)))  # one batch
        await queue.submit(intent, text(5), in_s(60))
        first = queue.submit(intent, text(6), in_s(60))
        await asyncio.sleep(0)
        second = queue.submit(intent, text(7), in_s(60))  # while the first runs
        await asyncio.gather(first, second)
        with queue.admit(intent, in_s(60)):  # is being read
            await queue.submit(intent, text(8), in_s(60))
        for n in (9, 10):
            await queue.submit(intent, text(n), in_s(60))
        is_lone = [lone_s is not None for lone_s in runtime.lone_s]
        assert is_lone == [True, True, False, False, True, False, False, False, True]

    asyncio.run(run())


def test_what_is_alone_and_the_only_one_of_its_request_is_answered_before_it_is_left(intent):
    async def run():
        runtime = AtOnceRuntime(pause=lambda: asyncio.sleep(0))
        queue = batcher(runtime)

        def begins_at_once(n: int, place=None, *, is_only: bool = True) -> asyncio.Future:
            future = queue.submit(intent, text(n), in_s(60), place, is_only=is_only)
            assert runtime.batches.count([n]) == future.done()
            return future

        assert begins_at_once(1).done()
        assert begins_at_once(2, queue.admit(intent, in_s(60))).done()
        others = begins_at_once(3, is_only=False)  # more of its request may come
        assert not others.done()
        assert not begins_at_once(4).done()  # one waits
        await settle()
        assert not begins_at_once(5).done()  # the last one was not alone
        await settle()
        with queue.admit(intent, in_s(60)):  # is being read
            assert not begins_at_once(6).done()
            await settle()
        for n in (7, 8):
            await queue.submit(intent, text(n), in_s(60))
        answered = begins_at_once(9)
        assert int(answered.result()["intent_logits"]) == 9
        assert await number(others) == 3
        with pytest.raises(RankyardError, match="poison"):
            await queue.submit(intent, text(POISON), in_s(60), is_only=True)
        with pytest.raises(DeadlineError):
            await queue.submit(intent, text(10), in_s(-1), is_only=True)
        queue._was_lone = True
        assert await queue.submit(intent, text(11), in_s(60), decoding=Decoding(11, read), is_only=True) == (11, 11)
        await queue.drain(1)

    asyncio.run(run())


def test_what_is_answered_before_it_is_left_and_behind_its_deadline_is_late(intent):
    class SlowRuntime(AtOnceRuntime):
        def infer(self, model, inputs, *, timeout_s, lone_s=None):
            time.sleep(2 * timeout_s)
            return super().infer(model, inputs, timeout_s=timeout_s, lone_s=lone_s)

    async def run():
        queue = batcher(SlowRuntime())
        with pytest.raises(DeadlineError):
            await queue.submit(intent, text(1), in_s(0.02), is_only=True)
        await queue.drain(1)

    asyncio.run(run())


def test_what_has_expired_is_not_kept_until_something_else_comes(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime)
        busy = [queue.submit(intent, text(1), in_s(60)) for _ in range(2)]
        await settle()
        late = [text(number) for number in range(10)]
        kept = [weakref.ref(one.arrays["ngram_ids"]) for one in late]
        await asyncio.gather(*[queue.submit(intent, one, in_s(0.01)) for one in late], return_exceptions=True)
        late.clear()
        await settle()
        gc.collect()
        assert [one() for one in kept] == [None] * 10
        runtime.gate.set()
        await asyncio.gather(*busy)
        await queue.drain(1)

    asyncio.run(run())


def test_what_begins_alone_elsewhere_keeps_its_deadline_and_can_be_given_up(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime)
        late = queue.submit(intent, text(1), in_s(0.02), is_only=True)
        assert runtime.lone_s == []  # the task of an asynchronous runtime has not begun
        with pytest.raises(DeadlineError):
            await late
        await settle()
        queue._was_lone = True
        given_up = queue.submit(intent, text(2), in_s(60), is_only=True)
        await settle()
        given_up.cancel()
        runtime.gate.set()
        await queue.drain(1)
        assert runtime.batches == [[1], [2]]

    asyncio.run(run())


def test_a_full_queue_refuses_and_says_when_to_come_back(intent):
    async def run():
        cost = Cost()
        # The first takes 50 ms, or longer on a busy machine; those behind it until they may end.
        runtime = EchoRuntime(pause=lambda: runtime.gate.wait() if runtime.batches[1:] else asyncio.sleep(0.05))
        queue = batcher(runtime, max_queue_length=4, max_batch_size=1, costs={intent.ref: cost})
        await queue.submit(intent, text(0), in_s(60))
        futures = [queue.submit(intent, text(1), in_s(60))]
        await settle()
        futures += [queue.submit(intent, text(n), in_s(60)) for n in range(2, 6)]
        with pytest.raises(OverloadedError, match="at most 4 requests") as refused:
            queue.submit(intent, text(6), in_s(60))
        # Four wait behind one that runs, each takes one worker as long as the first did.
        each_s = cost.seconds(3)
        assert each_s > 0.045
        assert 3.99 * each_s < refused.value.retry_after_s < 5.01 * each_s
        runtime.gate.set()
        assert [await number(future) for future in futures] == [1, 2, 3, 4, 5]
        assert await number(queue.submit(intent, text(7), in_s(60))) == 7

    asyncio.run(run())


def test_a_request_that_could_not_start_before_its_deadline_is_refused_at_once(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=1, costs={intent.ref: Cost(0.0, 1.0)})
        futures = [queue.submit(intent, text(0), in_s(600))]
        await settle()
        # One of 3 s runs, ten wait: 33 s of work, and half as much again for caution.
        futures += [queue.submit(intent, text(n), in_s(600)) for n in range(1, 11)]
        with pytest.raises(OverloadedError, match=r"about 3[123]... ms of work wait for tiny-intent/1") as refused:
            queue.submit(intent, text(11), in_s(45))
        assert refused.value.retry_after_s == pytest.approx(33, abs=2)
        futures.append(queue.submit(intent, text(11), in_s(70)))
        runtime.gate.set()
        assert [await number(future) for future in futures] == list(range(12))

    asyncio.run(run())


def test_what_is_admitted_keeps_its_room_and_is_not_refused_when_it_comes(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_queue_length=3, max_batch_size=1)
        running = queue.submit(intent, text(0), in_s(60))
        await settle()
        places = [queue.admit(intent, in_s(60)) for _ in range(3)]
        for refused in (lambda: queue.admit(intent, in_s(60)), lambda: queue.submit(intent, text(9), in_s(60))):
            with pytest.raises(OverloadedError, match="at most 3 requests"):
                refused()
        # What waits takes the place of what was kept for it, and no other.
        futures = [queue.submit(intent, text(n), in_s(60), place) for n, place in enumerate(places[:2], 1)]
        with pytest.raises(OverloadedError):
            queue.submit(intent, text(9), in_s(60), places[0])
        places[2].leave()
        places[2].leave()
        futures.append(queue.submit(intent, text(3), in_s(60)))
        with pytest.raises(OverloadedError):
            queue.admit(intent, in_s(60))
        runtime.gate.set()
        assert [await number(future) for future in (running, *futures)] == [0, 1, 2, 3]

    asyncio.run(run())


def test_of_those_that_come_together_as_many_are_admitted_as_there_is_time_for(intent):
    async def run():
        queue = batcher(EchoRuntime(), max_batch_size=1, costs={intent.ref: Cost(0.0, 1.0)})
        queue.submit(intent, text(0), in_s(600))
        await settle()
        # One of 3 s runs, one waits. Those behind them are done after 9, 12, 15, 18 s, and with half as much again for
        # caution after 13.5, 18, 22.5, 27 s.
        queue.submit(intent, text(0), in_s(600))
        for _ in range(3):
            queue.admit(intent, in_s(25))
        with pytest.raises(OverloadedError, match=r"about 1[45]\d\d\d ms of work"):
            queue.admit(intent, in_s(25))

    asyncio.run(run())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["admit", "submit", "leave", "cancel", "answer"]), st.integers(0, 30))))
def test_room_is_taken_once_and_given_back_whatever_becomes_of_a_request(intent, steps):
    """As many are taken at any time as are admitted and have not left, or wait."""
    most = 6

    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_queue_length=most, max_batch_size=1)
        running = queue.submit(intent, text(0), in_s(60))
        await settle()
        kept, waiting = [], []
        for step, choice in steps:
            if step == "admit":
                n_taken = len(kept) + len(waiting)
                try:
                    kept.append(queue.admit(intent, in_s(60)))
                    assert n_taken < most
                except OverloadedError:
                    assert n_taken == most
            elif step in ("submit", "leave") and kept:
                place = kept.pop(choice % len(kept))
                if step == "submit":
                    waiting.append(queue.submit(intent, text(1), in_s(60), place))
                else:
                    place.leave()
            elif step == "cancel" and waiting:
                waiting.pop(choice % len(waiting)).cancel()
                await settle()
            elif step == "answer":
                runtime.gate.set()
                await asyncio.gather(running, *waiting)
                runtime.gate.clear()
                waiting.clear()
                if len(kept) == most:
                    kept.pop().leave()
                running = queue.submit(intent, text(0), in_s(60))
                await settle()
        for place in kept:
            place.leave()
        runtime.gate.set()
        await asyncio.gather(running, *waiting)
        assert len([queue.admit(intent, in_s(60)) for _ in range(most)]) == most
        with pytest.raises(OverloadedError):
            queue.admit(intent, in_s(60))

    asyncio.run(run())


def test_late_answers_make_cautious_and_answers_in_time_bold_again(intent, monkeypatch):
    monkeypatch.setattr(Cost, "learn", lambda *_: None)

    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=1, max_queue_length=2_000, costs={intent.ref: Cost(0.0, 0.01)})

        async def is_taken():
            """Whether a request with 1.5 s is taken behind 330 ms of work."""
            runtime.gate.clear()
            futures = [queue.submit(intent, text(0), in_s(60))]
            await settle()
            futures += [queue.submit(intent, text(n), in_s(60)) for n in range(10)]
            try:
                futures.append(queue.submit(intent, text(10), in_s(1.5)))
            except OverloadedError:
                return False
            finally:
                runtime.gate.set()
                await asyncio.gather(*futures, return_exceptions=True)
            return True

        assert await is_taken()
        runtime.gate.clear()
        first = queue.submit(intent, text(0), in_s(60))
        await settle()
        late = [queue.submit(intent, text(n), in_s(1)) for n in range(15)]
        assert all(isinstance(error, DeadlineError) for error in await asyncio.gather(*late, return_exceptions=True))
        runtime.gate.set()
        assert await number(first) == 0
        assert not await is_taken()
        assert await asyncio.gather(*(number(queue.submit(intent, text(n % 10), in_s(600))) for n in range(1_500)))
        assert await is_taken()

    asyncio.run(run())


def test_whatever_is_thought_of_its_cost_a_request_that_finds_nothing_waiting_is_taken(intent):
    async def run():
        runtime = EchoRuntime()
        runtime.gate.set()
        queue = batcher(runtime, costs={intent.ref: Cost(1000.0, 1000.0)})
        assert await number(queue.submit(intent, text(5), in_s(60))) == 5

    asyncio.run(run())


def test_a_short_text_does_not_wait_for_a_long_one_in_its_batch_nor_for_one_queued_a_moment_before(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=4, max_padding=1, costs={intent.ref: Cost(0.1, 0.1)})
        queue.submit(intent, text(0), in_s(600))
        await settle()
        for n, length in ((1, 100), (2, 3), (3, 4)):
            queue.submit(intent, text(n, length), in_s(600))
        runtime.gate.set()
        await queue.drain(60)
        assert runtime.batches == [[0], [2, 3], [1]]

    asyncio.run(run())


def test_a_long_text_waits_for_short_ones_only_so_long(intent, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("serving.gateway.flow.time.monotonic", lambda: now)

    async def run():
        nonlocal now
        flow = Flow(intent, 1.0, Cost(0.0, 0.001), BatchConfig(max_batch_size=1), Telemetry().model(intent))
        long = flow.add(text(1, 100), now + 60)
        now += 0.18  # of the 2 x 100 ms that it may be passed in
        early = flow.add(text(2, 3), now + 60)
        now += 0.02
        late = flow.add(text(3, 3), now + 60)
        assert [flow.take(1, now, now) for _ in range(3)] == [[early], [long], [late]]

    asyncio.run(run())


def test_a_batch_stays_small_enough_for_its_most_urgent_request(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=8, costs={intent.ref: Cost(0.0, 1.0)})
        queue.submit(intent, text(0, 1), in_s(60))
        await settle()
        # 3 s each: there is room for three before the deadline of the first.
        for n in range(1, 6):
            queue.submit(intent, text(n), in_s(11 if n == 1 else 60))
        runtime.gate.set()
        await queue.drain(60)
        assert runtime.batches == [[0], [1, 2, 3], [4, 5]]

    asyncio.run(run())


def test_a_model_that_is_asked_little_does_not_wait_behind_one_that_is_asked_much(intent, ranking, monkeypatch):
    monkeypatch.setattr(Cost, "learn", lambda *_: None)

    async def run():
        runtime = EchoRuntime()
        costs = {intent.ref: Cost(0.0, 0.001), ranking.ref: Cost(0.0, 0.001)}
        queue = batcher(runtime, max_batch_size=1, costs=costs)
        queue.submit(intent, text(0), in_s(60))
        await settle()
        for n in range(1, 21):
            queue.submit(intent, text(n), in_s(60))
        for n in (101, 102):
            queue.submit(ranking, candidates(n, 3), in_s(60))
        runtime.gate.set()
        await queue.drain(60)
        order = [batch[0] for batch in runtime.batches]
        assert order.index(101) <= 2
        assert order.index(102) <= 4

    asyncio.run(run())


def test_one_full_batch_stands_ready_behind_busy_workers_and_no_small_one(intent):
    async def run():
        runtime = EchoRuntime(n_ahead=1)
        queue = batcher(runtime, max_batch_size=4)
        futures = [queue.submit(intent, text(0), in_s(60))]
        await settle()
        for n in range(1, 4):
            futures.append(queue.submit(intent, text(n), in_s(60)))
            await settle()
        assert runtime.batches == [[0]]
        futures += [queue.submit(intent, text(n), in_s(60)) for n in range(4, 12)]
        await settle()
        assert runtime.batches == [[0], [1, 2, 3, 4]]
        runtime.gate.set()
        assert [await number(future) for future in futures] == list(range(12))

    asyncio.run(run())


def test_what_must_be_answered_soon_does_not_stand_ready_behind_a_long_batch(intent):
    async def run():
        runtime = EchoRuntime(n_ahead=1)
        queue = batcher(runtime, max_batch_size=2, costs={intent.ref: Cost(0.0, 1.0)})
        queue.submit(intent, text(0, 10), in_s(60))
        await settle()
        for n, seconds in ((1, 12), (2, 60), (3, 60)):
            queue.submit(intent, text(n, 1), in_s(seconds))
        await settle()
        # The worker is busy for 10 s, half as much again for caution.
        assert runtime.batches == [[0], [2, 3]]
        runtime.gate.set()
        await queue.drain(60)

    asyncio.run(run())


def test_bulk_work_gives_way_and_is_not_starved(intent, monkeypatch):
    monkeypatch.setattr(Cost, "learn", lambda *_: None)

    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=1, costs={intent.ref: Cost(0.0, 0.001)})
        queue.submit(intent, text(0), in_s(60))
        await settle()
        before = priority.set("bulk")
        for n in range(100, 105):
            queue.submit(intent, text(n), in_s(60))
        priority.reset(before)
        for n in range(1, 41):
            queue.submit(intent, text(n), in_s(60))
        runtime.gate.set()
        await queue.drain(60)
        order = [batch[0] for batch in runtime.batches]
        # A tenth of the share: one in eleven while the others wait too.
        for end in (12, 23, 34, 45):
            assert abs(sum(n >= 100 for n in order[:end]) - end / 11) <= 1

    asyncio.run(run())


def test_bulk_work_that_somebody_begins_to_wait_for_goes_with_the_interactive(intent, monkeypatch):
    monkeypatch.setattr(Cost, "learn", lambda *_: None)

    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=1, costs={intent.ref: Cost(0.0, 0.001)})
        running = queue.submit(intent, text(0), in_s(60))
        await settle()
        before = priority.set("bulk")
        bulk = [queue.submit(intent, text(n), in_s(60)) for n in range(100, 105)]
        priority.reset(before)
        futures = [queue.submit(intent, text(n), in_s(60)) for n in range(1, 21)]
        queue.hasten([bulk[3], bulk[4], running])
        bulk[3].cancel()
        runtime.gate.set()
        await queue.drain(60)
        order = [batch[0] for batch in runtime.batches]
        # 104 came before 1 to 20 and has their share now; of the other three, a tenth of it, one in eleven.
        assert order.index(104) <= 2
        assert sorted(order) == [*range(21), 100, 101, 102, 104]
        assert order.index(102) > 20
        assert [await number(future) for future in (running, *futures, *bulk[:3], bulk[4])] == [
            *range(21),
            *(100, 101, 102, 104),
        ]

    asyncio.run(run())


def test_a_request_past_its_deadline_is_told_on_time_and_never_computed(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime)
        first = queue.submit(intent, text(0), in_s(60))
        await settle()
        late, later = queue.submit(intent, text(1), in_s(0.03)), queue.submit(intent, text(2), in_s(60))
        async with asyncio.timeout(30):
            with pytest.raises(DeadlineError):
                await late
        runtime.gate.set()
        assert [await number(first), await number(later)] == [0, 2]
        assert runtime.batches == [[0], [2]]

    asyncio.run(run())


def test_a_request_that_comes_with_its_deadline_passed_is_never_computed(intent):
    async def run():
        runtime = EchoRuntime()
        with pytest.raises(DeadlineError):
            await batcher(runtime).submit(intent, text(1), in_s(-1))
        assert runtime.batches == []

    asyncio.run(run())


def test_a_tight_deadline_in_a_batch_fails_neither_the_batch_nor_waits_for_it(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime)
        tight, loose = queue.submit(intent, text(1), in_s(0.5)), queue.submit(intent, text(2), in_s(60))
        await settle()
        assert runtime.batches == [[1, 2]]
        with pytest.raises(DeadlineError):
            await tight
        runtime.gate.set()
        assert await number(loose) == 2

    asyncio.run(run())


def test_draining_finishes_what_was_begun_and_refuses_the_rest(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=2)
        futures = [queue.submit(intent, text(n), in_s(60)) for n in range(5)]
        draining = asyncio.create_task(queue.drain(60))
        await settle()
        with pytest.raises(UnavailableError):
            queue.submit(intent, text(9), in_s(60))
        assert not draining.done()
        runtime.gate.set()
        await draining
        assert [await number(future) for future in futures] == [0, 1, 2, 3, 4]

    asyncio.run(run())


def test_draining_ends_in_time_even_when_the_runtime_hangs(intent):
    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=1)
        futures = [queue.submit(intent, text(n), in_s(60)) for n in range(3)]
        async with asyncio.timeout(30):
            await queue.drain(0.05)
        for future in futures:
            with pytest.raises(UnavailableError):
                await future

    asyncio.run(run())


def read(requests, encoded, outputs):
    """Each request beside what the runtime said to it."""
    assert [int(one.arrays["ngram_ids"][0]) for one in encoded] == requests
    return [(request, int(one["intent_logits"])) for request, one in zip(requests, outputs, strict=True)]


def test_a_batch_is_read_at_once_and_what_cannot_be_read_fails_alone(intent):
    asked = []

    def decode(requests, encoded, outputs):
        asked.append(requests)
        if 2 in requests:
            raise RankyardError("unreadable")
        return read(requests, encoded, outputs)

    async def run():
        runtime = EchoRuntime()
        queue = batcher(runtime, max_batch_size=8)
        first = [queue.submit(intent, text(n), in_s(60), decoding=Decoding(n, decode)) for n in (1, 3)]
        raw = queue.submit(intent, text(4), in_s(60))
        gone = queue.submit(intent, text(5), in_s(60), decoding=Decoding(5, decode))
        await settle()
        gone.cancel()
        runtime.gate.set()
        assert [await future for future in first] == [(1, 1), (3, 3)]
        assert int((await raw)["intent_logits"]) == 4
        assert asked == [[1, 3]]
        second = [queue.submit(intent, text(n), in_s(60), decoding=Decoding(n, decode)) for n in (1, 2)]
        assert await second[0] == (1, 1)
        with pytest.raises(RankyardError, match="unreadable"):
            await second[1]

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(12))
def test_every_request_gets_its_own_answer_whatever_the_interleaving(intent, ranking, seed):
    """400 requests a seed to two models: random arrivals, lengths, deadlines, cancellations, readings and faults."""
    n_workers, max_batch_size = 1 + seed % 3, 1 + seed % 7
    spread_s = (0.05, 0.5)[seed % 2]
    dice = random.Random(seed)

    async def pause():
        await asyncio.sleep(dice.choice((0, 0, 0.0005, 0.002)))

    async def ask(queue: Batcher, number: int) -> str:
        dice = random.Random(f"{seed} {number}")  # of its own: whose turn it is has no say in how many are cancelled
        await asyncio.sleep(dice.random() * spread_s)
        priority.set(dice.choice(("interactive", "interactive", "bulk")))
        is_ranking, deadline_s = dice.random() < 0.3, in_s(dice.choice((0.004, 600, 600)))
        size = dice.randint(1, 30)
        model, encoded = (ranking, candidates(number, size)) if is_ranking else (intent, text(number, size))
        try:
            decoding = None if is_ranking or dice.random() < 0.3 else Decoding(number, read)
            future = queue.submit(model, encoded, deadline_s, decoding=decoding, is_only=dice.random() < 0.7)
        except OverloadedError:
            return "refused" if deadline_s < in_s(0.1) else "wrong"
        if dice.random() < 0.1:
            asyncio.get_running_loop().call_later(dice.random() * 0.01, future.cancel)
        if dice.random() < 0.2:
            asyncio.get_running_loop().call_later(dice.random() * 0.01, queue.hasten, [future])
        try:
            outputs = await future
        except asyncio.CancelledError:
            return "cancelled"
        except DeadlineError:
            return "expired" if deadline_s <= time.monotonic() + 0.001 else "wrong"
        except RankyardError as error:
            return "poisoned" if number == POISON and "poison" in str(error) else "wrong"
        if decoding is not None:
            return "answered" if outputs == (number, number) else "wrong"
        answer = outputs["score"] if is_ranking else outputs["intent_logits"][None]
        expected = np.full(size if is_ranking else 1, number)
        return "answered" if np.array_equal(answer, expected) else "wrong"

    async def run() -> tuple[EchoRuntime, list[str]]:
        runtime = AtOnceRuntime(n_workers, pause)
        queue = batcher(runtime, max_queue_length=1000, max_batch_size=max_batch_size, max_batch_rows=60)
        numbers = [*range(1, 400), POISON]
        outcomes = await asyncio.gather(*(ask(queue, number) for number in numbers))
        await queue.drain(60)
        return runtime, outcomes

    runtime, outcomes = asyncio.run(run())
    assert len(outcomes) == 400
    assert "wrong" not in outcomes
    assert outcomes.count("answered") > 200
    assert spread_s < 0.1 or runtime.n_at_once > 50
    assert runtime.most_running <= n_workers
    assert max(len(set(batch)) for batch in runtime.batches) <= max_batch_size


@pytest.mark.parametrize("seed", range(4))
def test_no_request_waits_while_a_worker_idles(intent, seed):
    """Random arrivals and ends of batches, one at a time; after each, a waiting request means that all workers run."""
    dice = random.Random(seed)

    async def run():
        ends: list[asyncio.Event] = []

        def pause():
            ends.append(asyncio.Event())
            return ends[-1].wait()

        runtime = EchoRuntime(2, pause)
        queue = batcher(runtime, max_queue_length=1000, max_batch_size=3)
        futures = []
        for step in range(400):
            if ends and (dice.random() < 0.4 or step >= 200):
                ends.pop(dice.randrange(len(ends))).set()
            elif step < 200:
                futures.append(queue.submit(intent, text(step, dice.randint(1, 50)), in_s(60)))
            await settle()
            n_waiting = len(futures) - sum(len(batch) for batch in runtime.batches)
            assert n_waiting == 0 or runtime.n_running == 2
        await asyncio.gather(*futures)
        assert sorted(number for batch in runtime.batches for number in batch) == sorted(
            int(future.result()["intent_logits"]) for future in futures
        )

    asyncio.run(run())


def test_many_callers_of_the_real_runtime_get_what_each_would_get_alone(intent):
    rows = golden.read(intent.bundle)
    model = open_model(intent.bundle.path, intent.bundle.manifest)
    signature = intent.bundle.manifest.signature

    async def run():
        runtime = OnnxRuntime(n_workers=2)
        await runtime.load(intent)
        queue = batcher(runtime, max_queue_length=2000)
        alone = {}
        for row in rows:
            encoded = model.encode(row.request)
            outputs = await runtime.infer(intent, collate([encoded], signature), timeout_s=60)
            alone[row.request] = split(outputs, [encoded], signature)[0]["intent_logits"]

        async def ask(request: str) -> None:
            outputs = await queue.submit(intent, model.encode(request), in_s(600))
            np.testing.assert_allclose(outputs["intent_logits"], alone[request], atol=1e-5)

        requests = random.Random(1).choices([row.request for row in rows], k=1000)
        tasks = [asyncio.create_task(ask(request)) for request in requests]
        for task in tasks[::17]:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await queue.drain(60)
        await runtime.close()

    asyncio.run(run())

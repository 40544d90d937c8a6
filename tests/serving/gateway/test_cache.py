"""Which answers are given again, and what one who waits for another gets."""

import asyncio
import shutil
import socket
import subprocess
import time
import tracemalloc

import pytest

from models.answers import Alternative, Entity, Intent, Understanding
from models.errors import DeadlineError, InputError
from serving.gateway import wire
from serving.gateway.cache import AnswerCache, LocalAnswers
from serving.gateway.config import CacheConfig
from serving.gateway.telemetry import Telemetry
from tests.serving.gateway.conftest import gateway, start, until


def understanding(text):
    intent = Intent("buy", 0.1 + 0.2, True, (Alternative("return", 1 / 3),))
    return Understanding(text, intent, (Entity("colour", "réd", 0, 3, 0.7),), {"intent": "shop/3"})


class Model:
    """Answers texts, `slow` ones at `go`; counts what it is asked."""

    def __init__(self):
        self.asked = []
        self.go = asyncio.Event()
        self.fault = None

    def ask(self, text):
        async def answer(_flight):
            self.asked.append(text)
            if text == "slow":
                await self.go.wait()
            if self.fault is not None:
                raise self.fault
            return understanding(text)

        return answer


def cache(shared=None, max_bytes=10_000, models=("shop/3 digest int8",)):
    return AnswerCache(CacheConfig(max_bytes=max_bytes), models, Telemetry(), shared)


def soon(seconds=60.0):
    return time.monotonic() + seconds


def test_a_query_asked_again_is_answered_equally_without_the_model():
    async def scenario():
        model, answers = Model(), cache()
        first = await answers.answer("red", model.ask("red"), soon())
        assert await answers.answer("red", model.ask("red"), soon()) == first == understanding("red")
        assert await answers.answer("Red", model.ask("Red"), soon()) == understanding("Red")
        assert model.asked == ["red", "Red"]

    asyncio.run(scenario())


def test_all_who_ask_at_once_share_one_computation():
    async def scenario():
        model, answers = Model(), cache()
        asking = [asyncio.create_task(answers.answer("slow", model.ask("slow"), soon())) for _ in range(20)]
        await asyncio.sleep(0)
        model.go.set()
        assert await asyncio.gather(*asking) == [understanding("slow")] * 20
        assert model.asked == ["slow"]

    asyncio.run(scenario())


def test_where_the_one_who_asks_gives_up_the_next_asks_anew():
    async def scenario():
        model, answers = Model(), cache()
        first, *others = [asyncio.create_task(answers.answer("slow", model.ask("slow"), soon())) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        model.go.set()
        assert await asyncio.gather(*others) == [understanding("slow")] * 4
        assert model.asked == ["slow", "slow"]

    asyncio.run(scenario())


def test_a_failure_is_not_kept_and_each_gets_one_of_its_own():
    async def scenario():
        model, answers = Model(), cache()
        model.fault = InputError("too long")
        asking = [asyncio.create_task(answers.answer("slow", model.ask("slow"), soon())) for _ in range(3)]
        await asyncio.sleep(0)
        model.go.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(error, InputError) for error in found)
        model.fault = None
        assert await answers.answer("slow", model.ask("slow"), soon()) == understanding("slow")

    asyncio.run(scenario())


def test_one_who_waits_has_a_deadline_of_its_own():
    async def scenario():
        model, answers = Model(), cache()
        first = asyncio.create_task(answers.answer("slow", model.ask("slow"), soon()))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineError, match="deadline must not pass"):
            await answers.answer("slow", model.ask("slow"), soon(0.01))
        model.go.set()
        assert await first == understanding("slow")

    asyncio.run(scenario())


def test_of_a_full_cache_what_was_not_asked_for_the_longest_time_goes():
    one = LocalAnswers(10_000)
    one.put("a", understanding("a"))
    answers = LocalAnswers(3 * one.n_bytes)
    for text in "abc":
        answers.put(text, understanding(text))
    assert answers.get("a") is not None
    answers.put("d", understanding("d"))
    assert [text for text in "abcd" if answers.get(text) is None] == ["b"]
    answers.put("e" * 5_000, understanding("e" * 5_000))
    assert answers.get("e" * 5_000) is None
    assert answers.n_bytes <= 3 * one.n_bytes


def test_what_others_wrote_under_a_key_is_asked_anew():
    class Foreign:
        async def get(self, _key):
            return b'{"query": "\xff"}'

        def put(self, key, answer):
            pass

    model = Model()
    answer = asyncio.run(cache(Foreign()).answer("red", model.ask("red"), soon()))
    assert (answer, model.asked) == (understanding("red"), ["red"])


def test_who_joins_is_counted_once_however_often_the_one_before_fails():
    async def fail(_flight):
        await asyncio.sleep(0.001)
        raise InputError("no")

    async def scenario():
        answers = cache()
        asked = [answers.answer("red", fail, soon()) for _ in range(5)]
        assert {type(found) for found in await asyncio.gather(*asked, return_exceptions=True)} == {InputError}
        return answers._telemetry.cache_joined._value.get()

    assert asyncio.run(scenario()) == 4


def test_a_cache_takes_the_memory_that_it_says():
    def fresh(number):
        intent = Intent(
            "buy", number / 7, True, tuple(Alternative("return", number / (9 + place)) for place in range(4))
        )
        text = f"query number {number} ü" + "ж" * (number % 50)
        return Understanding(text, intent, (Entity("colour", text[:9], 0, 300 + number, number / 3),), models)

    models = {"intent": "shop/3"}
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    answers = LocalAnswers(3_000_000)
    for number in range(20_000):
        one = fresh(number)
        answers.put(one.query, one)
        wire.encode(one)  # strings keep their UTF-8 from here on
    del one
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2_900_000 < answers.n_bytes <= 3_000_000
    assert after - before == pytest.approx(answers.n_bytes, rel=0.15)


def test_hits_equal_misses_byte_for_byte_and_are_counted(deployment):
    queries = ["red nike shoes", "where is my order", "tell me a joke", "réd 漢字 shoes"]
    with gateway(deployment) as cached, gateway(deployment, {"cache": {"max_bytes": 0}}) as uncached:
        for query in queries:
            bodies = {
                client.post("/v1/understand", json={"query": query}).content for client in [cached] * 3 + [uncached]
            }
            assert len(bodies) == 1
        alone = [cached.post("/v1/understand", json={"query": query}).json() for query in queries]
        assert cached.post("/v1/understand", json={"queries": queries}).json() == {"results": alone}
        exposition = cached.get("/metrics").text
        assert 'rankyard_cache_total{result="miss"} 4.0' in exposition
        assert 'rankyard_cache_total{result="hit"} 16.0' in exposition
        assert 'rankyard_cache_total{result="hit"} 0.0' in uncached.get("/metrics").text


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    """The address of a Redis server, at a socket of its own: a port that was free may be another's by now."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server here (Debian: redis-server)")
    directory = tmp_path_factory.mktemp("redis")
    place = str(directory / "here")
    options = ["--port", "0", "--unixsocket", place, "--save", "", "--appendonly", "no", "--dir", str(directory)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(place) == 0

    try:
        until(listens)
        yield f"unix://{place}"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def redis_url(redis_server, monkeypatch):
    """The address of a Redis server that may take its time, as on a busy machine."""
    from serving.gateway import redis_answers

    monkeypatch.setattr(redis_answers, "_TIMEOUT_S", 60.0)
    return redis_server


def test_gateways_share_answers_of_the_same_version_alone(redis_url):
    from serving.gateway.redis_answers import RedisAnswers

    async def scenario():
        model = Model()
        one, other, newer = (
            cache(RedisAnswers(redis_url, 60, patience_s=60), models=[models])
            for models in ("shop/3 d3", "shop/3 d3", "shop/4 d4")
        )
        first = await one.answer("red", model.ask("red"), soon())
        await one.close()
        assert await other.answer("red", model.ask("red"), soon()) == first
        assert model.asked == ["red"]
        await newer.answer("red", model.ask("red"), soon())
        assert model.asked == ["red", "red"]
        await other.close()
        await newer.close()

    asyncio.run(scenario())


def test_many_who_ask_at_once_share_two_connections_and_get_their_own_answers(redis_url):
    from redis.asyncio import Redis

    from serving.gateway.redis_answers import RedisAnswers

    texts = [f"query {number}" for number in range(200)]

    async def scenario():
        model = Model()
        async with Redis.from_url(redis_url) as client:
            before = (await client.info())["total_connections_received"]
            for n_asked in (200, 200):  # the second time all are found
                answers = cache(RedisAnswers(redis_url, 60, patience_s=60), models=["many"])
                asking = [asyncio.create_task(answers.answer(text, model.ask(text), soon())) for text in texts]
                await asyncio.sleep(0)
                leaving = asking.pop(3)  # its question is on its way
                leaving.cancel()
                assert await asyncio.gather(*asking) == [understanding(text) for text in texts if text != texts[3]]
                assert await answers.answer(texts[3], model.ask(texts[3]), soon()) == understanding(texts[3])
                await answers.close()
                assert len(model.asked) == n_asked
            assert (await client.info())["total_connections_received"] - before <= 4

    asyncio.run(scenario())


def test_while_redis_hangs_nobody_but_the_first_waits_for_it(caplog):
    from serving.gateway.redis_answers import RedisAnswers

    async def scenario():
        writers: list[asyncio.StreamWriter] = []
        hanging = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
        port = hanging.sockets[0].getsockname()[1]
        shared = RedisAnswers(f"redis://127.0.0.1:{port}/0", 60, patience_s=0.01)
        assert await shared.get(b"first") is None
        await asyncio.sleep(0.02)  # the question may have been sent a moment after its caller began to wait
        with pytest.raises(StopIteration) as at_once:
            shared.get(b"next").send(None)
        assert at_once.value.value is None
        await shared.close()
        hanging.close()
        for writer in writers:
            writer.close()
            await writer.wait_closed()

    asyncio.run(scenario())
    assert len([record for record in caplog.records if "are not shared" in record.message]) == 1


def test_what_fails_together_is_said_once(caplog, monkeypatch):
    from serving.gateway import redis_answers
    from serving.gateway.redis_answers import RedisAnswers

    monkeypatch.setattr(redis_answers, "_PAUSE_S", 600.0)

    async def scenario():
        shared = RedisAnswers("redis://127.0.0.1:1/0", 60, patience_s=30)
        first = [asyncio.create_task(shared.get(b"%d" % number)) for number in range(3)]
        shared.put(b"a", b"b")
        assert await asyncio.gather(*first) == [None] * 3
        await shared.close()

    asyncio.run(scenario())
    assert len([record for record in caplog.records if "are not shared" in record.message]) == 1


def test_a_redis_that_is_gone_is_left_alone_and_what_it_holds_of_others_is_passed_over(redis_url, caplog, monkeypatch):
    from redis.asyncio import Redis

    from serving.gateway import redis_answers
    from serving.gateway.redis_answers import RedisAnswers

    monkeypatch.setattr(redis_answers, "_PAUSE_S", 600.0)

    async def scenario():
        model = Model()
        gone = cache(RedisAnswers("redis://127.0.0.1:1/0", 60))
        for number in range(50):
            await gone.answer(str(number), model.ask(str(number)), soon())
        await gone.close()
        assert len([record for record in caplog.records if "are not shared" in record.message]) == 1
        strange = cache(RedisAnswers(redis_url, 60), models=["strange"])
        async with Redis.from_url(redis_url) as client:
            await client.set(strange._key("red"), b"{}")
        assert await strange.answer("red", model.ask("red"), soon()) == understanding("red")
        await strange.close()

    asyncio.run(scenario())


def test_a_bad_address_of_redis_is_refused(deployment):
    process = start(deployment, {"cache": {"redis_url": "localhost:6379"}})
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("cache.redis_url must be like redis://HOST:PORT/DB, got localhost:6379")

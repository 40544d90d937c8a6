"""Which model answers what, and the gateway's answers without HTTP."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.batch import Encoded
from models.errors import ConfigError, DeadlineError, NotFoundError, OverloadedError, RankyardError, UnavailableError
from models.ranking import RankRequest
from registry.deployment import Published, publish
from serving.gateway.app import App
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, Roles, choose, only
from serving.gateway.ranking import Encoders
from serving.gateway.telemetry import Telemetry
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle
from tests.serving.gateway.bundles import cross_bundle, joint_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict:
    directory = tmp_path_factory.mktemp("bundles")
    return {
        "intent": tiny_bundle(directory, "intent"),
        "ranking": tiny_bundle(directory, "ranking"),
        # Ranks by price, highest first, and also knows a feature that the other one does not.
        "price": tiny_bundle(directory, "ranking", features=("price", "margin"), weights=np.array([1.0, 0.0])),
        "joint": joint_bundle(directory),
        "cross": cross_bundle(directory),
    }


def deployed(directory: Path, bundles: dict, **names: str) -> Path:
    for name, kind in names.items():
        publish(directory, name, {"champion": Published("1", bundles[kind])})
    return directory


def config(**changes) -> GatewayConfig:
    return GatewayConfig.model_validate(changes)


class FaultyRuntime(OnnxRuntime):
    """Counts batches by model; does `fault` first, which may wait or raise."""

    def __init__(self, fault: Callable[[str], object] | None = None) -> None:
        super().__init__(n_workers=2)
        self.asked: list[str] = []
        self._fault = fault

    async def infer(self, model, inputs, *, timeout_s):
        self.asked.append(model.ref)
        if self._fault is not None:
            async with asyncio.timeout(timeout_s):
                await self._fault(model.ref)
        return await super().infer(model, inputs, timeout_s=timeout_s)


def ask(settings: GatewayConfig, roles: Roles, question: Callable, runtime: OnnxRuntime | None = None):
    async def run():
        dataplane = await Dataplane.open(settings, roles, runtime or OnnxRuntime(n_workers=2), Telemetry())
        try:
            return await question(dataplane)
        finally:
            await dataplane.close()

    return asyncio.run(run())


def request(**prices: float) -> RankRequest:
    return RankRequest(ids=tuple(prices), features={"price": np.array(list(prices.values()), dtype=np.float32)})


def ids(ranking) -> list[str]:
    return [ranked.id for ranked in ranking.ranking]


def test_the_only_champion_of_each_family_is_served(tmp_path, bundles):
    roles = choose(config(), deployed(tmp_path, bundles, q="intent", r="ranking"))
    assert (roles.intent.ref, roles.tagging, [model.ref for model, _ in roles.phases]) == ("q/1", None, ["r/1"])


def test_a_joint_model_answers_intents_where_no_intent_model_is_published(tmp_path, bundles):
    roles = choose(config(), deployed(tmp_path, bundles, joint="joint"))
    assert (roles.intent.ref, roles.tagging.ref) == ("joint/1", "joint/1")
    assert roles.answers("joint/1") == ("intent", "tagging")


def test_an_intent_model_is_preferred_to_a_joint_one(tmp_path, bundles):
    roles = choose(config(), deployed(tmp_path, bundles, joint="joint", q="intent"))
    assert (roles.intent.ref, roles.tagging.ref) == ("q/1", "joint/1")


def test_a_joint_model_can_be_named_for_intents(tmp_path, bundles):
    directory = deployed(tmp_path, bundles, joint="joint", q="intent")
    roles = choose(config(models={"intent": "joint@champion"}), directory)
    assert (roles.intent.ref, roles.tagging.ref) == ("joint/1", "joint/1")


def test_a_directory_can_be_served(tmp_path, bundles):
    roles = choose(config(models={"ranking": str(bundles["ranking"].path)}), tmp_path)
    assert roles.phases[0][0].ref == f"tiny-ranking/{bundles['ranking'].digest[:12]}"


def test_several_champions_of_a_family_must_be_told_apart(tmp_path, bundles):
    directory = deployed(tmp_path, bundles, q1="intent", q2="intent")
    with pytest.raises(ConfigError, match=r"q1, q2; name one in models\.intent"):
        choose(config(), directory)
    assert choose(config(models={"intent": "q2@champion"}), directory).intent.ref == "q2/1"


def test_a_model_of_another_family_is_refused_where_it_is_named(tmp_path, bundles):
    directory = deployed(tmp_path, bundles, q="intent", r="ranking")
    for wrong in ({"intent": "r@champion"}, {"tagging": "q@champion"}, {"ranking": "q@champion"}):
        with pytest.raises(ConfigError) as refused:
            choose(config(models=wrong), directory)
        assert refused.value.field == f"models.{next(iter(wrong))}"
    with pytest.raises(ConfigError) as refused:
        choose(config(phases=[{"model": "r/1"}, {"model": "q/1"}]), directory)
    assert refused.value.field == "phases[1].model"


def test_nothing_to_serve_says_what_to_do(tmp_path):
    with pytest.raises(NotFoundError, match="promote a model first"):
        choose(config(), tmp_path)


def test_a_question_that_no_model_answers_is_not_found(bundles):
    served = ServedModel("r", "1", bundles["ranking"])
    with pytest.raises(NotFoundError, match="intent or tagging model must be served"):
        ask(config(), only(served), lambda plane: plane.understand("red shoes"))
    served = ServedModel("q", "1", bundles["intent"])
    with pytest.raises(NotFoundError, match="ranking model must be served"):
        ask(config(), only(served), lambda plane: plane.rank(request(a=1)))


def test_a_joint_model_gives_intent_and_entities_in_one_forward_pass(bundles):
    runtime = FaultyRuntime()
    roles = only(ServedModel("joint", "1", bundles["joint"]))
    answer = ask(config(), roles, lambda plane: plane.understand("red New Balance shoes!"), runtime)
    assert answer.intent.label == "product_search"
    assert [(entity.type, entity.text, entity.start, entity.end) for entity in answer.entities] == [
        ("colour", "red", 0, 3),
        ("brand", "New Balance", 4, 15),
    ]
    assert answer.models == {"intent": "joint/1", "tagging": "joint/1"}
    assert runtime.asked == ["joint/1"]


def test_two_models_answer_as_one(tmp_path, bundles):
    roles = choose(config(), deployed(tmp_path, bundles, joint="joint", q="intent"))
    runtime = FaultyRuntime()
    answer = ask(config(), roles, lambda plane: plane.understand("tell me a joke"), runtime)
    assert (answer.intent.label, answer.entities) == ("oos", ())
    assert answer.models == {"intent": "q/1", "tagging": "joint/1"}
    assert sorted(runtime.asked) == ["joint/1", "q/1"]


def test_a_text_beyond_the_models_longest_is_refused_with_its_place(bundles):
    roles = only(ServedModel("joint", "1", bundles["joint"]))
    texts = ["red shoes", "red " * 100]
    good, bad = ask(config(), roles, lambda plane: plane.understand_several(texts))
    assert good.entities[0].text == "red"
    assert bad.field == "queries[1]"
    assert "at most" in bad.message


def test_a_long_text_is_answered_whole_among_short_ones(tmp_path):
    """24 words, 14 to a window: `new` is the 14th, `balance` the 15th; 1 of 24 words, in one window, says `where`."""
    text = "red " * 13 + "new balance " + "shoes " * 8 + "where"
    roles = only(ServedModel("joint", "1", joint_bundle(tmp_path, max_windows=3)))
    short, long, beyond = ask(
        config(), roles, lambda plane: plane.understand_several(["new shoes", text, "red " * 100])
    )
    assert [entity.text for entity in short.entities] == ["new"]
    assert [entity.text for entity in long.entities] == ["red"] * 13 + ["new balance"]
    assert all(text[entity.start : entity.end] == entity.text for entity in long.entities)
    assert long.intent.label == "product_search"
    assert "in each of 3 windows" in beyond.message


def test_one_models_failure_is_one_error_and_leaves_nothing_running(tmp_path, bundles):
    async def fault(ref: str) -> None:
        if ref == "q/1":
            raise RankyardError("broken")

    roles = choose(config(), deployed(tmp_path, bundles, joint="joint", q="intent"))
    with pytest.raises(RankyardError, match="broken"):
        ask(config(), roles, lambda plane: plane.understand("red shoes"), FaultyRuntime(fault))


def test_a_full_queue_fails_the_queries_that_do_not_fit_in(bundles):
    roles = only(ServedModel("q", "1", bundles["intent"]))
    settings = config(limits={"max_queue_length": 3})
    queries = [f"red shoes {number}" for number in range(10)]
    answers = ask(settings, roles, lambda plane: plane.understand_several(queries))
    assert sum(isinstance(answer, OverloadedError) for answer in answers) == 7


def two_phases(bundles, **second: object) -> tuple[GatewayConfig, Roles]:
    """First by low price, of which three go on; then by high price."""
    settings = config(phases=[{"model": "cheap/1", "keep": 3}, {"model": "dear/1", **second}])
    models: Sequence[ServedModel] = (
        ServedModel("cheap", "1", bundles["ranking"]),
        ServedModel("dear", "1", bundles["price"]),
    )
    return settings, Roles(phases=tuple(zip(models, settings.phases, strict=True)))


def test_a_later_phase_orders_what_the_first_one_kept(bundles):
    answer = ask(*two_phases(bundles, keep=2), lambda plane: plane.rank(request(a=1, b=4, c=2, d=3, e=5)))
    assert ids(answer) == ["d", "c"]
    assert [ranked.rank for ranked in answer.ranking] == [1, 2]
    assert [(phase.model, phase.n_in, phase.n_out) for phase in answer.phases] == [("cheap/1", 5, 3), ("dear/1", 3, 2)]
    assert (answer.models, answer.degraded) == (("cheap/1", "dear/1"), False)


def test_every_phase_reads_the_features_that_it_knows(bundles):
    columns = {"price": np.ones(2, np.float32), "margin": np.ones(2, np.float32)}
    asked = RankRequest(ids=("a", "b"), features=columns, query_features={"popularity": 1.0})
    answer = ask(*two_phases(bundles), lambda plane: plane.rank(asked, explain="values"))
    assert ids(answer) == ["a", "b"]
    assert answer.explanations["a"] == {"price": 1.0, "margin": 1.0}
    unknown = RankRequest(ids=("a",), features={"colour": np.ones(1, np.float32)})
    with pytest.raises(RankyardError, match="got 'colour'"):
        ask(*two_phases(bundles), lambda plane: plane.rank(unknown))


def test_a_later_phase_that_fails_is_skipped_and_said_so(bundles):
    async def fault(ref: str) -> None:
        if ref == "dear/1":
            raise UnavailableError("its server is gone")

    asked = request(a=1, b=4, c=2, d=3, e=5)
    answer = ask(*two_phases(bundles, keep=2), lambda plane: plane.rank(asked), FaultyRuntime(fault))
    assert ids(answer) == ["a", "c"]
    assert answer.degraded is True
    assert answer.reason == "dear/1 was skipped: its server is gone"
    assert answer.models == ("cheap/1",)


def test_a_later_phase_that_overruns_its_budget_is_skipped_in_time(bundles):
    async def fault(ref: str) -> None:
        if ref == "dear/1":
            await asyncio.sleep(2)

    async def question(plane: Dataplane):
        started = time.monotonic()
        return await plane.rank(request(a=1, b=2)), time.monotonic() - started

    answer, seconds = ask(*two_phases(bundles, budget_ms=50), question, FaultyRuntime(fault))
    assert ids(answer) == ["a", "b"]
    assert answer.degraded is True
    assert seconds < 1


def test_a_long_list_of_pairs_is_scored_in_blocks_of_like_length(bundles):
    texts = tuple(" ".join(["shoes"] * (n % 5) + ["red"] * (n % 2)) for n in range(50))
    asked = RankRequest(ids=tuple(map(str, range(50))), text="new", texts=texts)
    runtime = FaultyRuntime()
    answer = ask(config(), only(ServedModel("c", "1", bundles["cross"])), lambda plane: plane.rank(asked), runtime)
    assert {one.id: one.score for one in answer.ranking} == {str(n): 2 + 8 * (n % 5) + n % 2 for n in range(50)}
    assert len(runtime.asked) > 1


def test_a_cross_encoder_behind_a_ranker_of_features_reads_texts_and_no_features(bundles):
    settings = config(phases=[{"model": "cheap/1", "keep": 2}, {"model": "c/1", "budget_ms": 900}])
    models = [ServedModel("cheap", "1", bundles["ranking"]), ServedModel("c", "1", bundles["cross"])]
    roles = Roles(phases=tuple(zip(models, settings.phases, strict=True)))
    prices = {"price": np.array([3, 1, 2], np.float32)}
    asked = RankRequest(ids=("a", "b", "c"), text="red", texts=("shoes", "", "new shoes"), features=prices)
    answer = ask(settings, roles, lambda plane: plane.rank(asked, explain="values"))
    assert [(one.id, one.score) for one in answer.ranking] == [("c", 11.0), ("b", 1.0)]
    assert answer.explanations == {"c": {}, "b": {}}
    without = ask(settings, roles, lambda plane: plane.rank(request(a=1, b=2)))
    assert (ids(without), without.degraded) == (["a", "b"], True)
    assert without.reason == "c/1 was skipped: every candidate must have a text for this model, got none"


def test_a_query_too_long_for_a_cross_encoder_is_refused_and_a_title_is_cut(bundles):
    roles = only(ServedModel("c", "1", bundles["cross"]))
    cut = RankRequest(ids=("a",), text="red", texts=("shoes " * 40,))
    # 12 tokens, of which [CLS], [SEP], [SEP] and the query take 4.
    assert ask(config(), roles, lambda plane: plane.rank(cut)).ranking[0].score == 1 + 8 * 8
    with pytest.raises(RankyardError, match="a query must have at most 8 tokens for this model"):
        ask(config(), roles, lambda plane: plane.rank(replace(cut, text="red " * 9)))


FUSED = [
    # Scores -price / 100 and price of a=1, d=3, c=2, each of mean 0 once standardised: they cancel at equal weights.
    ({"method": "linear", "weights": [1.0, 0.0]}, ["a", "c", "d"], [1.5**0.5, 0, -(1.5**0.5)]),
    ({"method": "linear", "weights": [0.25, 0.75]}, ["d", "c", "a"], [0.5 * 1.5**0.5, 0, -0.5 * 1.5**0.5]),
    ({"method": "reciprocal_rank", "k": 1}, ["a", "d", "c"], [1 / 2 + 1 / 4, 1 / 4 + 1 / 2, 1 / 3 + 1 / 3]),
]


@pytest.mark.parametrize(("fuse", "order", "scores"), FUSED)
def test_a_phase_can_be_fused_with_those_before_it(bundles, fuse, order, scores):
    answer = ask(*two_phases(bundles, fuse=fuse), lambda plane: plane.rank(request(a=1, b=9, d=3, c=2, e=8)))
    assert ids(answer) == order
    np.testing.assert_allclose([ranked.score for ranked in answer.ranking], scores, atol=1e-6)
    assert [ranked.rank for ranked in answer.ranking] == [1, 2, 3]


@pytest.mark.parametrize("broken", ["cheap/2", "dear/1"])
def test_a_phase_that_was_skipped_takes_no_part_in_fusion(bundles, broken):
    settings, roles = two_phases(bundles, fuse={"method": "reciprocal_rank"})
    middle = ServedModel("cheap", "2", bundles["ranking"])
    phases = [settings.phases[0].model_copy(update={"keep": None}), settings.phases[0], settings.phases[1]]
    models = [roles.phases[0][0], middle, roles.phases[1][0]]

    async def fault(ref: str) -> None:
        if ref == broken:
            raise UnavailableError("gone")

    roles = Roles(phases=tuple(zip(models, phases, strict=True)))
    answer = ask(settings, roles, lambda plane: plane.rank(request(a=1, b=2, c=3)), FaultyRuntime(fault))
    expected = [-0.01, -0.02, -0.03] if broken == "dear/1" else [1 / 61 + 1 / 63, 1 / 63 + 1 / 61, 2 / 62]
    assert (ids(answer), answer.degraded) == (["a", "b", "c"] if broken == "dear/1" else ["a", "c", "b"], True)
    np.testing.assert_allclose([ranked.score for ranked in answer.ranking], expected, atol=1e-6)


def test_a_first_phase_that_fails_is_an_error(bundles):
    async def fault(ref: str) -> None:
        if ref == "cheap/1":
            raise UnavailableError("gone")

    with pytest.raises(UnavailableError):
        ask(*two_phases(bundles), lambda plane: plane.rank(request(a=1)), FaultyRuntime(fault))


def test_a_deadline_holds_through_the_runtime(bundles):
    async def fault(_ref: str) -> None:
        await asyncio.sleep(2)

    roles = only(ServedModel("q", "1", bundles["intent"]))
    started = time.monotonic()
    with pytest.raises(DeadlineError):
        ask(
            config(drain_s=0.1),
            roles,
            lambda plane: plane.understand("red shoes", time.monotonic() + 0.05),
            FaultyRuntime(fault),
        )
    assert time.monotonic() - started < 1.5


def test_a_model_that_reads_otherwise_than_it_was_trained_is_not_served(tmp_path):
    bundle = tiny_bundle(tmp_path)
    golden = bundle.path / "golden.json"
    golden.write_text(golden.read_text().replace('"query": "tell me a joke"', '"query": "tell me a jest"'))
    with pytest.raises(RankyardError, match="golden row"):
        ask(config(), only(ServedModel("q", "1", bundle)), lambda plane: plane.understand("red shoes"))


class SlowEncoding:
    """Stands for a model whose features take 50 ms to compute."""

    def __init__(self) -> None:
        self.n_begun = 0

    def encode(self, asked: RankRequest) -> Encoded:
        self.n_begun += 1
        time.sleep(0.05)
        return Encoded({"features": np.full((len(asked.ids), 1), self.n_begun, dtype=np.float32)})


def test_features_that_miss_their_deadline_are_given_up_and_those_behind_them_never_begun():
    async def run():
        encoders, model = Encoders(n_threads=1, max_queue_length=10), SlowEncoding()
        waiting = [encoders.encode(model, request(a=1), time.monotonic() + 0.02) for _ in range(4)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, DeadlineError) for outcome in outcomes)
        await encoders.encode(model, request(a=1), time.monotonic() + 5)
        encoders.close()
        assert model.n_begun == 2

    asyncio.run(run())


def test_only_so_many_requests_wait_for_their_features():
    async def run():
        encoders, model = Encoders(n_threads=1, max_queue_length=2), SlowEncoding()
        waiting = [encoders.encode(model, request(a=1), time.monotonic() + 5) for _ in range(3)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Encoded, Encoded, OverloadedError]
        encoders.close()

    asyncio.run(run())


def test_a_caller_that_hangs_up_takes_its_waiting_work_with_it(bundles):
    """The application is called as uvicorn calls it: after the body, `receive` waits for the caller to leave."""
    settings = config(runtime={"n_workers": 1})
    released = asyncio.Event()

    async def fault(_ref: str) -> None:
        await released.wait()

    async def question(plane: Dataplane):
        app = App(settings, Telemetry())
        app.dataplane = plane
        answers: list[dict] = []

        async def send(message: dict) -> None:
            answers.append(message)

        async def call(query: str, leaves: asyncio.Event) -> None:
            body = json.dumps({"query": query}).encode()
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> dict:
                if messages:
                    return messages.pop()
                await leaves.wait()
                return {"type": "http.disconnect"}

            await app({"type": "http", "path": "/v1/understand", "method": "POST", "headers": []}, receive, send)

        leaving, staying = asyncio.Event(), asyncio.Event()
        calls = [asyncio.create_task(call("red shoes", staying)) for _ in range(2)]
        await asyncio.sleep(0.05)
        calls += [asyncio.create_task(call(f"where is {n}", leaving if n % 2 else staying)) for n in range(6)]
        await asyncio.sleep(0.05)
        leaving.set()
        await asyncio.sleep(0.05)
        assert sum(task.done() for task in calls) == 3
        assert answers == []
        released.set()
        await asyncio.gather(*calls)
        return [message["status"] for message in answers if "status" in message]

    runtime = FaultyRuntime(fault)
    statuses = ask(settings, only(ServedModel("q", "1", bundles["intent"])), question, runtime)
    assert statuses == [200] * 5

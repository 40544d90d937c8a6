"""Which model answers what, and the gateway's answers without HTTP."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import Encoded
from models.errors import (
    ConfigError,
    DeadlineError,
    InputError,
    NotFoundError,
    OverloadedError,
    RankyardError,
    UnavailableError,
)
from models.intent import IntentModel
from models.ranking import RankRequest
from registry.deployment import Published, publish
from serving.gateway.app import App
from serving.gateway.batcher import Batcher, Priority, priority
from serving.gateway.config import GatewayConfig, PhaseConfig
from serving.gateway.connection import Connection
from serving.gateway.cost import Cost
from serving.gateway.dataplane import Dataplane, Roles, choose, only
from serving.gateway.http import HttpServer
from serving.gateway.messages import Answer, Request
from serving.gateway.observer import Observer
from serving.gateway.parser import Limits
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
    """A configuration by which requests may take long, where nothing else is said: a busy machine is late."""
    return GatewayConfig.model_validate({"deadline_ms": 20_000} | changes)


class FaultyRuntime(OnnxRuntime):
    """Counts batches by model; does `fault` first, which may wait or raise."""

    def __init__(self, fault: Callable[[str], object] | None = None) -> None:
        super().__init__(n_workers=2)
        self.asked: list[str] = []
        self._fault = fault

    async def infer(self, model, inputs, *, timeout_s, **_):
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


def test_a_full_queue_fails_the_queries_that_do_not_fit_in_before_they_are_read(bundles, monkeypatch):
    read, encode = [], IntentModel.encode
    monkeypatch.setattr(IntentModel, "encode", lambda self, text: read.append(text) or encode(self, text))
    roles = only(ServedModel("q", "1", bundles["intent"]))
    settings = config(limits={"max_queue_length": 3})
    queries = [f"red shoes {number}" for number in range(10)]
    answers = ask(settings, roles, lambda plane: plane.understand_several(queries))
    assert sum(isinstance(answer, OverloadedError) for answer in answers) == 7
    assert [text for text in read if text in queries] == queries[:3]


def two_phases(bundles, **second: object) -> tuple[GatewayConfig, Roles]:
    """First by low price, of which three go on; then by high price."""
    settings = config(phases=[{"model": "cheap/1", "keep": 3}, {"model": "dear/1", **second}])
    models: Sequence[ServedModel] = (
        ServedModel("cheap", "1", bundles["ranking"]),
        ServedModel("dear", "1", bundles["price"]),
    )
    return settings, Roles(phases=tuple(zip(models, settings.phases, strict=True)))


def test_who_was_admitted_before_a_swap_gets_every_phase(bundles):
    async def admitted(plane: Dataplane):
        place = plane.admit_ranking(time.monotonic() + 10)
        retiring = asyncio.create_task(plane.retire())  # before the first step of the one that was admitted

        async def rank():
            with plane.in_use, place:
                return await plane.rank(request(a=1, b=4, c=2, d=3, e=5), place=place)

        answer = await asyncio.create_task(rank())
        await retiring
        return answer

    answer = ask(*two_phases(bundles), admitted)
    assert (ids(answer)[0], answer.degraded) == ("d", False)


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
            await asyncio.Event().wait()

    async def question(plane: Dataplane):
        started = time.monotonic()
        return await plane.rank(request(a=1, b=2)), time.monotonic() - started

    answer, seconds = ask(*two_phases(bundles, budget_ms=50), question, FaultyRuntime(fault))
    assert ids(answer) == ["a", "b"]
    assert answer.degraded is True
    assert answer.reason == "dear/1 was skipped: its budget of 50 ms was over"
    assert seconds < 10  # of the 20 that the request has


def test_where_the_callers_own_deadline_came_first_the_budget_is_not_blamed(bundles):
    async def fault(ref: str) -> None:
        if ref == "dear/1":
            await asyncio.Event().wait()

    async def question(plane: Dataplane):
        return await plane.rank(request(a=1, b=2), deadline_s=time.monotonic() + 0.1)

    answer = ask(*two_phases(bundles, budget_ms=10_000), question, FaultyRuntime(fault))
    assert answer.reason.startswith("dear/1 was skipped: the deadline must not pass")


def test_a_score_that_is_not_finite_is_an_error(bundles):
    most = float(np.finfo(np.float32).max)
    features = {name: np.array([1, sign * most], np.float32) for name, sign in (("price", -1), ("popularity", 1))}
    with pytest.raises(InputError, match="every score must be finite"):
        ask(
            config(),
            only(ServedModel("a", "1", bundles["ranking"])),
            lambda plane: plane.rank(RankRequest(("a", "b"), features=features)),
        )


def test_a_long_list_of_pairs_is_scored_in_blocks_of_like_length(bundles):
    texts = tuple(" ".join(["shoes"] * (n % 5) + ["red"] * (n % 2)) for n in range(50))
    asked = RankRequest(ids=tuple(map(str, range(50))), text="new", texts=texts)
    runtime = FaultyRuntime()
    answer = ask(config(), only(ServedModel("c", "1", bundles["cross"])), lambda plane: plane.rank(asked), runtime)
    assert {one.id: one.score for one in answer.ranking} == {str(n): 2 + 8 * (n % 5) + n % 2 for n in range(50)}
    assert len(runtime.asked) > 1


def test_a_short_list_of_pairs_of_unlike_length_has_each_score_at_its_own_candidate(bundles):
    asked = RankRequest(ids=("a", "b", "c"), text="new", texts=("shoes shoes shoes", "shoes", ""))
    answer = ask(config(), only(ServedModel("c", "1", bundles["cross"])), lambda plane: plane.rank(asked))
    assert [(one.id, one.score) for one in answer.ranking] == [("a", 26.0), ("b", 10.0), ("c", 2.0)]


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


def rest_of_blocks(broken: Callable[[int], bool], fault: Callable) -> FaultyRuntime:
    """A runtime that meets `fault` on those of the cross-encoder's batches whose number from 0 is `broken`."""
    n_batches = itertools.count()

    async def meet(ref: str) -> None:
        if ref == "c/1" and broken(next(n_batches)):
            await fault()

    return FaultyRuntime(meet)


async def gone() -> None:
    raise UnavailableError("its server is gone")


def forty_pairs(bundles, **last: object) -> tuple[GatewayConfig, Roles, RankRequest]:
    """By price, which rises with the number, then by a cross-encoder that gives odd ones 8 and even ones 1.

    The best half has longer texts; its blocks are nevertheless the rows 0-15, 16-31 and 32-39, one batch each.
    """
    phases = [{"model": "cheap/1"}, {"model": "c/1", "budget_ms": 20_000, **last}]
    settings = config(phases=phases, batch={"max_batch_size": 1}, max_deadline_ms=60_000, deadline_ms=60_000)
    models = [ServedModel("cheap", "1", bundles["ranking"]), ServedModel("c", "1", bundles["cross"])]
    asked = RankRequest(
        ids=tuple(map(str, range(40))),
        texts=tuple(("shoes" if n % 2 else "red") + " order" * (n < 20) for n in range(40)),
        features={"price": np.arange(40, dtype=np.float32)},
    )
    return settings, Roles(phases=tuple(zip(models, settings.phases, strict=True))), asked


PARTS = [
    (lambda number: number > 0, [*range(1, 16, 2), *range(0, 16, 2), *range(16, 40)], range(16)),
    (lambda number: number != 1, [*range(16), *range(17, 32, 2), *range(16, 32, 2), *range(32, 40)], range(16, 32)),
]


@pytest.mark.parametrize(("broken", "order", "scored"), PARTS, ids=["the best", "those in the middle"])
def test_a_phase_that_scored_some_candidates_orders_those_in_the_places_they_held(bundles, broken, order, scored):
    settings, roles, asked = forty_pairs(bundles)
    answer = ask(settings, roles, lambda plane: plane.rank(asked), rest_of_blocks(broken, gone))
    assert ids(answer) == [str(number) for number in order]
    assert [one.rank for one in answer.ranking] == list(range(1, 41))
    for one in answer.ranking:
        number = int(one.id)
        expected = (8 if number % 2 else 1) if number in scored else -number / 100
        assert one.score == pytest.approx(expected, abs=1e-6)
    assert answer.degraded is True
    assert answer.reason == "c/1 scored 16 of 40 candidates, the others keep their places: its server is gone"
    assert [(phase.model, phase.n_in, phase.n_scored) for phase in answer.phases] == [
        ("cheap/1", 40, 40),
        ("c/1", 40, 16),
    ]


def test_at_the_end_of_its_budget_a_phase_is_answered_as_far_as_it_came_and_cut_as_ever(bundles):
    settings, roles, asked = forty_pairs(bundles, budget_ms=3_000, keep=3)
    runtime = rest_of_blocks(lambda number: number > 0, asyncio.Event().wait)
    answer = ask(settings.model_copy(update={"drain_s": 0.1}), roles, lambda plane: plane.rank(asked), runtime)
    assert ids(answer) == ["1", "3", "5"]
    assert (answer.phases[1].n_out, answer.phases[1].n_scored) == (3, 16)
    expected = "c/1 scored 16 of 40 candidates, the others keep their places: its budget of 3000 ms was over"
    assert answer.reason == expected


def test_a_phase_in_part_is_fused_where_all_phases_scored_and_left_out_after_it(bundles):
    settings, roles, asked = forty_pairs(bundles, fuse={"method": "linear", "weights": [0.0, 1.0]})
    last = PhaseConfig(model="dear/1", fuse={"method": "linear", "weights": [0.0, 1.0, 0.5]})
    dear = ServedModel("dear", "1", bundles["price"])
    alone = ask(settings, roles, lambda plane: plane.rank(asked), rest_of_blocks(lambda number: number > 0, gone))
    assert ids(alone) == [str(number) for number in PARTS[0][1]]
    # Eight scores of 8 and eight of 1, standardised.
    assert [one.score for one in alone.ranking[:16]] == pytest.approx([1.0] * 8 + [-1.0] * 8)
    roles = Roles(phases=(*roles.phases, (dear, last)))
    after = ask(settings, roles, lambda plane: plane.rank(asked), rest_of_blocks(lambda number: number > 0, gone))
    assert ids(after) == [str(number) for number in range(39, -1, -1)]


def test_a_first_phase_must_score_every_candidate(bundles):
    roles = only(ServedModel("c", "1", bundles["cross"]))
    asked = forty_pairs(bundles)[2]
    settings = config(batch={"max_batch_size": 1})
    without = replace(asked, features={})
    with pytest.raises(UnavailableError, match="its server is gone"):
        ask(settings, roles, lambda plane: plane.rank(without), rest_of_blocks(lambda number: number > 0, gone))


def test_a_first_phase_that_fails_is_an_error(bundles):
    async def fault(ref: str) -> None:
        if ref == "cheap/1":
            raise UnavailableError("gone")

    with pytest.raises(UnavailableError):
        ask(*two_phases(bundles), lambda plane: plane.rank(request(a=1)), FaultyRuntime(fault))


def test_a_deadline_holds_through_the_runtime(bundles):
    async def fault(_ref: str) -> None:
        await asyncio.Event().wait()

    async def question(plane: Dataplane) -> float:
        started = time.monotonic()
        with pytest.raises(DeadlineError):
            await plane.understand("red shoes", started + 0.05)
        return time.monotonic() - started

    roles = only(ServedModel("q", "1", bundles["intent"]))
    assert ask(config(drain_s=0.1), roles, question, FaultyRuntime(fault)) < 10  # of the 20 that are configured


def test_a_model_that_reads_otherwise_than_it_was_trained_is_not_served(tmp_path):
    bundle = tiny_bundle(tmp_path)
    golden = bundle.path / "golden.json"
    golden.write_text(golden.read_text().replace('"query": "tell me a joke"', '"query": "tell me a jest"'))
    with pytest.raises(RankyardError, match="golden row"):
        ask(config(), only(ServedModel("q", "1", bundle)), lambda plane: plane.understand("red shoes"))


class SlowEncoding:
    """Stands for a model whose features take until they may be there to compute."""

    def __init__(self) -> None:
        self.n_begun = 0
        self.may_end = threading.Event()

    def encode(self, asked: RankRequest) -> Encoded:
        self.n_begun += 1
        self.may_end.wait(60)
        return Encoded({"features": np.full((len(asked.ids), 1), self.n_begun, dtype=np.float32)})


def test_features_that_miss_their_deadline_are_given_up_and_those_behind_them_never_begun():
    async def run():
        encoders, model = Encoders(n_threads=1, max_queue_length=10), SlowEncoding()
        running = asyncio.create_task(encoders.encode(model, request(a=1), time.monotonic() + 1))
        while not model.n_begun:
            await asyncio.sleep(0.001)
        waiting = [encoders.encode(model, request(a=1), time.monotonic() + 0.02) for _ in range(3)]
        outcomes = await asyncio.gather(running, *waiting, return_exceptions=True)
        assert all(isinstance(outcome, DeadlineError) for outcome in outcomes)
        model.may_end.set()
        await encoders.encode(model, request(a=1), time.monotonic() + 60)
        encoders.close()
        assert model.n_begun == 2

    asyncio.run(run())


def test_only_so_many_requests_wait_for_their_features():
    async def run():
        encoders, model = Encoders(n_threads=1, max_queue_length=2), SlowEncoding()
        waiting = [asyncio.create_task(encoders.encode(model, request(a=1), time.monotonic() + 60)) for _ in range(3)]
        with pytest.raises(OverloadedError):
            await waiting[2]
        model.may_end.set()
        assert [type(await one) for one in waiting[:2]] == [Encoded, Encoded]
        encoders.close()

    asyncio.run(run())


def test_a_caller_that_hangs_up_takes_its_waiting_work_with_it(bundles):
    """The application is called as the HTTP server calls it, which cancels what it was given when the caller leaves."""
    settings = config(runtime={"n_workers": 1})
    released = asyncio.Event()

    async def fault(_ref: str) -> None:
        await released.wait()

    async def question(plane: Dataplane):
        telemetry = Telemetry()
        app = App(settings, telemetry, Observer(settings.logs, telemetry))
        app.dataplane = plane

        def call(query: str) -> tuple[Request, asyncio.Task[Answer]]:
            body = json.dumps({"query": query}).encode()
            request = Request(time.monotonic(), "POST", "/v1/understand", body=body)
            return request, asyncio.create_task(app.answer(request))

        staying = [call("red shoes")[1] for _ in range(2)]
        await asyncio.sleep(0.05)
        calls = [call(f"where is {n}") for n in range(6)]
        await asyncio.sleep(0.05)
        for request, task in calls[1::2]:
            request.is_given_up = True
            task.cancel()
        await asyncio.wait([task for _, task in calls[1::2]], timeout=60)
        assert sum(task.done() for _, task in calls) == 3
        assert b'route="/v1/understand",status="499"} 3.0' in telemetry.exposition()
        released.set()
        staying += [task for _, task in calls[::2]]
        return [answer.status for answer in await asyncio.gather(*staying)]

    runtime = FaultyRuntime(fault)
    statuses = ask(settings, only(ServedModel("q", "1", bundles["intent"])), question, runtime)
    assert statuses == [200] * 5


def test_a_query_that_could_not_be_answered_in_time_is_refused_at_once_and_not_one_that_is_being_asked(bundles):
    settings = config(runtime={"n_workers": 1}, limits={"max_queue_length": 2}, batch={"max_batch_size": 1})
    released = asyncio.Event()

    async def fault(_ref: str) -> None:
        await released.wait()

    async def question(plane: Dataplane):
        telemetry = Telemetry()
        app = App(settings, telemetry, Observer(settings.logs, telemetry))
        app.dataplane = plane

        def call(query: str):
            body = json.dumps({"query": query}).encode()
            return app.answer(Request(time.monotonic(), "POST", "/v1/understand", body=body))

        tasks = []
        for n in range(5):  # one or two are worked on
            answer = call(f"where is {n}")
            if not isinstance(answer, Answer):
                tasks.append(asyncio.create_task(answer))
                await asyncio.sleep(0.05)
        refused = call("red shoes")
        tasks.append(asyncio.create_task(call("where is 0")))
        released.set()
        return refused, [answer.status for answer in await asyncio.gather(*tasks)]

    served = only(ServedModel("q", "1", bundles["intent"]))
    refused, statuses = ask(settings, served, question, FaultyRuntime(fault))
    assert isinstance(refused, Answer)
    assert (refused.status, dict(refused.headers)[b"retry-after"]) == (429, b"1")
    assert set(statuses) == {200}


class Stub(asyncio.Transport):
    """A client that takes everything it is sent."""

    def write(self, data):
        del data

    def is_closing(self):
        return False


FATES = {
    "answered": (b'{"query": "red shoes"}', {}),
    "wrong": (b'{"query": ""', {}),
    "late": (b'{"query": "blue shoes"}', {b"x-deadline-ms": b"0.001"}),
    "gone at once": (b'{"query": "green shoes"}', {}),
    "gone later": (b'{"query": "black shoes"}', {}),
}


@settings(max_examples=30, deadline=None)
@given(
    fates=st.lists(st.tuples(st.sampled_from(sorted(FATES)), st.sampled_from(["understand", "rank"])), max_size=12),
    has_cache=st.booleans(),
)
def test_whatever_becomes_of_requests_the_queue_has_all_its_room_afterwards(bundles, fates, has_cache):
    """Called as a socket calls: two requests in one turn of the loop, and callers that leave before the next turn."""
    limits, cache = {"max_queue_length": 3}, {} if has_cache else {"max_bytes": 0}
    configured = config(runtime={"n_workers": 1}, limits=limits, cache=cache, phases=[{"model": "r/1"}])
    ranker = ServedModel("r", "1", bundles["ranking"])
    roles = Roles(intent=ServedModel("q", "1", bundles["intent"]), phases=((ranker, configured.phases[0]),))
    candidates = b'"candidates": [{"id": "a", "features": {"price": 1}}]'

    async def question(plane: Dataplane):
        telemetry = Telemetry()
        app = App(configured, telemetry, Observer(configured.logs, telemetry))
        app.dataplane = plane
        server = HttpServer(app, Limits(1_000), max_connections=100, max_bodies_bytes=100_000)
        leaving = []
        for number, (fate, route) in enumerate(fates):
            body, headers = FATES[fate]
            if route == "rank":
                body = body.replace(b'"query": "', b'%b, "query": {"text": "' % candidates).replace(b'"}', b'"}}')
            connection = Connection(server)
            connection.connection_made(Stub())
            fields = b"".join(b"%b: %b\r\n" % field for field in headers.items())
            head = b"POST /v1/%b HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d" % (route.encode(), fields, len(body))
            connection.data_received(b"%b\r\n\r\n%b" % (head, body))
            if fate == "gone at once":
                connection.connection_lost(None)
            elif fate == "gone later":
                leaving.append(connection)
            if number % 2:
                await asyncio.sleep(0)
                while leaving:
                    leaving.pop().connection_lost(None)
        async with asyncio.timeout(60):
            while plane.in_use.n or len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.001)
        for served in roles.models.values():
            for _ in range(3):
                plane.admit(served, time.monotonic() + 60)
            with pytest.raises(OverloadedError, match="at most 3 requests may wait"):
                plane.admit(served, time.monotonic() + 60)

    async def run():
        plane = await Dataplane.open(configured, roles, OnnxRuntime(n_workers=1), Telemetry())
        await question(plane)

    asyncio.run(run())


@pytest.mark.parametrize("sent", [None, "interactive", "bulk"])
def test_a_request_is_queued_with_the_priority_that_it_names(bundles, monkeypatch, sent):
    settings = config()
    queued = []
    submit = Batcher.submit

    def watched(*arguments, **named):
        queued.append(priority.get())
        return submit(*arguments, **named)

    async def question(plane: Dataplane):
        telemetry = Telemetry()
        app = App(settings, telemetry, Observer(settings.logs, telemetry))
        app.dataplane = plane
        headers = {} if sent is None else {b"x-priority": sent.encode()}
        request = Request(time.monotonic(), "POST", "/v1/understand", headers=headers, body=b'{"query": "red shoes"}')
        return (await asyncio.create_task(app.answer(request))).status

    monkeypatch.setattr(Batcher, "submit", watched)
    assert ask(settings, only(ServedModel("q", "1", bundles["intent"])), question) == 200
    assert queued == [sent or "interactive"]


def test_a_bulk_query_that_an_interactive_caller_asks_too_goes_with_the_interactive(bundles, monkeypatch):
    monkeypatch.setattr(Cost, "learn", lambda *_: None)  # a busy machine would have a say in whose turn it is
    settings = config(runtime={"n_workers": 1}, batch={"max_batch_size": 1})
    released = asyncio.Event()

    async def fault(_ref: str) -> None:
        await released.wait()

    async def question(plane: Dataplane):
        answered: list[tuple[str, str]] = []

        async def call(kind: Priority, query: str) -> None:
            priority.set(kind)
            await plane.understand(query)
            answered.append((kind, query))

        tasks = []
        for kind, query in [
            *(("interactive", f"running {n}") for n in range(2)),
            *(("bulk", f"where is {n}") for n in range(3)),
            ("interactive", "where is 2"),
            ("interactive", "red shoes"),
        ]:
            tasks.append(asyncio.create_task(call(kind, query)))
            await asyncio.sleep(0)
        released.set()
        await asyncio.gather(*tasks)
        return answered

    runtime = FaultyRuntime(fault)
    runtime.n_workers, runtime.n_ahead = 1, 0  # one batch at a time, so that answers come in the order of turns
    answered = ask(settings, only(ServedModel("q", "1", bundles["intent"])), question, runtime)
    assert len(answered) == 7
    assert answered.index(("bulk", "where is 2")) < answered.index(("bulk", "where is 1"))

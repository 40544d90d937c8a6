"""Contributions behind several phases, within a deadline."""

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from models.errors import DeadlineError, InputError
from models.ranking import RankRequest
from serving.gateway import explain
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, Roles
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle
from tests.tree_bundle import NAMES, grow, rows, tree_bundle


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, ServedModel]:
    directory = tmp_path_factory.mktemp("bundles")
    return {
        "linear": ServedModel("linear", "1", tiny_bundle(directory, "ranking")),
        "trees": ServedModel("trees", "1", tree_bundle(directory, grow(8))),
    }


REQUEST = RankRequest(ids=tuple("abcdef"), features=dict(zip(NAMES, rows(6, 9).T, strict=True)))


def ask(models, names: list[str], question, **second):
    phases = [{"model": f"{name}/1", **(second if place else {})} for place, name in enumerate(names)]
    settings = GatewayConfig.model_validate({"phases": phases, "deadline_ms": 20_000})
    roles = Roles(phases=tuple(zip([models[name] for name in names], settings.phases, strict=True)))

    async def run():
        dataplane = await Dataplane.open(settings, roles, OnnxRuntime(2, scorers=("onnx",)))
        try:
            return await question(dataplane)
        finally:
            await dataplane.close()

    return asyncio.run(run())


def test_the_last_phases_scores_are_explained(models):
    answer = ask(models, ["linear", "trees"], lambda plane: plane.rank(REQUEST, explain=True, top_k=3))
    assert [one.id for one in answer.ranking] == list(answer.contributions.candidates)
    for one in answer.ranking:
        parts = answer.contributions.candidates[one.id]
        assert answer.contributions.base + sum(parts.values()) == pytest.approx(one.score, abs=1e-5)


@pytest.mark.parametrize(
    ("names", "second", "says"),
    [
        (["trees", "linear"], {}, "need a model of trees, linear/1 is none"),
        (["linear", "trees"], {"fuse": {"method": "reciprocal_rank"}}, "the last phase fuses several"),
    ],
)
def test_an_order_that_is_not_by_trees_alone_has_no_contributions_but_values(models, names, second, says):
    with pytest.raises(InputError, match=says) as refused:
        ask(models, names, lambda plane: plane.rank(REQUEST, explain=True), **second)
    assert refused.value.field == "explain"
    answer = ask(models, names, lambda plane: plane.rank(REQUEST, explain="values"), **second)
    assert answer.contributions is None
    assert set(answer.explanations) == set(REQUEST.ids)


def test_where_the_last_phase_was_skipped_there_are_values_and_no_contributions(models):
    answer = ask(models, ["linear", "trees"], lambda plane: plane.rank(REQUEST, explain=True), budget_ms=0.0001)
    assert answer.degraded
    assert [phase.model for phase in answer.phases] == ["linear/1"]
    assert answer.contributions is None
    assert set(answer.explanations) == set(REQUEST.ids)


def test_explaining_waits_for_a_thread_until_the_deadline(models):
    async def beside_others(plane: Dataplane):
        threads, is_over = plane._rank._encoders.threads, threading.Event()
        for _ in range(2):
            threads.submit(is_over.wait, 60)
        try:
            await plane._rank._explainers.check(models["trees"], time.monotonic() + 0.02)
        finally:
            is_over.set()

    with pytest.raises(DeadlineError, match="trees/1 must be opened before the deadline"):
        ask(models, ["trees"], beside_others)


def test_explaining_ends_at_the_deadline(models, monkeypatch):
    monkeypatch.setattr(explain, "_ROWS_A_TURN", 2)
    features, now_s = rows(6, 9), [1000.0]
    monkeypatch.setattr(explain, "time", SimpleNamespace(monotonic=lambda: now_s[0]))

    async def slowly(plane: Dataplane):
        explainers = explain.Explainers(plane._rank._encoders.threads)
        await explainers.check(models["trees"], 1001.0)
        found = explainers._opened[models["trees"].bundle.digest]
        plain = found.contributions

        def takes_50_s(block):
            now_s[0] += 50
            return plain(block)

        found.contributions = takes_50_s
        await explainers.contributions(models["trees"], REQUEST.ids, features, 1070.0)

    with pytest.raises(DeadlineError, match="6 candidates must be explained before the deadline, 4 were"):
        ask(models, ["trees"], slowly)


def test_values_are_none_where_they_are_missing():
    arrays = {"features": np.array([[1, np.nan]], np.float32)}
    assert explain.values(["a"], ["x", "y"], arrays) == {"a": {"x": 1.0, "y": None}}

"""Bounds are checked with figures worked out by hand; the paired interval itself is tested with models.bootstrap."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.config import read, validate
from models.errors import ConfigError
from models.features import PairFeaturizer
from models.manifest import Contents, PairFeatures, Signature
from models.metrics import Ratio
from registry.gates import Evidence, Gate, GatesConfig, judge
from registry.predictions import Predictions
from tests.bundles import measured

CONFIG = GatesConfig()
NOTHING = Signature(inputs=(), outputs=(), layout="rows")
CONTENTS = {
    "intent": Contents(family="intent", labels=("buy", "return"), signature=NOTHING),
    "tagging": Contents(family="tagging", labels=("buy", "return", "oos"), tags=("O", "B-c", "I-c"), signature=NOTHING),
    "ranking": Contents(family="ranking", features=("price", "stock"), signature=NOTHING),
}


def evidence(family: str = "intent", **quality: Any) -> Evidence:
    contents = CONTENTS[family]
    return Evidence(contents, *measured(contents.family, **quality))


def answering(right_N: list[float], slices: dict[str, list[bool]] | None = None, metric: str = "accuracy") -> Evidence:
    ratio = Ratio(np.array(right_N, dtype=np.float64), np.ones(len(right_N)))
    ids = tuple(i.to_bytes(16, "big") for i in range(len(right_N)))
    masks = {name: np.array(mask) for name, mask in (slices or {}).items()}
    return replace(evidence(), predictions=Predictions(ids, {metric: ratio}, masks))


def gate(name: str, candidate: Evidence, champion: Evidence | None = None, config: GatesConfig = CONFIG) -> Gate:
    (found,) = [gate for gate in judge(config, candidate, champion) if gate.name == name]
    return found


def test_the_shipped_bounds_are_the_default_ones() -> None:
    assert validate(GatesConfig, read("gates")) == GatesConfig()


def test_a_bound_that_means_nothing_is_refused_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"quality\.margin"):
        validate(GatesConfig, {"quality": {"margin": -0.1}})
    with pytest.raises(ConfigError, match=r"did you mean latency"):
        validate(GatesConfig, {"latencies": {}})


def test_a_first_promotion_passes_what_compares_and_says_so() -> None:
    gates = judge(CONFIG, evidence(), None)
    assert all(gate.passed for gate in gates)
    assert {gate.name for gate in gates if gate.detail == "no champion yet"} == {"quality", "slices", "signature"}


def test_an_equal_model_is_not_inferior_but_not_superior_either() -> None:
    same = gate("quality", evidence(), evidence())
    assert (same.value, same.bound, same.passed) == (0.0, -0.01, True)
    strict = GatesConfig.model_validate({"quality": {"superior": True}})
    assert not gate("quality", evidence(), evidence(), strict).passed
    assert gate("quality", evidence(share_right=0.99), evidence(share_right=0.8), strict).passed


def test_a_worse_model_fails_and_a_loss_within_the_margin_does_not() -> None:
    worse = gate("quality", evidence(share_right=0.8), evidence(share_right=0.9))
    assert not worse.passed
    assert worse.value is not None
    assert worse.value < -0.1 < -0.01
    assert "0.8000, champion 0.9000" in worse.detail
    wide = GatesConfig.model_validate({"quality": {"margin": 0.2}})
    assert gate("quality", evidence(share_right=0.8), evidence(share_right=0.9), wide).passed


def test_the_bound_is_on_the_interval_so_few_examples_prove_little() -> None:
    # One point of loss in a hundred: 1 of 100 examples differs, the interval reaches to -0.03 (binomial, p = 0.01).
    candidate, champion = answering([0.0] + [1.0] * 99), answering([1.0] * 100)
    assert gate("quality", candidate, champion).value == pytest.approx(-0.03)
    assert not gate("quality", candidate, champion).passed


def test_examples_are_paired_by_content_not_by_place() -> None:
    candidate = answering([1.0] * 60 + [0.0] * 40)
    predictions = candidate.predictions
    turned = Predictions(
        predictions.example_ids[::-1],
        {name: ratio.take(np.arange(100)[::-1]) for name, ratio in predictions.ratios.items()},
    )
    same = gate("quality", candidate, replace(candidate, predictions=turned))
    assert same.value == 0.0


@pytest.mark.parametrize("n_shared", [0, 19])
def test_too_few_shared_examples_fail_with_what_to_do(n_shared: int) -> None:
    champion = answering([1.0] * n_shared + [1.0] * (100 - n_shared))
    candidate = evidence(examples="others")
    ids = champion.predictions.example_ids[:n_shared] + candidate.predictions.example_ids[n_shared:]
    candidate = replace(candidate, predictions=replace(candidate.predictions, example_ids=ids))
    failed = gate("quality", candidate, champion)
    assert not failed.passed
    assert f"they share {n_shared}" in failed.detail
    assert "champion's test file" in failed.detail


def test_a_joint_model_succeeds_an_intent_model_by_its_intent_accuracy() -> None:
    joint = evidence("tagging", metric="intent_accuracy", share_right=0.97)
    gates = judge(CONFIG, joint, evidence(share_right=0.9))
    assert all(gate.passed for gate in gates), gates
    worse = evidence("tagging", metric="intent_accuracy", share_right=0.7)
    assert not gate("quality", worse, evidence(share_right=0.9)).passed


def test_an_intent_model_cannot_succeed_a_joint_model() -> None:
    joint = evidence("tagging", metric="intent_accuracy")
    refused = judge(CONFIG, evidence(), joint)
    assert {gate.name for gate in refused if not gate.passed} >= {"signature"}
    plain = gate("quality", evidence(), evidence("tagging"))
    assert not plain.passed
    assert "span_f1, which the candidate does not answer" in plain.detail


def test_a_joint_champion_is_compared_on_intents_too() -> None:
    def joint(share_right: float) -> Evidence:
        tagging, intents = evidence("tagging"), evidence("tagging", metric="intent_accuracy", share_right=share_right)
        ratios = {**tagging.predictions.ratios, **intents.predictions.ratios}
        return replace(tagging, predictions=replace(tagging.predictions, ratios=ratios))

    failed = [gate.name for gate in judge(CONFIG, joint(0.7), joint(0.9)) if not gate.passed]
    assert failed == ["quality_intent"]


def test_a_slice_clearly_worse_fails_by_name_though_the_whole_is_better() -> None:
    small = [i < 60 for i in range(600)]
    champion = answering([1.0] * 60 + [0.5] * 540)
    candidate = answering(
        [0.0] * 40 + [1.0] * 20 + [1.0] * 540, {"class=returns": small, "class=buy": [not s for s in small]}
    )
    failed = [gate for gate in judge(CONFIG, candidate, champion) if not gate.passed]
    assert [gate.name for gate in failed] == ["slices"]
    assert "class=returns" in failed[0].detail
    assert "class=buy" not in failed[0].detail


def test_a_slice_that_is_small_or_may_be_noise_does_not_refuse() -> None:
    champion = answering([1.0] * 600)
    tiny = answering([0.0] * 5 + [1.0] * 595, {"class=rare": [i < 29 for i in range(600)]})
    assert gate("slices", tiny, champion).detail.startswith("no slice has 30")
    # 3 of 60 wrong: 5 points down, but the interval's upper end is no further than a few wrong answers from 0.
    noisy = answering([0.0] * 3 + [1.0] * 597, {"class=returns": [i < 60 for i in range(600)]})
    assert gate("slices", noisy, champion).passed


def test_absolute_bounds_hold_for_a_first_promotion() -> None:
    bounds = {
        "minimum": {"accuracy": 0.95, "span_f1": 0.9},
        "parity": {"max_difference": 1e-7},
        "int8": {"max_loss": 0.0005},
        "latency": {"budget_ms": {"batch_1": 0.4, "list_10": 0.1}},
        "size": {"max_bytes": 3999},
    }
    gates = judge(validate(GatesConfig, bounds), evidence(int8=True, n_changed=2), None)
    failed = {gate.name: (gate.value, gate.bound) for gate in gates if not gate.passed}
    assert failed == {
        "minimum_accuracy": (pytest.approx(0.9), 0.95),
        "parity": (1e-6, 1e-7),
        "parity_decisions": (2, 0),
        "int8_loss": (0.001, 0.0005),
        "latency_batch_1_ms": (0.5, 0.4),
        "size_bytes": (4000, 3999),
    }
    assert all(gate.passed for gate in judge(CONFIG, evidence(int8=True), None))


def test_latency_is_held_to_the_percentile_asked_for() -> None:
    p95 = validate(GatesConfig, {"latency": {"percentile": "p95", "budget_ms": {"batch_1": 0.9}}})
    assert gate("latency_batch_1_ms", evidence(latency_ms=0.5), config=p95).value == 1.0
    assert not gate("latency_batch_1_ms", evidence(latency_ms=0.5), config=p95).passed


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("intent", {"labels": ("buy",)}, "does not know the labels return"),
        ("tagging", {"tags": ("O", "B-brand")}, "does not know the entities c"),
        ("tagging", {"labels": None}, "does not answer the intent"),
        ("ranking", {"features": ("price", "stock", "clicks")}, "takes the features clicks"),
        (
            "ranking",
            {"features": (*PairFeaturizer.names, "price"), "pair_features": PairFeatures(max_tokens=64)},
            "needs a text",
        ),
    ],
)
def test_a_signature_that_callers_would_notice_fails(family: str, changes: dict[str, Any], says: str) -> None:
    champion = evidence(family)
    candidate = replace(champion, contents=champion.contents.model_copy(update=changes))
    failed = gate("signature", candidate, champion)
    assert not failed.passed
    assert says in failed.detail


def test_a_signature_may_answer_more_and_ask_for_less() -> None:
    champion = evidence("intent")
    more = champion.contents.model_copy(update={"labels": ("oos", "return", "buy")})
    assert gate("signature", replace(champion, contents=more), champion).passed
    ranker = evidence("ranking")
    less = gate(
        "signature", replace(ranker, contents=ranker.contents.model_copy(update={"features": ("price",)})), ranker
    )
    assert less.passed
    assert "stop sending" in less.detail
    assert not gate("signature", ranker, champion).passed

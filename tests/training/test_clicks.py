"""Learning from clicks: propensities are found where the truth is known, and labels follow relevance, not position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import ConfigError, DataError
from models.manifest import Contents
from models.ranking import RankRequest
from tests.silent import Silent
from training import ranking
from training.clicks import Counts, by_em, by_intervention, judged_by_clicks, labelled, propensities, relevance
from training.config import RankingConfig, RankingTraining
from training.data.lists import Columns
from training.data.splits import Impressions, RankingRows, Splits
from training.fit import Checkpoint
from training.slices import slices

TRUE = np.array([1, 0.6, 0.45, 0.3, 0.2, 0.1])
"""Chances that six positions are looked at."""


def log(seed: int, n_queries: int, n_pages: int, *, swaps: bool) -> tuple[RankingRows, np.ndarray]:
    """Pages in the order of a bad ranker; clicks by the position-based model. Gives the true relevance too."""
    rng = np.random.default_rng(seed)
    lists, clicks, truths = [], [], []
    n_shown = len(TRUE)
    for query in range(n_queries):
        features_DF = rng.normal(size=(n_shown, 3)).astype(np.float32)
        relevance_D = 1 / (1 + np.exp(-2 * features_DF[:, 0]))
        order_S = np.tile(np.argsort(features_DF[:, 0] + 2 * features_DF[:, 1]), (n_pages, 1))
        if swaps:
            first = rng.integers(0, n_shown - 1, n_pages)
            page = np.flatnonzero(rng.random(n_pages) < 0.5)
            upper = order_S[page, first[page]].copy()
            order_S[page, first[page]] = order_S[page, first[page] + 1]
            order_S[page, first[page] + 1] = upper
        clicked = rng.random(order_S.shape) < TRUE * relevance_D[order_S]
        positions = np.tile(np.arange(1, n_shown + 1), n_pages)
        clicks.append(Impressions(order_S.ravel(), positions, clicked.ravel().astype(np.float64)))
        ids = tuple(f"{query}-{place}" for place in range(n_shown))
        lists.append(RankRequest(ids, features=Columns(features_DF, {"a": 0, "b": 1, "c": 2})))
        truths.append(relevance_D)
    labels = tuple(np.zeros(n_shown, np.float32) for _ in lists)
    names = tuple(str(query) for query in range(n_queries))
    rows = RankingRows(names, tuple(lists), labels, ("a", "b", "c"), "train.jsonl", clicks=tuple(clicks))
    return rows, np.concatenate(truths)


def counts_of(rows: RankingRows) -> Counts:
    assert rows.clicks is not None
    return Counts.of(rows.clicks, [len(one) for one in rows.labels])


def settings(**training: Any) -> RankingTraining:
    return RankingTraining.model_validate({"n_threads": 1, **training})


def test_counts_are_those_of_each_pair_at_each_position() -> None:
    first = Impressions(np.array([0, 1, 0, 1]), np.array([1, 2, 1, 3]), np.array([1.0, 0.0, 0.0, 1.0]))
    second = Impressions(np.array([0]), np.array([2]), np.array([1.0]))
    counts = Counts.of([first, second], [2, 3])
    assert counts.pairs.tolist() == [0, 1, 1, 2]
    assert counts.positions.tolist() == [0, 1, 2, 1]
    assert counts.shown.tolist() == [2, 1, 1, 1]
    assert counts.clicked.tolist() == [1, 0, 1, 1]
    assert (counts.n_pairs, counts.n_positions) == (5, 3)


def test_relevance_is_clicks_over_expected_looks_with_one_mean_look_more() -> None:
    one = Impressions(np.array([0, 0, 0, 0, 1]), np.array([1, 1, 2, 2, 2]), np.array([1.0, 0, 1, 0, 0]))
    counts = Counts.of([one], [2])
    mean = 2 / 3.5  # two clicks in 1 + 1 + 0.5 + 0.5 and 0.5 looks
    expected = [(2 + mean) / (3 + 1), mean / (0.5 + 1)]
    np.testing.assert_allclose(relevance(counts, np.array([1, 0.5])), expected)


def test_em_finds_propensities_without_any_intervention() -> None:
    rows, _ = log(1, 300, 40, swaps=False)
    features = np.concatenate([one.features.rows_DC for one in rows.lists])  # type: ignore[attr-defined]
    found = by_em(counts_of(rows), features, seed=1, n_threads=1)
    assert found[0] == 1
    np.testing.assert_allclose(found, TRUE, rtol=0.3)
    # What clicks alone say is off: the ranker put what is relevant far down.
    counts = counts_of(rows)
    rates = counts.by_position(counts.clicked) / counts.by_position(counts.shown)
    assert np.abs(rates / rates[0] - TRUE).max() > 2 * np.abs(found - TRUE).max()


def test_intervention_finds_propensities_from_swaps() -> None:
    rows, _ = log(2, 200, 100, swaps=True)
    np.testing.assert_allclose(by_intervention(counts_of(rows)), TRUE, rtol=0.12)


def test_intervention_of_one_document_at_two_positions_is_the_quotient_of_its_rates() -> None:
    clicked = np.concatenate([np.repeat([1.0, 0.0], [40, 60]), np.repeat([1.0, 0.0], [20, 180])])
    one = Impressions(np.zeros(300, np.int64), np.repeat([1, 2], [100, 200]), clicked)
    np.testing.assert_allclose(by_intervention(Counts.of([one], [1])), [1, 0.25])


def test_where_clicks_are_few_the_curve_of_interventions_goes_on_straight() -> None:
    """Positions 1, 2 and 4 share a document; nothing is known of 8, whose power law is that of 4."""
    positions = np.repeat([1, 2, 4, 8], 4000)
    rates = np.repeat([0.8, 0.4, 0.2, 0.0], 4000)
    clicked = (np.tile(np.arange(4000) / 4000, 4) < rates).astype(np.float64)
    documents = np.repeat([0, 0, 0, 1], 4000)
    found = by_intervention(Counts.of([Impressions(documents, positions, clicked)], [2]))
    np.testing.assert_allclose(found[[0, 1, 3, 7]], [1, 0.5, 0.25, 0.125], rtol=0.01)


def test_intervention_without_a_document_at_two_positions_is_refused() -> None:
    one = Impressions(np.array([0, 1]), np.array([1, 2]), np.array([1.0, 1.0]))
    with pytest.raises(DataError, match="clicked at several positions"):
        by_intervention(Counts.of([one], [2]))


@pytest.mark.parametrize("method", ["em", "intervention", tuple(TRUE)])
def test_labels_of_debiased_clicks_follow_relevance_where_raw_ones_follow_position(method: Any) -> None:
    rows, truth = log(3, 200, 60, swaps=True)
    raw = labelled(rows, propensities(rows, settings(debias="none")))
    debiased = labelled(rows, propensities(rows, settings(propensity=method)))
    of_raw, of_debiased = (np.corrcoef(np.exp2(np.concatenate(one.labels)) - 1, truth)[0, 1] for one in (raw, debiased))
    assert of_debiased > 0.85
    assert of_debiased > of_raw + 0.2
    assert max(float(one.max()) for one in debiased.labels) == 4  # a gain of 15
    assert debiased.propensities is not None
    assert debiased.propensities[0] == 1
    assert raw.propensities == (1,) * 6


def test_settings_of_clicks_are_refused_where_train_is_judged() -> None:
    rows, _ = log(4, 4, 5, swaps=False)
    judged = RankingRows(rows.query_ids, rows.lists, rows.labels, rows.feature_names, "train.parquet")
    with pytest.raises(ConfigError, match=r"are for click logs, train\.parquet is judged"):
        judged_by_clicks(Splits(judged, judged, None), settings(debias="ips"))
    assert judged_by_clicks(Splits(judged, judged, None), settings()).train is judged


def test_a_ranker_is_trained_on_a_log_and_keeps_its_propensities(tmp_path: Path) -> None:
    rows, truth = log(5, 120, 40, swaps=False)
    config = RankingConfig.model_validate(
        {"task": "ranking", "model": {"kind": "xgboost"}, "training": {"n_trees": 30, "patience": 5, "n_threads": 1}}
    )
    held = rows.take(np.arange(90, 120))
    splits = judged_by_clicks(Splits(rows.take(np.arange(90)), held, None), config.training)
    assert "train.jsonl is a click log" in splits.notes[0]
    fitted = ranking.fit(config, splits, Silent(), Checkpoint(tmp_path / "none", ""))
    contents: Contents = fitted.write(tmp_path)
    assert contents.propensities == splits.train.propensities
    model = ranking_model(contents)
    scores = np.concatenate([one["score"] for one in fitted.outputs([model.encode(one) for one in held.lists])])
    assert np.corrcoef(scores, truth[90 * 6 :])[0, 1] > 0.85


def test_queries_are_sliced_by_how_often_their_pages_were_seen() -> None:
    lists = [Impressions(np.array([0, 1] * n), np.array([1, 2] * n), np.zeros(2 * n)) for n in (1, 5, 9)]
    requests = tuple(RankRequest((f"{place}x", f"{place}y")) for place in range(3))
    rows = RankingRows(("1", "2", "3"), requests, (np.zeros(2, np.float32),) * 3, clicks=tuple(lists))
    masks = {name: mask.tolist() for name, mask in slices(rows).items()}
    assert masks == {
        "frequency=rare": [True, False, False],
        "frequency=medium": [False, True, False],
        "frequency=frequent": [False, False, True],
    }


def ranking_model(contents: Contents) -> Any:
    from models.ranking import RankingModel

    return RankingModel(contents)

"""Judged lists: order, repeats and contradictions; features that are constant, missing, copied, leaking or drifting."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.metrics import ndcg
from models.ranking import RankRequest
from tests.training.checks.shop import ranking_rows
from training.checks import judged as judged_module
from training.checks.features import features, stability_index
from training.checks.finding import Finding
from training.checks.judged import judged, with_lexical
from training.checks.lists import lists
from training.checks.ndcg import expected_ndcg
from training.data.splits import RankingRows

SHAPE = (20, 8)


def by_rule(found: list[Finding]) -> dict[str, Finding]:
    return {finding.rule: finding for finding in found}


def found_in(rows: RankingRows, test: RankingRows | None = None) -> dict[str, Finding]:
    seen = judged(rows, rows.feature_names, 1)
    return by_rule(features(seen, None if test is None else judged(test, rows.feature_names, 1), 1))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_ndcg_of_ties_is_the_mean_over_all_orders(documents: list[tuple[int, int]]) -> None:
    labels = np.array([label for label, _ in documents], dtype=np.float32)
    scores = np.array([score for _, score in documents], dtype=np.float64)
    mean = expected_ndcg(scores, labels, np.zeros(len(labels), dtype=np.int64))
    orders = [
        ndcg(labels[list(order)], scores[list(order)], 10) for order in itertools.permutations(range(len(documents)))
    ]
    assert (math.isnan(mean) and math.isnan(orders[0])) or mean == pytest.approx(np.mean(orders))


def test_ndcg_of_several_lists_is_their_mean_and_empty_ones_are_left_out() -> None:
    labels = np.array([0, 2, 1, 0, 0, 1, 0], dtype=np.float32)
    lists_N = np.array([0, 0, 0, 1, 1, 2, 2])
    scores = np.array([3, 2, 1, 1, 2, 1, math.nan])
    expected = np.mean([ndcg(labels[:3], scores[:3], 10), 1.0])
    assert expected_ndcg(scores, labels, lists_N) == pytest.approx(expected)


def test_constant_query_and_copied_features_are_named() -> None:
    of_query = np.repeat(np.arange(20.0)[:, None], 8, axis=1)
    copied = np.random.default_rng(1).normal(0, 1, SHAPE)
    rows = ranking_rows(
        ones=np.ones(SHAPE), nothing=np.full(SHAPE, np.nan), hour=of_query, stock=copied, inventory=copied
    )
    found = found_in(rows)
    assert [example["feature"] for example in found["constant_features"].examples] == ["ones", "nothing"]
    assert [example["value"] for example in found["constant_features"].examples] == [1.0, "missing"]
    assert "(hour) is the same for all documents of a query" in found["query_features"].sentence
    assert found["duplicate_features"].examples == ({"feature": "stock", "the same": "inventory"},)


def test_missing_values_are_a_share() -> None:
    sometimes, hardly = np.ones(SHAPE), np.full(SHAPE, np.nan)
    sometimes[:5] = np.nan
    sometimes[5] = 2
    hardly[0, 0] = 1
    found = found_in(ranking_rows(sometimes=sometimes, hardly=hardly))["missing_features"]
    assert found.severity == "warning"
    assert found.value == pytest.approx(159 / 160)
    assert found.sentence.startswith("2 features have missing values, most of all hardly (99.4 %)")
    assert found.chart is not None
    assert found.chart.series["train"] == pytest.approx((100 * 159 / 160, 25.0))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_feature_that_is_the_label_leaks(sign: int) -> None:
    rows = ranking_rows(seed=5)
    assert "leaking_features" not in found_in(rows)
    labels = np.stack(rows.labels)
    found = found_in(ranking_rows(seed=5, clicked=sign * labels))["leaking_features"]
    assert (found.severity, found.value) == ("warning", 1.0)
    assert "clicked alone orders train almost perfectly (ndcg@10 1.000" in found.sentence


def test_missing_values_that_tell_the_label_leak() -> None:
    labels = np.stack(ranking_rows(seed=6).labels)
    noise = np.random.default_rng(0).normal(9, 1, SHAPE)
    found = found_in(ranking_rows(seed=6, sold=np.where(labels > 0, labels + 0 * noise, np.nan)))
    assert "sold alone" in found["leaking_features"].sentence


def test_a_feature_better_than_all_others_together_is_suspicious() -> None:
    rows = ranking_rows(n_lists=40, seed=7)
    labels = np.stack(rows.labels)
    generator = np.random.default_rng(1)
    strong = labels + generator.normal(0, 1.2, labels.shape)
    weak = {name: labels + generator.normal(0, 40, labels.shape) for name in ("match", "clicks", "age")}
    found = found_in(ranking_rows(n_lists=40, seed=7, **weak, strong=strong))
    assert "strong alone orders train better" in found["leaking_features"].sentence


def test_constant_features_win_nothing_by_the_order_of_the_file() -> None:
    rows = ranking_rows(seed=8)
    ordered = tuple(np.sort(labels_D)[::-1] for labels_D in rows.labels)
    seen = judged(RankingRows(rows.query_ids, rows.lists, ordered, rows.feature_names), ("price",), 1)
    (finding,) = features(seen, None, 1)
    assert (finding.rule, finding.severity) == ("single_features", "note")


def test_a_shift_between_train_and_test_is_named() -> None:
    train, same = ranking_rows(n_lists=100, seed=1), ranking_rows(n_lists=100, seed=2)
    assert "drift" not in found_in(train, same)
    dearer = ranking_rows(n_lists=100, seed=2, price=np.random.default_rng(3).normal(90, 20, (100, 8)))
    found = found_in(train, dearer)["drift"]
    assert [example["feature"] for example in found.examples] == ["price"]


def test_the_stability_index_by_hand() -> None:
    # Tenths of train 1..100 are even; test has all 100 values in the lowest tenth. With half a value added to each of
    # eleven bins (one of missing values): (q - p) ln(q / p) summed by hand.
    train, test = np.arange(1, 101, dtype=np.float32), np.ones(100, dtype=np.float32)
    p, q = np.array([10.5] * 10 + [0.5]) / 105.5, np.array([100.5] + [0.5] * 10) / 105.5
    assert stability_index(train, test) == pytest.approx(float(np.sum((q - p) * np.log(q / p))), rel=1e-6)
    assert stability_index(train, train) == 0


def test_the_file_order_of_a_measured_split_gives_relevance_away() -> None:
    rows = ranking_rows()
    in_order = tuple(np.sort(labels_D)[::-1] for labels_D in rows.labels)
    ordered = RankingRows(rows.query_ids, rows.lists, in_order, rows.feature_names)
    shuffled = ranking_rows(prefix="t")
    assert "file_order_test" in by_rule(lists({"train": shuffled, "test": ordered}))
    assert not {"file_order_test", "file_order_train"} & set(by_rule(lists({"train": ordered, "test": shuffled})))


def test_lists_in_two_splits_are_told_by_id_and_by_content() -> None:
    train, test = ranking_rows(seed=1), ranking_rows(seed=2, prefix="t")
    assert not [rule for rule in by_rule(lists({"train": train, "test": test})) if rule.startswith("duplicates")]
    renamed = RankingRows(tuple(f"x{n}" for n in range(20)), train.lists, train.labels, train.feature_names)
    found = by_rule(lists({"train": train, "test": renamed}))["duplicates_train_test"]
    assert (found.severity, found.value) == ("warning", 20)
    assert found.examples[0]["same features"] == "yes"


def pairs(*judgements: tuple[str, str, str, int]) -> RankingRows:
    """Lists of (query, document, title, relevance)."""
    queries = list(dict.fromkeys(query for query, *_ in judgements))
    members = [[one for one in judgements if one[0] == query] for query in queries]
    requests = tuple(
        RankRequest(tuple(one[1] for one in group), group[0][0], tuple(one[2] for one in group)) for group in members
    )
    labels = tuple(np.array([one[3] for one in group], dtype=np.float32) for group in members)
    return RankingRows(tuple(f"id {query}" for query in queries), requests, labels)


def test_a_document_judged_twice_for_one_query_contradicts_itself() -> None:
    train = pairs(("red shoes", "d1", "Red shoes", 3), ("red shoes", "d1", "Red shoes", 0), ("red shoes", "d2", "x", 1))
    test = pairs(("Red  shoes", "d2", "x", 2), ("Red  shoes", "d3", "y", 0))
    found = by_rule(lists({"train": train, "test": test}))
    assert found["contradictions"].value == 2
    assert found["contradictions"].examples == (
        {"query": "red shoes", "document": "d1", "title": "Red shoes", "judged": "0 (train) / 3 (train)"},
        {"query": "red shoes", "document": "d2", "title": "x", "judged": "1 (train) / 2 (test)"},
    )
    assert found["duplicates_train_test"].value == 1


def test_lists_without_difference_are_counted() -> None:
    rows = pairs(("a", "d1", "t", 1), ("a", "d2", "t", 1), ("b", "d1", "t", 0), ("b", "d2", "t", 0), ("c", "d", "t", 2))
    found = by_rule(lists({"train": rows}))
    assert found["lists_without_difference"].severity == "warning"
    assert "1 of the 3 queries have no relevant document" in found["relevance"].sentence


def test_of_many_documents_whole_lists_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged_module, "MAX_DOCUMENTS", 50)
    rows = ranking_rows()
    seen = judged(rows, rows.feature_names, 1)
    assert (len(seen.labels), seen.is_whole, len(seen.chosen)) == (48, False, 6)
    for place, row in enumerate(seen.chosen):
        np.testing.assert_array_equal(seen.labels[seen.lists == place], rows.labels[row])
        np.testing.assert_array_equal(seen.features[seen.lists == place, 0], rows.lists[row].features["match"])


def test_text_pairs_gain_what_the_words_say() -> None:
    rows = pairs(("red shoes", "d1", "red shoes", 1), ("red shoes", "d2", "blue hat", 0))
    seen = with_lexical(judged(rows, (), 1), rows)
    coverage = seen.features[:, seen.names.index("word_coverage")]
    assert coverage.tolist() == [1.0, 0.0]

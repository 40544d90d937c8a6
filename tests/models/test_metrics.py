import itertools
import math

import ir_measures
import numpy as np
import pytest
import pytrec_eval
import seqeval.metrics
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import IOB2

from models import metrics

LABELS = ["returns", "order", "store", "oos"]
TAGS = ["O", "B-brand", "I-brand", "B-colour", "I-colour"]


def values(ratios):
    return {name: ratio.value for name, ratio in ratios.items()}


def random_lists(seed, n_lists, *, ties):
    random = np.random.default_rng(seed)
    for _ in range(n_lists):
        n_documents = int(random.integers(2, 30))
        labels = random.integers(0, 3, n_documents).astype(np.float32)
        scores = random.integers(0, 5, n_documents) if ties else random.permutation(n_documents)
        yield labels, scores.astype(np.float32)


def test_intent_metrics_by_hand():
    gold = ["returns", "order", "oos", "oos", "store", "oos"]
    predicted = ["returns", "store", "oos", "order", "oos", "oos"]
    assert values(metrics.intent_metrics(gold, predicted)) == pytest.approx(
        {
            "accuracy": 3 / 6,
            "accuracy_in_scope": 1 / 3,
            "oos_recall": 2 / 3,
            "oos_precision": 2 / 3,
            "false_alarms_per_1000": 1000 / 3,
        }
    )


def test_a_set_without_oos_rows_has_only_false_alarms_to_count():
    found = metrics.intent_metrics(["a", "b"], ["a", "oos"])
    assert values(found) == {"accuracy": 0.5, "accuracy_in_scope": 0.5, "false_alarms_per_1000": 500}
    assert set(metrics.intent_metrics(["a", "b"], ["a", "a"])) == {"accuracy", "accuracy_in_scope"}


def test_precision_is_left_out_where_nothing_is_called_oos():
    found = metrics.intent_metrics(["a", "oos"], ["a", "a"])
    assert set(found) == {"accuracy", "accuracy_in_scope", "oos_recall", "false_alarms_per_1000"}


def test_label_accuracy_is_that_of_in_scope_rows_before_any_is_refused():
    found = values(metrics.intent_metrics(["a", "b", "oos"], ["oos", "a", "oos"], likeliest=["a", "a", "b"]))
    assert (found["label_accuracy"], found["accuracy_in_scope"], found["accuracy"]) == (1 / 2, 0, 1 / 3)


def test_label_sets_are_judged_by_pairs_of_text_and_label():
    gold, guess = [{"a", "b"}, {"a"}, set()], [{"a"}, {"a", "c"}, {"b"}]
    found = values(metrics.label_set_metrics(gold, guess))
    assert found == pytest.approx({"label_f1": 4 / 7, "label_precision": 2 / 4, "label_recall": 2 / 3})


@pytest.mark.parametrize("n_levels", [4, 10_000])
def test_auroc_equals_scikit_learns_with_ties_and_without(n_levels):
    random = np.random.default_rng(2)
    scores, is_positive = random.integers(0, n_levels, 300).astype(float), random.random(300) < 0.2
    assert metrics.auroc(scores, is_positive) == pytest.approx(sklearn.metrics.roc_auc_score(is_positive, scores))
    assert math.isnan(metrics.auroc(scores, np.ones(300, dtype=bool)))


def test_a_gold_label_that_the_model_does_not_know_is_an_error():
    assert metrics.intent_metrics(["a", "unheard of"], ["a", "a"])["accuracy"].value == 0.5


def test_oos_metrics_equal_scikit_learns_on_random_answers():
    random = np.random.default_rng(1)
    gold, predicted = random.choice(LABELS, 500).tolist(), random.choice(LABELS, 500).tolist()
    ours = values(metrics.intent_metrics(gold, predicted))
    assert ours["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(gold, predicted))
    recall = sklearn.metrics.recall_score(gold, predicted, labels=["oos"], average=None)[0]
    assert ours["oos_recall"] == pytest.approx(recall)
    precision = sklearn.metrics.precision_score(gold, predicted, labels=["oos"], average=None)[0]
    assert ours["oos_precision"] == pytest.approx(precision)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_macro_f1_equals_scikit_learns(pairs):
    gold, predicted = (list(side) for side in zip(*pairs, strict=True))
    expected = sklearn.metrics.f1_score(gold, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(*metrics.class_indices(gold, predicted)) == pytest.approx(expected)


def test_calibration_error_by_hand():
    confidences = np.array([1.0, 0.95, 0.97, 0.5, 0.49])
    correct = np.array([True, True, False, True, False])
    # Bins of 1/15: the first three are in (14/15, 1], the last two in (7/15, 8/15].
    expected = 3 / 5 * abs(2 / 3 - (1.0 + 0.95 + 0.97) / 3) + 2 / 5 * abs(1 / 2 - (0.5 + 0.49) / 2)
    assert metrics.ece(confidences, correct) == pytest.approx(expected)


def test_calibration_error_is_0_for_honest_and_1_for_sure_and_wrong_answers():
    assert metrics.ece(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert metrics.ece(np.array([1.0, 1.0]), np.array([False, False])) == 1


def test_a_confidence_on_a_bins_edge_belongs_to_the_lower_bin():
    assert metrics.calibration_bins(np.array([0.0, 0.2, 0.2001, 1.0]), 5).tolist() == [0, 0, 1, 4]


def test_span_metrics_by_hand():
    gold = [["B-brand", "I-brand", "O"], ["B-colour", "O"], ["O"]]
    predicted = [["B-brand", "O", "O"], ["B-colour", "B-brand"], ["O"]]
    ours = values(metrics.tagging_metrics(gold, predicted))
    assert ours == pytest.approx(
        {"span_f1": 2 / 5, "span_precision": 1 / 3, "span_recall": 1 / 2, "exact_match": 1 / 3}
    )


def test_exact_match_asks_for_the_intent_where_joint():
    ours = values(metrics.tagging_metrics([["O"], ["O"]], [["O"], ["O"]], ["a", "b"], ["a", "a"]))
    assert ours == {"intent_accuracy": 0.5, "exact_match": 0.5}


@given(st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=8), min_size=1))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_span_metrics_equal_seqevals_even_for_stray_tags(sentences):
    gold = [[pair[0] for pair in sentence] for sentence in sentences]
    predicted = [[pair[1] for pair in sentence] for sentence in sentences]
    ours = values(metrics.tagging_metrics(gold, predicted))
    assert ours.get("span_f1", 0) == pytest.approx(seqeval.metrics.f1_score(gold, predicted))
    assert ours.get("span_precision", 0) == pytest.approx(seqeval.metrics.precision_score(gold, predicted))
    assert ours.get("span_recall", 0) == pytest.approx(seqeval.metrics.recall_score(gold, predicted))


def test_span_f1_by_type_equals_seqevals_report():
    random = np.random.default_rng(2)
    valid = [["B-brand", "I-brand", "O", "B-colour"], ["O", "B-brand", "B-colour", "I-colour"], ["O", "O", "O", "O"]]
    gold = [valid[i] for i in random.integers(3, size=40)]
    predicted = [valid[i] for i in random.integers(3, size=40)]
    report = seqeval.metrics.classification_report(gold, predicted, output_dict=True, mode="strict", scheme=IOB2)
    ours = values(metrics.span_f1_by_type(gold, predicted))
    assert ours == pytest.approx({name: report[name]["f1-score"] for name in ("brand", "colour")})


def test_ndcg_by_hand_with_exponential_gain():
    labels, scores = np.array([0, 2, 1], np.float32), np.array([3, 2, 1], np.float32)
    best = 3 / 1 + 1 / math.log2(3)
    assert metrics.ndcg(labels, scores, 10) == pytest.approx((3 / math.log2(3) + 1 / 2) / best)
    assert metrics.ndcg(labels, scores, 1) == 0


def test_equal_scores_keep_the_order_they_came_in():
    scores = np.zeros(2, np.float32)
    assert metrics.ndcg(np.array([1, 0], np.float32), scores) == 1
    assert metrics.ndcg(np.array([0, 1], np.float32), scores) == pytest.approx(1 / math.log2(3))


@pytest.mark.parametrize("k", [5, 10])
def test_ndcg_equals_scikit_learns_where_no_scores_are_equal(k):
    for labels, scores in random_lists(3, 60, ties=False):
        if labels.any():
            # scikit-learn takes the relevance itself as gain.
            expected = sklearn.metrics.ndcg_score([2**labels - 1], [scores], k=k, ignore_ties=True)
            assert metrics.ndcg(labels, scores, k) == pytest.approx(expected)


def test_scikit_learns_ndcg_under_ties_is_the_mean_of_ours_over_input_orders():
    labels, scores = np.array([2, 0, 1, 0], np.float32), np.array([1, 1, 1, 0], np.float32)
    orders = [np.array([*first, 3]) for first in itertools.permutations(range(3))]
    ours = np.mean([metrics.ndcg(labels[order], scores[order], 3) for order in orders])
    assert ours == pytest.approx(sklearn.metrics.ndcg_score([2**labels - 1], [scores], k=3, ignore_ties=False))


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_metrics_equal_trec_evals_with_ties_and_empty_queries(ties):
    lists = [*random_lists(4, 60, ties=ties), (np.zeros(7, np.float32), np.arange(7, dtype=np.float32))]
    names = {"ndcg_cut_5", "ndcg_cut_10", "recip_rank", "map"}
    # trec_eval takes the relevance itself as gain, and orders equal scores by falling document id.
    qrel = {
        str(q): {f"{999 - d}": int(2**label - 1) for d, label in enumerate(labels)}
        for q, (labels, _) in enumerate(lists)
    }
    run = {
        str(q): {f"{999 - d}": float(score) for d, score in enumerate(scores)} for q, (_, scores) in enumerate(lists)
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrel, names).evaluate(run)
    filled = [str(q) for q, (labels, _) in enumerate(lists) if labels.any()]
    assert 0 < len(filled) < len(lists)
    ours = values(metrics.ranking_metrics([labels for labels, _ in lists], [scores for _, scores in lists]))
    assert ours == pytest.approx(
        {
            "ndcg@5": np.mean([theirs[q]["ndcg_cut_5"] for q in filled]),
            "ndcg@10": np.mean([theirs[q]["ndcg_cut_10"] for q in filled]),
            "ndcg@10_empty_zero": np.sum([theirs[q]["ndcg_cut_10"] for q in filled]) / len(lists),
            "mrr": np.mean([theirs[q]["recip_rank"] for q in filled]),
            "map": np.mean([theirs[q]["map"] for q in filled]),
        }
    )


def test_ndcg_equals_ir_measures_with_exponential_gains():
    lists = [(labels, scores) for labels, scores in random_lists(5, 30, ties=False) if labels.any()]
    qrels = [
        ir_measures.Qrel(str(q), str(d), int(label))
        for q, (labels, _) in enumerate(lists)
        for d, label in enumerate(labels)
    ]
    run = [
        ir_measures.ScoredDoc(str(q), str(d), float(score))
        for q, (_, scores) in enumerate(lists)
        for d, score in enumerate(scores)
    ]
    measure = ir_measures.nDCG(gains={0: 0, 1: 1, 2: 3}) @ 10
    expected = ir_measures.calc_aggregate([measure], qrels, run)[measure]
    ours = metrics.ranking_metrics([labels for labels, _ in lists], [scores for _, scores in lists])
    assert ours["ndcg@10"].value == pytest.approx(expected)


def test_lists_without_a_relevant_document_alone_have_only_the_metric_that_counts_them_0():
    assert values(metrics.ranking_metrics([np.zeros(3, np.float32)], [np.arange(3.0)])) == {"ndcg@10_empty_zero": 0}


def test_single_list_functions_are_undefined_without_a_relevant_document():
    labels, scores = np.zeros(2, np.float32), np.arange(2.0)
    assert math.isnan(metrics.ndcg(labels, scores))
    assert math.isnan(metrics.reciprocal_rank(labels, scores))
    assert math.isnan(metrics.average_precision(labels, scores))


def test_no_examples_give_no_metrics():
    assert metrics.intent_metrics([], []) == {}
    assert metrics.tagging_metrics([], []) == {}
    assert metrics.ranking_metrics([], []) == {}

import numpy as np
import pytest

from models.metrics import Ratio
from registry.evaluation import Latency, Quality
from registry.predictions import Predictions
from training import pictures
from training.data.splits import IntentRows, RankingRows, TaggingRows
from training.evaluate import Evaluation


def evaluation(n, *, answers=None, **fields):
    ratios = {fields.pop("metric"): Ratio(np.linspace(0, 1, n), np.ones(n))}
    quality = Quality(n=n, metrics={}, intervals={})
    return Evaluation(quality, Predictions((b"0" * 16,) * n, ratios, answers=answers or {}), **fields)


def drawn(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def texts(figure):
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def test_intents_have_a_confusion_matrix_and_a_reliability_diagram():
    rows = IntentRows(("x", "y", "z"), ("a", "b", "cost in $ or $"))
    answers = {"confidence": np.array([0.9, 0.8, 0.3], np.float32)}
    found = pictures.pictures(rows, evaluation(3, metric="accuracy", answers=answers, labels=("a", "a", "b")))
    assert set(found) == {"confusion_matrix", "reliability_diagram"}
    assert all(drawn(figure).std() > 0 for figure in found.values())


def test_a_decision_on_scope_is_drawn_with_what_its_threshold_finds_and_costs():
    rows = IntentRows(("x",) * 5, ("a", "oos", "b", "a", "oos"))
    answers = {
        "confidence": np.array([0.9, 0.8, 0.3, 0.7, 0.4], np.float32),
        "scope": np.array([3.0, -2.0, -1.0, 2.0, 1.0], np.float32),
    }
    before = (np.array([0.9, 0.8, 0.3, 0.7, 0.4]), np.array([True, False, True, True, False]))
    labels = ("a", "oos", "oos", "a", "a")
    judged = evaluation(5, metric="accuracy", answers=answers, labels=labels, before=before, scope_threshold=0.0)
    found = pictures.pictures(rows, judged)
    assert set(found) == {"confusion_matrix", "reliability_diagram", "reliability_before", "scope"}
    assert texts(found["scope"]) == {"0.50 found at 333"}
    # Of the six pairs of a row in scope and one that is not, five stand in the right order.
    assert found["scope"].axes[1].get_title() == "area under the ROC curve 0.8333"
    assert all(drawn(figure).std() > 0 for figure in found.values())


def test_log_odds_without_oos_rows_and_without_a_threshold_are_drawn_too():
    drawn(pictures.scope_curve(np.array([1.0, 2.0]), np.array([True, True])))
    drawn(pictures.scope_curve(np.array([1.0, 1.0]), np.array([False, False]), 1.5))


def test_tags_have_a_bar_a_type():
    rows = TaggingRows((("nike", "x"),), (("B-brand", "B-size"),))
    found = pictures.pictures(rows, evaluation(1, metric="span_f1", tags=(("B-brand", "O"),)))
    assert texts(found["span_f1_by_type"]) == {"1.00  of 1", "0.00  of 0.5"}


def test_rankings_have_a_figure_of_their_queries():
    found = pictures.pictures(RankingRows((), (), ()), evaluation(5, metric="ndcg@10"))
    assert set(found) == {"ndcg_per_query"}
    drawn(found["ndcg_per_query"])


def test_a_confusion_matrix_counts_gold_by_predicted():
    figure = pictures.confusion_matrix(["a", "a", "b"], ["a", "b", "b"])
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert cells == {(0, 0): "1", (1, 0): "1", (1, 1): "1"}
    assert figure.axes[0].get_title() == "1 of 3 rows confused"


def test_of_many_classes_both_sides_of_the_most_frequent_errors_are_shown():
    names = [f"class {i:03}" for i in range(100)]
    figure = pictures.confusion_matrix([*names, *["class 007"] * 3], [*names, *["class 093"] * 3])
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(shown) == pictures.MAX_CLASSES
    assert {"class 007", "class 093"} <= set(shown)
    assert "3" in texts(figure)


@pytest.mark.parametrize("variants", [["float32"], ["float32", "int8"]])
def test_latency_and_learning_curves_are_drawn(variants):
    figures = Latency(n_calls=3, total_p50_ms=2, total_p95_ms=3, model_p50_ms=1, model_p95_ms=1.5)
    drawn(pictures.latency_bars({variant: {"batch_1": figures, "batch_8": figures} for variant in variants}))
    curve = pictures.learning_curve({"train": [(1, 0.5)], "valid": [(1, 0.4), (2, 0.6), (3, 0.5)]}, x="epoch", y="F1")
    drawn(curve)
    assert "0.600" in texts(curve)

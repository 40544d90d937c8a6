import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.batch import Encoded
from models.errors import ParityError
from models.manifest import Contents, Signature, SubwordText, TensorSpec
from models.model import open_model
from models.ranking import RankRequest
from models.session import OnnxSession
from tests.bundles import PHRASES, tiny_bundle
from training.config import EvaluateConfig
from training.data.splits import IntentRows, RankingRows, TaggingRows
from training.evaluate import answer, evaluate
from training.latency import latency
from training.parity import compare, same_order, without_padding
from training.slices import slices

CONFIG = EvaluateConfig(n_resamples=100)
TAGS = ("O", "B-brand", "B-colour", "I-colour")
WORDS = {"[UNK]": 0, "nike": 1, "dark": 2, "red": 3, "shoes": 4, "[PAD]": 5}
TAG_OF_WORD = [0, 1, 2, 3, 0, 0]


@pytest.fixture(scope="session")
def intent(tmp_path_factory):
    bundle = tiny_bundle(tmp_path_factory.mktemp("intent"))
    return open_model(bundle.path, bundle.manifest), bundle.manifest, OnnxSession(bundle.model_file()).run


@pytest.fixture(scope="session")
def ranking(tmp_path_factory):
    bundle = tiny_bundle(tmp_path_factory.mktemp("ranking"), "ranking")
    return open_model(bundle.path, bundle.manifest), bundle.manifest, OnnxSession(bundle.model_file()).run


@pytest.fixture(scope="session")
def joint(tmp_path_factory):
    """A tagger that knows the tag of each word by heart, and calls a text `brand` when it holds one."""
    directory = tmp_path_factory.mktemp("joint")
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    tag_logits = 4 * np.eye(len(TAGS), dtype=np.float32)[TAG_OF_WORD]
    labels = np.zeros((len(WORDS), 2), dtype=np.float32)
    labels[WORDS["nike"], 1] = 4
    stored = {"tag": tag_logits, "label": labels, "bias": np.array([1, 0], np.float32), "axis": np.array([1])}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["tag", "input_ids"], ["tag_logits"]),
            helper.make_node("Gather", ["label", "input_ids"], ["label_BTC"]),
            helper.make_node("ReduceSum", ["label_BTC", "axis"], ["label_BC"], keepdims=0),
            helper.make_node("Add", ["label_BC", "bias"], ["intent_logits"]),
        ],
        "joint",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"])],
        [
            helper.make_tensor_value_info("tag_logits", TensorProto.FLOAT, ["b", "t", len(TAGS)]),
            helper.make_tensor_value_info("intent_logits", TensorProto.FLOAT, ["b", 2]),
        ],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), directory / "model.onnx"
    )
    contents = Contents(
        family="tagging",
        labels=("other", "brand"),
        tags=TAGS,
        text=SubwordText(max_tokens=16),
        signature=Signature(
            layout="rows",
            inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(-1, -1), pad=WORDS["[PAD]"]),),
            outputs=(
                TensorSpec(name="tag_logits", dtype="float32", shape=(-1, -1, len(TAGS))),
                TensorSpec(name="intent_logits", dtype="float32", shape=(-1, 2)),
            ),
        ),
    )
    return open_model(directory, contents), contents, OnnxSession(directory / "model.onnx").run


def intent_rows():
    pairs = [(text, label) for label, texts in PHRASES.items() for text in texts]
    pairs += [("where is my order", "oos"), ("red nike shoes", "unheard of")]
    return IntentRows(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))


def joint_rows():
    return TaggingRows(
        tokens=(("nike", "shoes"), ("dark", "red", "nike", "shoes"), ("shoes",), ("red",)),
        tags=(("B-brand", "O"), ("B-colour", "I-colour", "B-brand", "O"), ("O",), ("B-material",)),
        labels=("brand", "other", "other", "other"),
    )


def ranking_rows():
    def request(price, popularity):
        columns = {"price": np.array(price, np.float32), "popularity": np.array(popularity, np.float32)}
        return RankRequest(ids=tuple(f"p{i}" for i in range(len(price))), text="red shoes", features=columns)

    lists = (request([0, 0, 0], [3, 2, 1]), request([0] * 6, [1, 2, 3, 4, 5, 6]), request([1, 1], [1, 1]))
    labels = ([2, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0])
    return RankingRows(("q1", "q2", "q3"), lists, tuple(np.array(of, np.float32) for of in labels))


def test_answers_come_in_the_order_of_the_requests_whatever_the_batches(intent):
    texts = [text for texts in PHRASES.values() for text in texts] * 5
    alone = answer(*intent, texts, batch_size=1)
    together = answer(*intent, texts, batch_size=7)
    assert [one.answer.intent.label for one in together] == [label for label, of in PHRASES.items() for _ in of] * 5
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.outputs["intent_logits"], other.outputs["intent_logits"], atol=1e-5)


def test_intents_are_judged_with_intervals_and_unknown_labels_counted(intent):
    evaluation = evaluate(*intent, intent_rows(), config=CONFIG, seed=1)
    metrics, intervals = evaluation.quality.metrics, evaluation.quality.intervals
    assert set(metrics) == {
        *("accuracy", "accuracy_in_scope", "oos_recall", "oos_precision", "macro_f1", "ece"),
        *("false_alarms_per_1000", "label_accuracy", "scope_auroc"),
    }
    assert metrics["accuracy"] == 6 / 8
    assert metrics["accuracy_in_scope"] == 4 / 5
    assert metrics["oos_recall"] == pytest.approx(2 / 3)
    assert set(intervals) == set(metrics)
    assert all(intervals[name][0] <= metrics[name] <= intervals[name][1] for name in ("accuracy", "macro_f1"))
    assert evaluation.notes == (
        "1 of 8 rows have a label that the model does not know (unheard of); they count as errors",
    )


def test_the_predictions_hold_what_the_metrics_say_and_each_answer(intent):
    evaluation = evaluate(*intent, intent_rows(), config=CONFIG, seed=1)
    predictions = evaluation.predictions
    assert predictions.ratios["accuracy"].value == evaluation.quality.metrics["accuracy"]
    assert [intent[1].labels[i] for i in predictions.answers["label"]] == list(evaluation.labels)
    assert predictions.answers["confidence"].dtype == np.float32
    # The same text with another gold label is another example.
    assert len(set(predictions.example_ids)) == 8


def test_slices_hold_the_main_metric_of_their_rows(intent):
    evaluation = evaluate(*intent, intent_rows(), config=CONFIG, seed=1)
    found = evaluation.quality.slices
    assert (found["class=oos"].n, found["class=oos"].value) == (3, pytest.approx(2 / 3))
    assert (found["words=2-3"].n, found["words=2-3"].value) == (3, pytest.approx(2 / 3))
    assert found["class=oos"].interval[0] <= 2 / 3 <= found["class=oos"].interval[1]


def test_frequency_slices_are_thirds_of_the_labels_by_rows_in_train():
    rows = IntentRows(("x",) * 4, ("few", "some", "many", "new"))
    masks = slices(rows, {"few": 1, "some": 5, "many": 9})
    frequency = {name: mask.tolist() for name, mask in masks.items() if name.startswith("frequency")}
    assert frequency == {
        "frequency=rare": [True, False, False, True],
        "frequency=medium": [False, True, False, False],
        "frequency=frequent": [False, False, True, False],
    }


def test_labels_seen_equally_often_make_no_frequency_slices():
    rows = IntentRows(("x", "y z"), ("a", "b"))
    assert set(slices(rows, {"a": 100, "b": 100})) == {"words=1", "words=2-3", "class=a", "class=b"}


def test_tags_and_intents_of_a_joint_model_are_judged_together(joint):
    evaluation = evaluate(*joint, joint_rows(), config=CONFIG, seed=1)
    # `red` alone is read as a stray colour, which the decoder turns into a span or leaves out: wrong either way.
    assert evaluation.quality.metrics["intent_accuracy"] == 3 / 4
    assert evaluation.quality.metrics["span_recall"] == 3 / 4
    assert evaluation.quality.metrics["exact_match"] == 2 / 4
    assert evaluation.tags[1] == ("B-colour", "I-colour", "B-brand", "O")
    assert evaluation.quality.slices["type=brand"].value == 1
    assert evaluation.notes == (
        "1 of 4 rows have a tag that the model does not know (B-material); they count as errors",
    )


def test_tags_without_labels_are_judged_alone(joint):
    rows = TaggingRows(joint_rows().tokens, joint_rows().tags)
    evaluation = evaluate(*joint, rows, config=CONFIG, seed=1)
    assert set(evaluation.quality.metrics) == {"span_f1", "span_precision", "span_recall", "exact_match"}
    assert evaluation.labels is None


def test_rankings_are_judged_by_list(ranking):
    evaluation = evaluate(*ranking, ranking_rows(), config=CONFIG, seed=1)
    first = (3 + 1 / 2) / (3 + 1 / np.log2(3))
    last = 1 / np.log2(7)
    assert evaluation.quality.metrics["ndcg@10"] == pytest.approx((first + last) / 2)
    assert evaluation.quality.metrics["ndcg@10_empty_zero"] == pytest.approx((first + last) / 3)
    assert evaluation.quality.metrics["mrr"] == pytest.approx((1 + 1 / 6) / 2)
    assert evaluation.quality.slices["documents=5-9"].value == pytest.approx(last)
    assert evaluation.predictions.answers["offsets"].tolist() == [0, 3, 9, 11]


def test_a_slice_without_a_defined_metric_is_not_reported(ranking):
    rows = ranking_rows().take(np.array([1, 2]))
    evaluation = evaluate(*ranking, rows, config=CONFIG, seed=1)
    assert set(evaluation.quality.slices) == {"documents=5-9"}


def test_latency_is_measured_at_every_size(intent, ranking, monkeypatch):
    monkeypatch.setattr("training.latency._BUDGET_S", 0.05)
    texts = latency(*intent, intent_rows(), seed=1)
    assert list(texts) == ["batch_1", "batch_8", "batch_32"]
    lists = latency(*ranking, ranking_rows(), seed=1)
    assert list(lists) == ["list_10", "list_100", "list_1000"]
    for found in (*texts.values(), *lists.values()):
        assert 0 < found.model_p50_ms <= found.total_p50_ms <= found.total_p95_ms
        assert found.n_calls >= 1


def test_an_export_equal_to_its_source_has_parity(joint):
    texts = joint_rows().requests()
    # A source that pads each text alone has other padding than the batch.
    expected = [one.outputs for one in answer(*joint, texts, batch_size=1)]
    parity = compare(*joint[:2], texts, expected, answer(*joint, texts, batch_size=4), tolerance=1e-4)
    assert (parity.largest_difference, parity.n_changed_decisions, parity.n_examples) == (0, 0, 4)


def test_what_stands_behind_a_short_window_is_not_compared():
    mask_WT = np.array([[1, 1, 1], [1, 0, 0]])
    encoded = Encoded({"input_ids": np.ones((2, 3), np.int64), "attention_mask": mask_WT}, n_windows=2)
    tags_WTK = np.arange(1, 17, dtype=np.float32).reshape(2, 4, 2)
    found = without_padding({"intent_logits": np.ones(5), "tag_logits": tags_WTK}, encoded)
    assert found["tag_logits"].tolist() == [[[1, 2], [3, 4], [5, 6]], [[9, 10], [0, 0], [0, 0]]]
    assert found["intent_logits"].tolist() == [1] * 5


def test_a_changed_tag_is_a_changed_decision_and_its_distance_is_told(joint):
    texts = joint_rows().requests()
    answered = answer(*joint, texts)
    expected = [{name: array.copy() for name, array in one.outputs.items()} for one in answered]
    expected[1]["tag_logits"][3, 1] += 4.5
    parity = compare(*joint[:2], texts, expected, answered, tolerance=1e-4)
    assert (parity.largest_difference, parity.n_changed_decisions) == (4.5, 1)


def test_an_export_that_gives_nan_is_refused(intent):
    answered = answer(*intent, ["red nike shoes"])
    expected = [{"intent_logits": np.full_like(answered[0].outputs["intent_logits"], np.nan)}]
    with pytest.raises(ParityError, match="intent_logits must be finite"):
        compare(*intent[:2], ["red nike shoes"], expected, answered, tolerance=1e-4)


def test_a_changed_order_is_a_changed_decision(ranking):
    rows = ranking_rows()
    answered = answer(*ranking, rows.requests())
    expected = [{"score": one.outputs["score"].copy()} for one in answered]
    expected[0]["score"][0] -= 1.5
    parity = compare(*ranking[:2], rows.requests(), expected, answered, tolerance=1e-4)
    assert (parity.largest_difference, parity.n_changed_decisions) == (1.5, 1)


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ([3, 2, 1], [30, 20, 10], True),
        ([3, 2, 1], [30, 10, 20], False),
        ([3, 1.00005, 1], [3, 1, 1.00005], True),
        ([1, 1, 1], [1, 3, 2], True),
        # Each neighbour is close, but the last has overtaken one that is far above it.
        ([1.00018, 1.00009, 1], [1, 2, 3], False),
    ],
)
def test_documents_may_change_places_only_where_their_scores_are_equal_within_tolerance(expected, found, same):
    assert same_order(np.array(expected), np.array(found), 1e-4) is same

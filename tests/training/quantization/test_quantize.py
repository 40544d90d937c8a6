from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.batch import Encoded
from models.errors import ConfigError
from models.manifest import Contents, Signature, TensorSpec
from models.session import OnnxSession
from tests.silent import Silent
from training.config import QuantizeConfig, parse
from training.evaluate import Answered
from training.quantization.quantize import Source, choose, loss_measures, relative_error
from training.quantization.recipes import LADDERS, RECIPES

K, N, N_VALID = 32, 5, 40


class Vectors:
    """A model whose requests are vectors already."""

    def encode(self, request):
        return Encoded({"x": request[None]})

    def decode_batch(self, _requests, _encoded, outputs):
        return [int(np.argmax(one["score"])) for one in outputs]


def contents():
    return Contents(
        family="ranking",
        signature=Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, K)),),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(-1, N)),),
            layout="concat",
        ),
    )


@pytest.fixture
def source(tmp_path):
    """Two products with a relu between them; the metric is the share of requests that keep float32's best column."""
    random = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    weights = {name: random.normal(size=(K, n)).astype(np.float32) for name, n in (("up", K), ("down", N))}
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["kept"]),
        helper.make_node("MatMul", ["kept", "down"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [value("x", TensorProto.FLOAT, ["b", K])],
        [value("score", TensorProto.FLOAT, ["b", N])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    requests = list(random.normal(size=(2 * N_VALID, K)).astype(np.float32))
    train, valid = requests[:N_VALID], requests[N_VALID:]
    model, run = Vectors(), OnnxSession(path).run
    answered = []
    for request in valid:
        encoded = model.encode(request)
        outputs = run(encoded.arrays)
        answered.append(Answered(encoded, outputs, *model.decode_batch([request], [encoded], [outputs])))
    best = [one.answer for one in answered]

    def metrics(found):
        return {"ndcg@10": float(np.mean([one.answer == wanted for one, wanted in zip(found, best, strict=True)]))}

    return Source(path, model, contents(), train, valid, answered, metrics)


def test_the_first_recipe_within_the_budget_is_kept_and_no_other_is_tried(source, tmp_path):
    recorder = Silent()
    chosen = choose(source, tmp_path / "int8.onnx", QuantizeConfig(max_loss=1.0), recorder, is_timed=False)
    assert (chosen.is_kept, chosen.trial.recipe, len(chosen.trials)) == (True, LADDERS["latency"][0], 1)
    assert chosen.measure == "ndcg@10"
    assert OnnxSession(tmp_path / "int8.onnx").run({"x": source.train[0][None]})["score"].shape == (1, N)
    assert len(recorder.said) == 1
    assert chosen.float32_latency_ms == {}


def test_a_safer_recipe_is_tried_where_the_fast_one_loses_too_much(source, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "training.quantization.quantize.LADDERS", {"latency": ("static_per_tensor", "tables_8bit", "static")}
    )
    whole = source.metrics

    def metrics(found):
        """What was rounded at all loses; float32 and tables_8bit, of a graph without tables, do not."""
        exact = all(
            np.array_equal(a.outputs["score"], b.outputs["score"]) for a, b in zip(found, source.answered, strict=True)
        )
        return {"ndcg@10": whole(found)["ndcg@10"] if exact else 0.5}

    strict = Source(**vars(source) | {"metrics": metrics})
    chosen = choose(strict, tmp_path / "int8.onnx", QuantizeConfig(max_loss=0.003), Silent(), is_timed=False)
    assert [one.recipe for one in chosen.trials] == ["static_per_tensor", "tables_8bit"]
    assert [one.loss for one in chosen.trials] == [0.5, 0.0]
    assert (chosen.is_kept, chosen.trial.recipe) == (True, "tables_8bit")


def test_nothing_is_written_where_every_recipe_loses_too_much(source, tmp_path):
    lossy = Source(**vars(source) | {"metrics": lambda found: {"ndcg@10": float(found is source.answered)}})
    chosen = choose(lossy, tmp_path / "int8.onnx", QuantizeConfig(max_loss=0.5), Silent(), is_timed=False)
    assert not chosen.is_kept
    assert not (tmp_path / "int8.onnx").exists()
    assert [one.recipe for one in chosen.trials] == list(LADDERS["latency"])


def test_all_recipes_are_measured_and_one_that_depends_on_the_batch_is_never_the_best(source, tmp_path):
    settings = QuantizeConfig(max_loss=1.0, recipes="all", objective="size")
    chosen = choose(source, tmp_path / "int8.onnx", settings, Silent())
    assert [one.recipe for one in chosen.trials] == list(RECIPES)
    effects = {one.recipe: one.batch_effect for one in chosen.trials}
    assert effects.pop("onnxruntime_dynamic") > 1e-3
    assert effects.pop("weights_8bit") < 1e-4  # MatMulNBits adds up few rows in another order than many
    assert effects.pop("weights_4bit") < 1e-4
    assert max(effects.values()) < 1e-5
    assert chosen.trial.recipe != "onnxruntime_dynamic"
    assert all(set(one.latency_ms) == {"one_core_batch_1", "all_cores_batch_1"} for one in chosen.trials)
    smallest = min(one.size_bytes for one in chosen.trials if one.recipe != "onnxruntime_dynamic")
    assert chosen.trial.size_bytes <= 1.03 * smallest


def test_a_recipe_that_depends_on_the_batch_is_kept_where_it_is_named(source, tmp_path):
    settings = QuantizeConfig(max_loss=1.0, recipes=("onnxruntime_dynamic",))
    assert choose(source, tmp_path / "int8.onnx", settings, Silent()).is_kept


def test_the_most_harmful_product_is_spared(source, tmp_path):
    """One row of `down`, which reads a channel that is always 0, is so wide that its 7-bit steps swallow the others."""
    model = onnx.load(source.path)
    up, down = model.graph.initializer
    for tensor, place, value in ((up, np.s_[:, 0], 0), (down, np.s_[0], 1000)):
        array = numpy_helper.to_array(tensor).copy()
        array[place] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, source.path)
    run = OnnxSession(source.path).run
    answered = [Answered(one.encoded, run(one.encoded.arrays), one.answer) for one in source.answered]
    harmed = Source(**vars(source) | {"answered": answered})
    settings = QuantizeConfig(max_loss=1.0, recipes=("by_token", "by_token_spared"))
    chosen = choose(harmed, tmp_path / "int8.onnx", settings, Silent())
    plain, spared = chosen.trials
    assert spared.spared == ("score",)
    assert spared.error < plain.error


def test_a_joint_model_is_weighed_by_both_of_its_questions():
    tagging = SimpleNamespace(family="tagging")
    assert loss_measures(tagging, {"span_f1": 1.0, "intent_accuracy": 1.0}) == ("span_f1", "intent_accuracy")
    assert loss_measures(tagging, {"span_f1": 1.0}) == ("span_f1",)
    assert loss_measures(SimpleNamespace(family="intent"), {"accuracy": 1.0}) == ("accuracy",)


def test_the_error_is_a_share_of_the_spread_and_leaves_padding_out():
    def tagged(values):
        return Answered(Encoded({"ids": np.zeros(2)}), {"tag_logits": np.array(values)}, None)

    expected = [tagged([[1.0, -1.0], [1.0, -1.0], [7.0, 7.0]])]  # two tokens, and one of padding
    found = [tagged([[1.5, -1.0], [1.0, -1.0], [0.0, 0.0]])]
    assert relative_error(expected, found) == pytest.approx(0.25)  # sqrt(mean(0.25, 0, 0, 0) / 1)


@pytest.mark.parametrize("recipes", [[], ["static", "static"], ["unheard_of"], "some"])
def test_recipes_that_say_nothing_are_refused(recipes):
    raw = {"task": "intent", "model": {"kind": "transformer"}, "quantize": {"recipes": recipes}}
    with pytest.raises(ConfigError, match=r"quantize\.recipes"):
        parse(raw, "intent")

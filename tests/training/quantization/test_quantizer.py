import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.session import OnnxSession
from training.quantization.quantizer import products, quantize
from training.quantization.ranges import Range
from training.quantization.ranges import ranges as measured
from training.quantization.recipes import RECIPES

K, N = 16, 8


def graph(nodes, constants, outputs, *, opset=18, inputs=("x",)):
    value = helper.make_tensor_value_info
    types = {"x": (TensorProto.FLOAT, ["b", "t", K]), "row": (TensorProto.FLOAT, ["b", K])}
    types |= {"ids": (TensorProto.INT64, ["b", "t"]), "mask": (TensorProto.INT32, ["b", "t"])}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [value(name, *types[name]) for name in inputs],
            [value(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )


def both(directory, model):
    """The float32 and the int8 model, and the operators of the latter."""
    onnx.save(model, directory / "model.onnx")
    quantize(directory / "model.onnx", directory / "model.int8.onnx")
    operators = [node.op_type for node in onnx.load(directory / "model.int8.onnx").graph.node]
    return OnnxSession(directory / "model.onnx").run, OnnxSession(directory / "model.int8.onnx").run, operators


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def product(opset=18):
    return graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": random(K, N)}, ["y"], opset=opset)


@pytest.fixture(scope="session")
def quantized(tmp_path_factory):
    return both(tmp_path_factory.mktemp("product"), product())


def by_hand(x, w):
    """The same product by the rule: rows of max |x| / 127, columns of max |w| / 63."""
    rows = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    columns = np.abs(w).max(0) / np.float32(63)
    x_levels = np.round(np.divide(x, rows, out=np.zeros_like(x), where=rows > 0))
    return (x_levels @ np.round(w / columns)) * rows * columns


def test_a_product_is_that_of_rounded_rows_and_columns(quantized):
    x = random(3, 5, K, seed=1)
    _, int8, operators = quantized
    assert "MatMul" not in operators
    np.testing.assert_allclose(int8({"x": x})["y"], by_hand(x, random(K, N)), rtol=1e-4, atol=1e-4)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_an_answer_does_not_depend_on_its_batch(quantized, n_texts, n_tokens, seed):
    x = random(n_texts, n_tokens, K, seed=seed) * np.logspace(-2, 3, n_texts, dtype=np.float32)[:, None, None]
    _, int8, _ = quantized
    together = int8({"x": x})["y"]
    for text in range(n_texts):
        np.testing.assert_array_equal(together[text], int8({"x": x[text : text + 1]})["y"][0])


def test_the_rule_before_opset_18_gives_the_same(tmp_path, quantized):
    x = random(2, 3, K)
    _, int8, _ = both(tmp_path, product(opset=13))
    np.testing.assert_array_equal(int8({"x": x})["y"], quantized[1]({"x": x})["y"])


def test_a_row_of_zeros_gives_zeros(quantized):
    x = random(1, 3, K)
    x[0, 1] = 0
    y = quantized[1]({"x": x})["y"]
    assert (y[0, 1] == 0).all()
    assert np.isfinite(y).all()


def test_the_largest_values_of_all_signs_do_not_overflow(tmp_path):
    w = np.concatenate([np.ones((K, 4)), -np.ones((K, 4))], axis=1).astype(np.float32)
    float32, int8, _ = both(tmp_path, graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, ["y"]))
    x = np.stack([np.ones((2, K)), -np.ones((2, K))]).astype(np.float32)
    np.testing.assert_allclose(int8({"x": x})["y"], float32({"x": x})["y"], rtol=1e-5)


def test_weights_of_zeros_give_zeros(tmp_path):
    w = np.zeros((K, N), np.float32)
    _, int8, _ = both(tmp_path, graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, ["y"]))
    assert (int8({"x": random(1, 2, K)})["y"] == 0).all()


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gemm_is_quantized_with_its_bias(tmp_path, transposed, bias):
    w = random(K, N)
    constants = {"w": w.T if transposed else w} | ({"c": random(N, seed=2)} if bias else {})
    node = helper.make_node("Gemm", ["row", *constants], ["y"], transB=transposed)
    float32, int8, operators = both(tmp_path, graph([node], constants, ["y"], inputs=["row"]))
    assert "Gemm" not in operators
    x = random(4, K, seed=3)
    expected = by_hand(x, w) + constants.get("c", 0)
    np.testing.assert_allclose(int8({"row": x})["y"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(int8({"row": x})["y"], float32({"row": x})["y"], atol=0.3)


def test_products_of_the_same_rows_share_their_quantization(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in ("a", "b")]
    _, _, operators = both(tmp_path, graph(nodes, {"a": random(K, N), "b": random(K, N, seed=1)}, ["y_a", "y_b"]))
    assert operators.count("QuantizeLinear") == 1
    assert operators.count("MatMulIntegerToFloat") == 2


def test_a_large_table_is_kept_in_8_bits_a_small_one_in_float32(tmp_path):
    constants = {"large": random(4000, K), "small": random(10, K)}
    nodes = [helper.make_node("Gather", [name, "ids"], [f"y_{name}"]) for name in constants]
    float32, int8, _ = both(tmp_path, graph(nodes, constants, ["y_large", "y_small"], inputs=["ids"]))
    ids = np.array([[0, 9], [3, 3]])
    exact, rounded = float32({"ids": ids}), int8({"ids": ids})
    np.testing.assert_array_equal(exact["y_small"], rounded["y_small"])
    step = np.abs(exact["y_large"]).max(-1, keepdims=True) / 127
    assert (np.abs(exact["y_large"] - rounded["y_large"]) <= step * 0.501).all()
    sizes = [(tmp_path / name).stat().st_size for name in ("model.onnx", "model.int8.onnx")]
    assert sizes[1] < sizes[0] / 3


def test_a_matrix_that_is_read_as_table_and_as_weights_serves_both(tmp_path):
    table = random(4000, K)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["states"]),
        helper.make_node("Transpose", ["states"], ["turned"], perm=[0, 1, 2]),
        helper.make_node("MatMul", ["turned", "w"], ["y"]),
        helper.make_node("Gemm", ["row", "table"], ["z"], transB=1),
    ]
    float32, int8, _ = both(
        tmp_path, graph(nodes, {"table": table, "w": random(K, N)}, ["y", "z"], inputs=["ids", "row"])
    )
    inputs = {"ids": np.array([[5, 6]]), "row": random(1, K)}
    exact, rounded = float32(inputs), int8(inputs)
    for name in ("y", "z"):
        np.testing.assert_allclose(rounded[name], exact[name], atol=0.3)


def test_what_cannot_be_quantized_stays_as_it_is(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "cube"], ["y"]),
        helper.make_node("Gemm", ["row", "w"], ["z"], alpha=0.5),
    ]
    constants = {"cube": random(1, K, N), "w": random(K, N)}
    float32, int8, operators = both(tmp_path, graph(nodes, constants, ["y", "z"], inputs=["x", "row"]))
    assert operators == ["MatMul", "Gemm"]
    inputs = {"x": random(2, 3, K), "row": random(2, K)}
    np.testing.assert_array_equal(float32(inputs)["y"], int8(inputs)["y"])


def ranges(x, name="x"):
    rows = x.reshape(-1, x.shape[-1])
    return {name: Range(rows.min(0), rows.max(0))}


def by_recipe(directory, model, recipe, **settings):
    """The float32 and the int8 model, and the operators of the latter."""
    onnx.save(model, directory / "model.onnx")
    quantize(directory / "model.onnx", directory / "model.int8.onnx", RECIPES[recipe], **settings)
    operators = [node.op_type for node in onnx.load(directory / "model.int8.onnx").graph.node]
    return OnnxSession(directory / "model.onnx").run, OnnxSession(directory / "model.int8.onnx").run, operators


def test_a_static_product_is_that_of_one_range_and_of_columns(tmp_path):
    x, w = random(3, 5, K, seed=1), random(K, N)
    _, int8, operators = by_recipe(tmp_path, product(), "static", ranges=ranges(x))
    assert operators == ["QuantizeLinear", "MatMulIntegerToFloat"]
    step, columns = (x.max() - x.min()) / 255, np.abs(w).max(0) / 63
    zero = np.round(-x.min() / step)
    x_levels = np.clip(np.round(x / step) + zero, 0, 255) - zero
    expected = (x_levels @ np.round(w / columns)) * step * columns
    np.testing.assert_allclose(int8({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_a_symmetric_range_has_zero_in_its_middle(tmp_path):
    x = np.abs(random(2, 4, K, seed=1))
    by_recipe(tmp_path, product(), "static_symmetric", ranges=ranges(x))
    zero = next(
        tensor
        for tensor in onnx.load(tmp_path / "model.int8.onnx").graph.initializer
        if tensor.name.endswith("zero_point")
    )
    assert numpy_helper.to_array(zero) == 128


def test_one_wide_channel_does_not_take_the_levels_of_the_others(tmp_path):
    x, w = random(8, 6, K, seed=1), random(K, N)
    x[..., 3] *= 100
    w[3] /= 100
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, ["y"])
    errors = {}
    for recipe in ("static", "static_no_smoothing"):
        float32, int8, operators = by_recipe(tmp_path, model, recipe, ranges=ranges(x))
        errors[recipe] = np.square(float32({"x": x})["y"] - int8({"x": x})["y"]).mean()
    assert operators == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert errors["static"] < errors["static_no_smoothing"] / 10


def test_a_static_answer_does_not_depend_on_its_batch_even_beyond_the_range(tmp_path):
    x = random(4, 3, K, seed=1)
    _, int8, _ = by_recipe(tmp_path, product(), "static", ranges=ranges(x / 4))
    together = int8({"x": x})["y"]
    for text in range(len(x)):
        np.testing.assert_array_equal(together[text], int8({"x": x[text : text + 1]})["y"][0])


def test_a_bias_behind_a_static_product_goes_into_it(tmp_path):
    constants = {"w": random(K, N), "c": random(N, seed=1)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Add", ["product", "c"], ["y"])]
    x = random(2, 5, K, seed=2)
    float32, int8, operators = by_recipe(tmp_path, graph(nodes, constants, ["y"]), "static", ranges=ranges(x))
    assert operators == ["QuantizeLinear", "MatMulIntegerToFloat"]
    np.testing.assert_allclose(int8({"x": x})["y"], float32({"x": x})["y"], atol=0.3)


def test_a_product_read_elsewhere_too_stays_without_its_bias(tmp_path):
    constants = {"w": random(K, N), "c": random(N, seed=1)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Add", ["product", "c"], ["y"])]
    x = random(2, 5, K, seed=2)
    model = graph(nodes, constants, ["y", "product"])
    _, int8, operators = by_recipe(tmp_path, model, "static", ranges=ranges(x))
    assert operators == ["QuantizeLinear", "MatMulIntegerToFloat", "Add"]
    np.testing.assert_allclose(int8({"x": x})["y"], int8({"x": x})["product"] + constants["c"], atol=1e-6)


@pytest.mark.parametrize("recipe", ["static", "by_token", "tables_8bit"])
def test_a_fused_norm_is_taken_apart_and_its_bias_goes_into_a_static_product(tmp_path, recipe):
    constants = {"w": random(K, K), "gamma": random(K, seed=1), "beta": random(K, seed=2), "bias": random(K, seed=3)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node(
            "SkipLayerNormalization",
            ["product", "x", "gamma", "beta", "bias"],
            ["y"],
            domain="com.microsoft",
            epsilon=1e-6,
        ),
    ]
    x = random(2, 3, K, seed=4)
    float32, int8, operators = by_recipe(tmp_path, graph(nodes, constants, ["y"]), recipe, ranges=ranges(x))
    assert operators[-2:] == ["Sum", "LayerNormalization"]
    assert ("Add" in operators) == (recipe != "static")
    expected = float32({"x": x})["y"]
    np.testing.assert_allclose(int8({"x": x})["y"], expected, atol=1e-5 if recipe == "tables_8bit" else 0.1)


@pytest.mark.parametrize(("recipe", "n_levels"), [("weights_8bit", 127), ("weights_4bit", 7)])
def test_weights_alone_are_rounded_in_blocks_of_32_inputs(tmp_path, recipe, n_levels):
    k = 40  # one block and a part of another
    w = random(k, N)
    nodes = [helper.make_node("Concat", ["x", "x", "x"], ["wide"], axis=-1)]
    nodes += [helper.make_node("Slice", ["wide", "from", "to", "axis"], ["rows"])]
    nodes += [helper.make_node("MatMul", ["rows", "w"], ["y"])]
    constants = {"w": w, "from": np.array([0]), "to": np.array([k]), "axis": np.array([2])}
    _, int8, operators = by_recipe(tmp_path, graph(nodes, constants, ["y"]), recipe)
    assert operators[-1] == "MatMulNBits"
    rounded = np.empty_like(w)
    for block in (np.s_[:32], np.s_[32:]):
        steps = np.abs(w[block]).max(0) / n_levels
        rounded[block] = np.round(w[block] / steps) * steps
    x = random(2, 3, K, seed=1)
    rows = np.concatenate([x] * 3, axis=-1)[..., :k]
    np.testing.assert_allclose(int8({"x": x})["y"], rows @ rounded, atol=0.2)


def test_a_table_of_4_bits_is_half_as_large_and_near(tmp_path):
    table = random(4000, 32)
    model = graph([helper.make_node("Gather", ["table", "ids"], ["y"])], {"table": table}, ["y"], inputs=["ids"])
    ids = np.array([[0, 9], [3, 3]])
    float32, int8, operators = by_recipe(tmp_path, model, "weights_4bit")
    assert operators == ["GatherBlockQuantized"]
    step = np.abs(table[ids]).max(-1, keepdims=True) / 7
    assert (np.abs(float32({"ids": ids})["y"] - int8({"ids": ids})["y"]) <= step * 0.501).all()
    assert (tmp_path / "model.int8.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size / 6


def test_spared_products_stay_in_float32_or_are_scaled_by_token(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in ("a", "b")]
    model = graph(nodes, {"a": random(K, N), "b": random(K, N, seed=1)}, ["y_a", "y_b"])
    assert products(model) == {"y_a": "x", "y_b": "x"}
    x = random(2, 3, K, seed=2)
    float32, int8, operators = by_recipe(tmp_path, model, "by_token_spared", spared=["y_a"])
    assert operators.count("MatMul") == operators.count("MatMulIntegerToFloat") == 1
    np.testing.assert_array_equal(int8({"x": x})["y_a"], float32({"x": x})["y_a"])
    _, int8, operators = by_recipe(tmp_path, model, "static_spared", spared=["y_a"], ranges=ranges(x))
    assert operators.count("MatMulIntegerToFloat") == 2
    np.testing.assert_allclose(int8({"x": x})["y_a"], by_hand(x, random(K, N)), rtol=1e-4, atol=1e-4)


def test_ranges_are_those_of_every_channel_over_all_batches(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["positive"]), helper.make_node("MatMul", ["positive", "w"], ["y"])]
    onnx.save(graph(nodes, {"w": random(K, N)}, ["y"]), tmp_path / "model.onnx")
    batches = [{"x": random(1, 3, K, seed=seed)} for seed in range(3)]
    found = measured(tmp_path / "model.onnx", ["x", "positive"], batches)
    rows = np.concatenate([batch["x"].reshape(-1, K) for batch in batches])
    np.testing.assert_array_equal(found["x"].low, rows.min(0))
    np.testing.assert_array_equal(found["positive"].low, np.maximum(rows.min(0), 0))
    np.testing.assert_array_equal(found["positive"].high, rows.max(0))

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.session import OnnxSession
from training.quantizer import quantize

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


def test_fused_attention_answers_nearly_as_in_float32_and_alone_as_in_a_batch(tmp_path):
    constants = {"w": random(K, 3 * K) / 4, "c": random(3 * K, seed=1)}
    node = helper.make_node("Attention", ["x", "w", "c", "mask"], ["y"], domain="com.microsoft", num_heads=2)
    float32, int8, operators = both(tmp_path, graph([node], constants, ["y"], inputs=["x", "mask"]))
    assert "Attention" not in operators
    inputs = {"x": random(2, 5, K, seed=2), "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], np.int32)}
    together = int8(inputs)["y"]
    np.testing.assert_allclose(together[0], float32(inputs)["y"][0], atol=0.1)
    np.testing.assert_allclose(together[1, :2], float32(inputs)["y"][1, :2], atol=0.1)
    alone = int8({"x": inputs["x"][1:, :2], "mask": inputs["mask"][1:, :2]})["y"]
    np.testing.assert_allclose(together[1, :2], alone[0], atol=1e-5)


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

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.session import OnnxSession
from training.packing import pack

H = 8


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def graph(outputs):
    """Two layers of attention, a product and a norm, then a mean over real tokens and a product of every token."""
    constants = {"all": np.array([2], np.int64), "last": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["states_0"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.INT32),
    ]
    constants["table"] = random(50, H)
    for layer in range(2):
        states, after = f"states_{layer}", f"states_{layer + 1}"
        constants |= {
            f"w{layer}": random(H, 3 * H, seed=10 + layer),
            f"c{layer}": random(3 * H, seed=20 + layer),
            f"d{layer}": random(H, H, seed=30 + layer),
            f"gamma{layer}": random(H, seed=40 + layer),
            f"beta{layer}": random(H, seed=50 + layer),
        }
        nodes += [
            helper.make_node(
                "Attention",
                [states, f"w{layer}", f"c{layer}", "mask"],
                [f"attended{layer}"],
                domain="com.microsoft",
                num_heads=2,
            ),
            helper.make_node("MatMul", [f"attended{layer}", f"d{layer}"], [f"product{layer}"]),
            helper.make_node("Add", [f"product{layer}", states], [f"sum{layer}"]),
            helper.make_node("LayerNormalization", [f"sum{layer}", f"gamma{layer}", f"beta{layer}"], [after], axis=-1),
        ]
    constants["tags"] = random(H, 3, seed=60)
    nodes += [
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "all"], ["real_BT1"]),
        helper.make_node("Mul", ["states_2", "real_BT1"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "last"], ["total"], keepdims=0),
        helper.make_node("MatMul", ["states_2", "tags"], ["tag_logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def batch(*lengths, seed=0):
    input_ids = np.random.default_rng(seed).integers(1, 50, size=(len(lengths), max(lengths)))
    attention_mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask}


def session(model, path):
    onnx.save_model(model, str(path))
    return OnnxSession(path)


@pytest.mark.parametrize("lengths", [(5,), (1,), (4, 4, 4), (1, 9, 3), (7, 2, 2, 1, 6)])
def test_a_packed_graph_answers_real_tokens_as_the_padded_one(tmp_path, lengths):
    padded = graph(["total", "tag_logits"])
    inputs = batch(*lengths)
    expected = session(padded, tmp_path / "padded.onnx").run(inputs)
    found = session(pack(padded), tmp_path / "packed.onnx").run(inputs)
    is_real = inputs["attention_mask"].astype(bool)
    assert found["tag_logits"].shape == expected["tag_logits"].shape
    np.testing.assert_allclose(found["total"], expected["total"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["tag_logits"][is_real], expected["tag_logits"][is_real], rtol=1e-5, atol=1e-6)


def test_every_product_is_of_real_tokens_alone(tmp_path):
    packed = pack(graph(["total"]))
    products = [node.output[0] for node in packed.graph.node if node.op_type in ("MatMul", "LayerNormalization")]
    packed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in products)
    found = session(packed, tmp_path / "packed.onnx").run(batch(3, 1, 12, 5))
    assert len(products) == 7  # two a layer and its norm, and the tags
    assert {found[name].shape[0] for name in products} == {3 + 1 + 12 + 5}


def test_real_tokens_may_stand_anywhere(tmp_path):
    padded = graph(["total"])
    inputs = batch(6, 4, 6)
    inputs["attention_mask"] = np.array([[0, 0, 1, 1, 0, 1], [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
    expected = session(padded, tmp_path / "padded.onnx").run(inputs)["total"]
    packed = session(pack(padded), tmp_path / "packed.onnx")
    np.testing.assert_allclose(packed.run(inputs)["total"], expected, rtol=1e-5, atol=1e-6)


def test_states_that_are_an_output_are_padded_again(tmp_path):
    padded = graph(["states_1", "total"])
    inputs = batch(2, 5)
    found = session(pack(padded), tmp_path / "packed.onnx").run(inputs)["states_1"]
    expected = session(padded, tmp_path / "padded.onnx").run(inputs)["states_1"]
    is_real = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(found[is_real], expected[is_real], rtol=1e-5, atol=1e-6)


def test_a_graph_without_fused_attention_is_left_as_it_is():
    plain = graph(["total"])
    for node in [node for node in plain.graph.node if node.op_type == "Attention"]:
        node.op_type = "Identity"
    before = plain.SerializeToString()
    assert pack(plain).SerializeToString() == before

import numpy as np
import onnx
import pytest
import torch

from models.batch import Encoded, collate, split
from models.errors import RankyardError
from models.manifest import Signature, TensorSpec
from models.networks.transformer import TransformerNetwork, load_encoder
from models.session import OnnxSession
from tests.tiny_encoder import N_TOKENS, write_encoder
from training import export
from training.export import network_to_onnx
from training.quantization.quantizer import quantize

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="input_ids", dtype="int64", shape=(-1, -1)),
        TensorSpec(name="attention_mask", dtype="int64", shape=(-1, -1)),
    ),
    outputs=(
        TensorSpec(name="intent_logits", dtype="float32", shape=(-1, 3)),
        TensorSpec(name="tag_logits", dtype="float32", shape=(-1, -1, 5)),
    ),
    layout="rows",
)


def network_of(directory, **heads):
    torch.manual_seed(1)
    return TransformerNetwork(load_encoder(directory), dropout=0.1, **heads).eval()


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    network = network_of(write_encoder(directory), n_labels=3, n_tags=5)
    network_to_onnx(network, directory / "model.onnx")
    return network, directory / "model.onnx"


def requests(*lengths):
    generator = np.random.default_rng(0)
    return [
        Encoded(
            {
                "input_ids": generator.integers(4, N_TOKENS, length),
                "attention_mask": np.ones(length, dtype=np.int64),
            }
        )
        for length in lengths
    ]


def answers(path, batch):
    return split(OnnxSession(path).run(collate(batch, SIGNATURE)), batch, SIGNATURE)


@pytest.mark.parametrize("lengths", [(1,), (5,), (17,) * 8, (3, 9, 2, 30)])
def test_any_batch_and_length_answers_as_pytorch_does(joint, lengths):
    network, path = joint
    batch = requests(*lengths)
    inputs = {name: torch.from_numpy(array) for name, array in collate(batch, SIGNATURE).items()}
    with torch.inference_mode():
        expected = network(*inputs.values())
    for row, (request, found) in enumerate(zip(batch, answers(path, batch), strict=True)):
        np.testing.assert_allclose(found["intent_logits"], expected["intent_logits"][row].numpy(), atol=1e-5)
        real = slice(request.length)
        np.testing.assert_allclose(found["tag_logits"][real], expected["tag_logits"][row, real].numpy(), atol=1e-5)


def test_a_text_in_a_batch_answers_as_it_does_alone(joint):
    _, path = joint
    batch = requests(2, 7, 12, 30)
    for request, together in zip(batch, answers(path, batch), strict=True):
        alone = answers(path, [request])[0]
        np.testing.assert_allclose(together["intent_logits"], alone["intent_logits"], atol=1e-5)
        np.testing.assert_allclose(together["tag_logits"][: request.length], alone["tag_logits"], atol=1e-5)


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_graph_names_its_sizes_and_has_bert_attention_fused(joint):
    graph = onnx.load(joint[1]).graph
    sizes = [[size.dim_param for size in tensor.type.tensor_type.shape.dim] for tensor in graph.input]
    assert sizes == [["batch", "length"], ["batch", "length"]]
    assert operators(joint[1]).count("MultiHeadAttention") == 2
    assert "Softmax" not in operators(joint[1])


def test_int8_of_the_fused_graph_stays_near(joint, tmp_path):
    _, path = joint
    quantize(path, tmp_path / "model.int8.onnx")
    batch = requests(5, 9)
    for exact, near in zip(answers(path, batch), answers(tmp_path / "model.int8.onnx", batch), strict=True):
        np.testing.assert_allclose(near["intent_logits"], exact["intent_logits"], atol=0.1)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "electra", "distilbert", "mpnet"])
def test_other_encoders_are_fused_too_and_answer_as_pytorch_does(tmp_path, kind):
    network = network_of(write_encoder(tmp_path, kind), n_labels=3, n_tags=5)
    with torch.no_grad():  # as far from nothing as trained weights are: what is left out must show
        for name, weights in network.encoder.named_parameters():
            if "attention" in name and weights.ndim == 2:
                weights.normal_()
    network_to_onnx(network, tmp_path / "model.onnx")
    assert operators(tmp_path / "model.onnx").count("MultiHeadAttention") == 2
    batch = requests(3, 9, 2, 30)
    inputs = {name: torch.from_numpy(array) for name, array in collate(batch, SIGNATURE).items()}
    with torch.inference_mode():
        expected = network(*inputs.values())
    for row, (request, found) in enumerate(zip(batch, answers(tmp_path / "model.onnx", batch), strict=True)):
        real = slice(request.length)
        np.testing.assert_allclose(found["tag_logits"][real], expected["tag_logits"][row, real].numpy(), atol=1e-5)
    quantize(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")
    for exact, near in zip(
        *(answers(tmp_path / f"model.{form}", batch) for form in ("onnx", "int8.onnx")), strict=True
    ):
        np.testing.assert_allclose(near["intent_logits"], exact["intent_logits"], atol=0.1)


@pytest.mark.parametrize("kind", ["modernbert", "deberta-v2", "albert"])
def test_an_encoder_of_unknown_attention_is_exported_as_it_is(tmp_path, kind):
    network = network_of(write_encoder(tmp_path, kind), n_labels=3, n_tags=0)
    network_to_onnx(network, tmp_path / "model.onnx")
    assert "MultiHeadAttention" not in operators(tmp_path / "model.onnx")
    onnx.shape_inference.infer_shapes_path(str(tmp_path / "model.onnx"), strict_mode=True)
    assert [tensor.name for tensor in onnx.load(tmp_path / "model.onnx").graph.output] == ["intent_logits"]


def test_a_graph_that_onnx_runtime_cannot_run_gives_way_to_the_next(joint, tmp_path, monkeypatch):
    def broken(graph, _):
        graph = onnx.ModelProto.FromString(graph.SerializeToString())
        for node in graph.graph.node:
            node.input[:] = ["seven" if name == "attention_mask" else name for name in node.input]
        graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 7]), "sevens"))
        graph.graph.node.insert(0, onnx.helper.make_node("Reshape", ["attention_mask", "sevens"], ["seven"]))
        return graph

    monkeypatch.setattr(export, "_fuse", broken)
    network_to_onnx(joint[0], tmp_path / "model.onnx")
    assert operators(tmp_path / "model.onnx").count("MultiHeadAttention") == 2


def test_an_export_that_answers_differently_is_refused(joint, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_agrees", lambda *_: False)
    monkeypatch.setattr(export, "_export", lambda *_: onnx.load(joint[1]))
    monkeypatch.setattr(export, "_fuse", lambda graph, _: graph)
    with pytest.raises(RankyardError, match="must answer as PyTorch does"):
        network_to_onnx(joint[0], tmp_path / "model.onnx")

import numpy as np
import onnx
import pytest

from models.networks.transformer import TransformerNetwork, load_encoder
from models.session import OnnxSession
from tests.tiny_encoder import N_TOKENS, write_encoder
from training.export import network_to_onnx
from training.quantization.half import to_fp16


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("half")
    network = TransformerNetwork(load_encoder(write_encoder(directory / "encoder")), n_labels=3, n_tags=5, dropout=0.0)
    network_to_onnx(network, directory / "model.onnx")
    to_fp16(directory / "model.onnx", directory / "model.fp16.onnx")
    return directory / "model.onnx", directory / "model.fp16.onnx"


def test_half_precision_answers_nearly_as_float32_with_the_same_inputs_and_outputs(files):
    sessions = [OnnxSession(path) for path in files]
    ids = np.random.default_rng(0).integers(0, N_TOKENS, size=(4, 6))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    exact, half = (session.run(batch) for session in sessions)
    for name, expected in exact.items():
        assert half[name].dtype == expected.dtype == np.float32
        np.testing.assert_allclose(half[name], expected, atol=1e-2)
        assert not np.array_equal(half[name], expected)


def test_every_weight_has_16_bits(files):
    tensors = [onnx.load(path).graph.initializer for path in files]
    sizes = [
        {tensor.name: len(tensor.raw_data) for tensor in group if tensor.data_type in {1, 10}} for group in tensors
    ]
    assert sum(sizes[1].values()) == sum(sizes[0].values()) / 2

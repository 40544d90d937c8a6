import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.tiny_encoder import write_encoder
from tests.training.test_network import ORDERS, SHOPPING, TAGS, Listener
from training.config import parse
from training.line import Order, run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Joint rows, 31 of them so that the last batch of 4 has 3: two processes share it unequally."""
    directory = tmp_path_factory.mktemp("data")
    rows = [{"tokens": tokens, "tags": TAGS, "label": "search"} for tokens in SHOPPING]
    rows += [{"tokens": tokens, "tags": ["O"] * 4, "label": "order"} for tokens in ORDERS * 4]
    for split, its in (("train", [*rows, rows[0]]), ("valid", rows[::5])):
        (directory / f"{split}.jsonl").write_text("\n".join(map(json.dumps, its)))
    return directory


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder without dropout, whose masks would differ from process to process."""
    directory = write_encoder(tmp_path_factory.mktemp("encoder"))
    file = directory / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0})
    )
    return str(directory)


def order(encoder, data, **training):
    raw = {
        "task": "tagging",
        "model": {"kind": "transformer", "encoder": encoder, "max_tokens": 16, "dropout": 0},
        "training": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "head_learning_rate": 1e-2, **training},
        "evaluate": {"n_resamples": 100},
        "quantize": {"enabled": False},
    }
    return Order(parse(raw, "tagging"), data, "shop")


def weights(bundle):
    graph = onnx.load(str(bundle.path / "model.onnx")).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_two_processes_make_the_bundle_that_one_makes(encoder, data, tmp_path):
    tracking = Tracking(Workspace(tmp_path))
    alone = run(order(encoder, data), tracking, Listener())
    shared = run(order(encoder, data, engine="torchrun", n_processes=2), tracking, Listener())
    assert weights(alone.bundle).keys() == weights(shared.bundle).keys()
    for name, weight in weights(alone.bundle).items():
        np.testing.assert_allclose(weights(shared.bundle)[name], weight, atol=1e-5, err_msg=name)
    assert shared.metrics == alone.metrics
    assert not torch.distributed.is_initialized()

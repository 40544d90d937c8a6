import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from models.errors import ConfigError, RankyardError
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.tiny_encoder import write_encoder
from tests.training.test_network import ORDERS, SHOPPING, TAGS, Listener
from training.config import parse
from training.line import Order, run
from training.processes import Peers, processes


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


def test_a_process_that_ends_early_ends_the_training_with_its_reason(tmp_path):
    told = {"config": {"task": "intent", "model": {"kind": "no"}}, "data": "", "name": "", "workspace": str(tmp_path)}
    wanted = r"all 2 processes must train.*model\.kind must be one of"
    with pytest.raises(RankyardError, match=wanted), processes(2, told):
        raise AssertionError("it must not begin")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("n_examples", [1, 2, 5])
def test_every_example_of_a_batch_is_in_one_part_and_no_process_is_idle(n_examples):
    chosen = np.arange(n_examples) + 10
    parts = [Peers(rank, 3).part(chosen).tolist() for rank in range(3)]
    assert [place for part in parts[:n_examples] for place in part] == chosen.tolist()
    assert all(part == [10] for part in parts[n_examples:])


def test_several_processes_need_their_engine():
    with pytest.raises(ConfigError, match=r"n_processes above 1 needs training\.engine torchrun"):
        order("encoder", None, n_processes=2)

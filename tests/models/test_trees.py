import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, helper

from models import protobuf
from models.trees import read_trees
from tests.bundles import tiny_bundle
from tests.tree_bundle import grow
from training.trees import export_trees


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.floats(width=32, allow_nan=False)), st.text())
def test_repeated_numbers_are_read_as_onnx_reads_them(ints, floats, name):
    message = AttributeProto(name=name, ints=ints, floats=floats, i=7, f=0.5).SerializeToString()
    assert protobuf.integers(message, 8).tolist() == ints
    assert protobuf.floats(message, 7).tolist() == floats


def test_packed_numbers_are_read_too():
    shape = helper.make_tensor("t", onnx.TensorProto.INT64, [3], [1, -1, 300])
    assert protobuf.integers(shape.SerializeToString(), 7).tolist() == [1, -1, 300]
    weights = helper.make_tensor("t", onnx.TensorProto.FLOAT, [2], [0.5, -2.0])
    assert protobuf.floats(weights.SerializeToString(), 4).tolist() == [0.5, -2.0]


@given(st.binary(max_size=40))
def test_bytes_that_are_no_message_are_refused_or_read_but_never_loop(data):
    for read in (lambda: list(protobuf.fields(data)), lambda: protobuf.integers(data, 8)):
        with contextlib.suppress(ValueError):
            read()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 99), n_trees=st.integers(1, 12), depth=st.integers(1, 6))
def test_an_export_is_read_back_node_by_node(tmp_path_factory, seed, n_trees, depth):
    model = export_trees(grow(n_trees, seed, max_depth=depth))
    file = tmp_path_factory.mktemp("trees") / "model.onnx"
    onnx.save_model(model, str(file))
    trees = read_trees(file)
    stored = {attribute.name: helper.get_attribute_value(attribute) for attribute in model.graph.node[0].attribute}
    roots = np.repeat(trees.roots[:-1], np.diff(trees.roots))
    assert trees.n_features == 5
    assert len(trees.roots) == n_trees + 2  # the base score is a tree
    assert np.array_equal(trees.features, stored["nodes_featureids"])
    assert np.array_equal(trees.thresholds, np.array(stored["nodes_values"], np.float32))
    assert np.array_equal(trees.missing_left, np.array(stored["nodes_missing_value_tracks_true"]) == 1)
    assert np.array_equal(trees.is_leaf, [mode == b"LEAF" for mode in stored["nodes_modes"]])
    assert np.array_equal((trees.left - roots)[~trees.is_leaf], np.array(stored["nodes_truenodeids"])[~trees.is_leaf])
    assert np.array_equal((trees.right - roots)[~trees.is_leaf], np.array(stored["nodes_falsenodeids"])[~trees.is_leaf])
    assert np.array_equal(trees.weights[trees.is_leaf], np.array(stored["target_weights"], np.float32))
    # A branch has the training rows of its children together.
    inner = ~trees.is_leaf
    together = trees.covers[trees.left[inner]] + trees.covers[trees.right[inner]]
    assert together == pytest.approx(trees.covers[inner], rel=1e-3)


def test_a_model_that_is_none_of_trees_has_none(tmp_path):
    assert read_trees(tiny_bundle(tmp_path, "ranking").path / "model.onnx") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("post_transform", "SOFTMAX"), ("base_values", [1.0]), ("aggregate_function", "MAX")],
)
def test_trees_that_do_more_than_add_up_are_not_taken_for_it(tmp_path, name, value):
    model = export_trees(grow(2))
    model.graph.node[0].attribute.append(helper.make_attribute(name, value))
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    assert read_trees(tmp_path / "model.onnx") is None


def test_branches_by_another_comparison_are_not_taken_for_less(tmp_path):
    model = export_trees(grow(2))
    modes = next(found for found in model.graph.node[0].attribute if found.name == "nodes_modes")
    modes.strings[1] = b"BRANCH_LEQ"
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    assert read_trees(tmp_path / "model.onnx") is None

"""What a sweep found stays with the model from deploy to deploy."""

from datetime import UTC, datetime

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from models.errors import WorkspaceError
from registry.deployment import Published, publish
from serving.triton import kept
from serving.triton.kept import Kept
from serving.triton.repository import CONFIG, deploy
from serving.triton.settings import Scheduling, TritonSettings
from tests.bundles import tiny_bundle

FOUND = Kept(
    name="shop-query",
    version="3",
    target="float32.python",
    scheduling=Scheduling(max_queue_delay_us=0, preferred_batch_sizes=(4, 8), n_instances=1, n_threads=3),
    p99_limit_ms=20,
    throughput_per_s=900,
    default_throughput_per_s=700,
    n_cores=2,
    created=datetime(2026, 1, 2, tzinfo=UTC),
    run_id="abc",
)


def scheduled(repository) -> tuple:
    config = text_format.Parse((repository / "shop-query" / CONFIG).read_text(), schema.ModelConfig())
    batching = config.dynamic_batching
    return (
        batching.max_queue_delay_microseconds,
        list(batching.preferred_batch_size),
        config.instance_group[0].count,
        config.parameters["intra_op_thread_count"].string_value,
    )


def test_later_versions_are_deployed_as_was_found_for_an_earlier_one(tmp_path):
    kept.keep(tmp_path, FOUND)
    for version in ("3", "4"):
        bundle = tiny_bundle(tmp_path / "b", name=f"version-{version}")
        publish(tmp_path, "shop-query", {"champion": Published(version, bundle)})
        (done,) = deploy(tmp_path, ["shop-query"], tmp_path / "r", TritonSettings())
        assert done.kept == FOUND
        assert scheduled(tmp_path / "r") == (0, [4, 8], 1, "3")
    assert kept.forget(tmp_path, "shop-query", "float32.python")
    assert not kept.forget(tmp_path, "shop-query", "float32.python")
    (done,) = deploy(tmp_path, ["shop-query"], tmp_path / "r", TritonSettings())
    assert done.kept is None
    assert scheduled(tmp_path / "r") == (200, [], 2, "1")


def test_what_is_asked_for_stands(tmp_path):
    kept.keep(tmp_path, FOUND)
    publish(tmp_path, "shop-query", {"champion": Published("3", tiny_bundle(tmp_path / "b"))})
    deploy(tmp_path, ["shop-query"], tmp_path / "r", TritonSettings(n_instances=2))
    assert scheduled(tmp_path / "r") == (0, [4, 8], 2, "3")


def test_what_was_found_for_another_variant_or_backend_is_not_used(tmp_path):
    bundle = tiny_bundle(tmp_path / "b", int8=True)
    assert kept.target(bundle, TritonSettings()) == "int8.python"
    assert kept.target(bundle, TritonSettings(variant="float32")) == FOUND.target
    gpu = TritonSettings(backend="onnxruntime", variant="float32", gpus=(0,))
    assert kept.target(bundle, gpu) == "float32.onnxruntime.gpu"
    assert kept.target(bundle, gpu.model_copy(update={"tensorrt": "fp16"})) == "float32.onnxruntime.tensorrt-fp16"
    kept.keep(tmp_path, FOUND)
    publish(tmp_path, "shop-query", {"champion": Published("3", bundle)})
    deploy(tmp_path, ["shop-query"], tmp_path / "r", TritonSettings())
    assert scheduled(tmp_path / "r") == (200, [], 2, "1")
    deploy(tmp_path, ["shop-query"], tmp_path / "other", TritonSettings(variant="float32"))
    assert scheduled(tmp_path / "other") == (0, [4, 8], 1, "3")


def test_a_file_of_something_else_is_refused(tmp_path):
    file = kept.keep(tmp_path, FOUND)
    assert kept.read(tmp_path, "shop-query", "float32.python") == FOUND
    file.write_text("{}")
    with pytest.raises(WorkspaceError, match="remove it"):
        kept.read(tmp_path, "shop-query", "float32.python")


def test_a_deployment_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "triton").write_text("")
    with pytest.raises(WorkspaceError, match="free some space"):
        kept.keep(tmp_path, FOUND)

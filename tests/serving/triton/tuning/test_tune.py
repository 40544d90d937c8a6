"""`rankyard tune triton` on a real server: what is measured is served, written, kept, recorded and cleaned up."""

import csv
import io
import json
from pathlib import Path

import pytest
import tritonclient.http as triton
from google.protobuf import text_format
from mlflow import MlflowClient
from tritonclient.grpc import model_config_pb2 as schema

import rankyard
from models.errors import InputError, RefusedError
from registry.deployment import Published, publish
from registry.workspace import Workspace
from serving.bench import queries
from serving.runtime.protocol import ServedModel
from serving.triton import kept, server
from serving.triton.http import TritonHttp
from serving.triton.repository import CONFIG
from serving.triton.settings import Scheduling, TritonSettings
from serving.triton.tuning import tune
from serving.triton.tuning.settings import sweep_settings
from serving.triton.tuning.traffic import Traffic
from tests.bundles import tiny_bundle
from tests.serving.gateway.bundles import cross_bundle, joint_bundle
from tests.triton_server import needs_triton

pytestmark = needs_triton

QUICK = ("--seconds", 0.5, "--warmup-seconds", 0.1, "--repeats", 1, "--concurrency", "1,2", "--seed", 3)


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command on the workspace `tmp_path`; gives its JSON."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*arguments: object) -> dict:
        capfd.readouterr()
        status = rankyard.main([*map(str, arguments), "--json", "--workspace", str(tmp_path)])
        captured = capfd.readouterr()
        assert status == 0, captured.err
        return json.loads(captured.out)

    return call


def scheduled(config: schema.ModelConfig) -> Scheduling:
    return Scheduling(
        max_queue_delay_us=config.dynamic_batching.max_queue_delay_microseconds,
        preferred_batch_sizes=tuple(config.dynamic_batching.preferred_batch_size),
        n_instances=config.instance_group[0].count,
        n_threads=int(config.parameters["intra_op_thread_count"].string_value),
    )


def test_the_best_is_served_written_and_kept_by_the_next_deploy(tmp_path, run, triton_server, monkeypatch):
    """Every loop is real; that one instance answers more is made up, so that there is a best, and all within time."""
    measure = tune._Bench.measure

    def flattered(bench, scheduling, load):
        throughput = 2_000.0 if scheduling.n_instances == 1 else 100.0
        return measure(bench, scheduling, load) | {"throughput_per_s": throughput, "within_limit": 1.0}

    monkeypatch.setattr(tune._Bench, "measure", flattered)
    deployment = Workspace(tmp_path).deployment
    publish(deployment, "t-tune", {"champion": Published("1", tiny_bundle(tmp_path / "b"))})
    repository, url = triton_server.repository, f"http://{triton_server.running.http}"
    there = ("--repository", repository, "--triton-url", url)
    answer = run("tune", "triton", "t-tune", "--p99-ms", 5_000, "--trials", 4, *QUICK, *there)
    chosen = Scheduling.model_validate(answer["scheduling"])
    assert (answer["beats_default"], answer["kept"], answer["ready"], chosen.n_instances) == (True, True, True, 1)

    def written() -> Scheduling:
        return scheduled(text_format.Parse((repository / "t-tune" / CONFIG).read_text(), schema.ModelConfig()))

    with triton.InferenceServerClient(triton_server.running.http) as client:
        served = client.get_model_config("t-tune")
        assert served["instance_group"][0]["count"] == 1
        assert served["dynamic_batching"]["max_queue_delay_microseconds"] == chosen.max_queue_delay_us
        assert not client.is_model_ready("t-tune-tuning")
    assert written() == chosen
    assert not (repository / "t-tune-tuning").exists()

    publish(deployment, "t-tune", {"champion": Published("2", tiny_bundle(tmp_path / "b", name="newer"))})
    (model,) = run("deploy", "t-tune", *there)["models"]
    assert (model["version"], model["ready"], model["tuned"]["version"]) == ("2", True, "1")
    assert written() == chosen
    assert run("tune", "triton", "t-tune", "--forget")["forgotten"]
    run("deploy", "t-tune", *there)
    assert written() == Scheduling()

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    record = client.get_run(answer["run_id"])
    assert record.data.params["model"] == "t-tune/1"
    assert record.data.metrics["best.throughput_per_s"] == pytest.approx(answer["best"]["throughput_per_s"])
    assert "chosen" in record.data.tags["mlflow.note.content"]
    paths = {file.path for file in client.list_artifacts(record.info.run_id)}
    assert paths >= {"points.csv", CONFIG, "pictures"}
    file = client.download_artifacts(record.info.run_id, "points.csv", str(tmp_path))
    assert len(list(csv.DictReader(io.StringIO(Path(file).read_text())))) == len(answer["points"])


def test_a_server_of_its_own_is_measured_and_ended(tmp_path, run):
    workspace = Workspace(tmp_path)
    bundle = tiny_bundle(tmp_path / "b", "ranking")
    publish(workspace.deployment, "shop-ltr", {"champion": Published("2", bundle)})
    answer = run("tune", "triton", "shop-ltr", "--p99-ms", 5_000, "--trials", 1, "--size", 7, *QUICK, "--seconds", 2)
    assert (answer["beats_default"], answer["kept"], answer["ready"]) == (False, False, False)
    assert answer["gain"] == 1
    assert all(point["requests"] and not point["failed"] for point in answer["points"])
    assert server.status(workspace.triton / "tuning") is None
    assert not (workspace.triton / "tuning" / "repository").exists()
    text = (workspace.triton / "repository" / "shop-ltr" / CONFIG).read_text()
    assert scheduled(text_format.Parse(text, schema.ModelConfig())) == Scheduling()


def test_where_nothing_holds_the_limit_nothing_is_written(tmp_path, triton_server):
    workspace = Workspace(tmp_path)
    bundle = tiny_bundle(tmp_path / "b")
    publish(workspace.deployment, "t-never", {"champion": Published("1", bundle)})
    sweep = sweep_settings({"p99_ms": 1e-3, "concurrency": [1], "seconds": 1, "trials": 1})
    order = tune.Order("t-never", sweep, TritonSettings(), triton_server.repository, triton_server.running.http)

    class Nowhere:
        id = "none"

        def parameters(self, values: object) -> None:
            """Nothing."""

    with pytest.raises(RefusedError, match="raise --p99-ms"):
        tune.tune(order, workspace, Nowhere(), print)
    assert not (triton_server.repository / "t-never").exists()
    assert not (triton_server.repository / "t-never-tuning").exists()
    assert kept.read(workspace.deployment, "t-never", kept.target(bundle, order.settings)) is None


@pytest.mark.parametrize(("make", "size", "n_rows"), [(tiny_bundle, 3, 3), (joint_bundle, 1, 1), (cross_bundle, 5, 5)])
def test_what_is_sent_is_what_the_model_reads(tmp_path, triton_server, make, size, n_rows):
    bundle = make(tmp_path)
    name = f"t-traffic-{bundle.manifest.name}"
    traffic = Traffic(bundle, lambda number: ("red shoes", "blue jacket")[number % 2], size, TritonSettings(), 0)
    assert traffic.n_rows == n_rows
    triton_server.serve([ServedModel(name, "1", bundle)])
    first = next(traffic.requests(f"http://{triton_server.running.http}", name, "1"))
    head, _, body = first.partition(b"\r\n\r\n")
    lengths = {key.lower(): value for key, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))}
    answer, _ = TritonHttp(triton_server.running.http)._send(
        f"/v2/models/{name}/versions/1/infer", body, int(lengths["inference-header-content-length"])
    )
    assert b'"model_version":"1"' in answer


def test_a_request_larger_than_a_batch_is_refused(tmp_path):
    with pytest.raises(InputError, match="at most 64 rows, got 65; lower --size"):
        Traffic(tiny_bundle(tmp_path), queries.generated(0), 65, TritonSettings(), 0)

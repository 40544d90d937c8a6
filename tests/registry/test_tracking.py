import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import mlflow
import pytest
import sqlalchemy
from matplotlib.figure import Figure
from mlflow import MlflowClient

from models.errors import BundleError, InputError, NotFoundError, UnavailableError, WorkspaceError
from models.manifest import SplitDigest
from registry import run as runs
from registry.bundle import MODEL
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.registry.conftest import FirstUse, register


@pytest.fixture(scope="module")
def client(tracking: Tracking) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


def test_a_run_keeps_what_a_person_looks_for(tracking: Tracking, client: MlflowClient) -> None:
    mpl.use("agg")
    with tracking.training("intent", "kept") as run:
        run.parameters({"training": {"epochs": 3, "seed": 13}, "model": {"kind": "linear"}})
        run.datasets("kept", {"train": SplitDigest(file="/data/train.jsonl", rows=120, sha256="ab" * 32)})
        for step in (1, 2, 3):
            run.metrics({"valid.ndcg@10": step / 10}, step)
        run.progress("training", 1, 3)
        run.say("held out 10 rows of train as valid")
        run.figure(Figure(), "confusion")
        run.describe("a **linear** model")
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "intent"
    assert found.data.params == {"training.epochs": "3", "training.seed": "13", "model.kind": "linear"}
    history = client.get_metric_history(run.id, "valid.ndcg_at_10")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert found.data.tags["mlflow.note.content"] == "a **linear** model"
    assert int(found.data.tags["system.cores"]) >= 1
    assert found.data.tags["package.mlflow"] == mlflow.__version__
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("kept/train", "ab" * 16)
    assert json.loads(dataset.dataset.profile) == {"num_rows": 120}
    assert [tag.value for tag in dataset.tags] == ["training"]
    assert {file.path for file in client.list_artifacts(run.id)} == {"log.txt", "pictures"}
    assert Path(client.download_artifacts(run.id, "log.txt")).read_text() == "held out 10 rows of train as valid\n"


def test_metrics_are_cheap_and_appear_while_a_training_runs(
    tracking: Tracking, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, sizes, log_batch = 0.0, [], MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, **given: Any) -> None:
        sizes.append(len(given.get("metrics", ())))
        log_batch(self, run_id, **given)

    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now_s, time=time.time))
    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    with tracking.training("ranking", "cheap") as run:
        sizes.clear()
        for tree in range(3000):
            run.metrics({"train": 0.5, "valid": 0.4}, tree)
        assert sizes == []  # a write of its own for each takes 15 to 30 s
        now_s = 1.0
        run.metrics({"train": 0.5, "valid": 0.4}, 3000)
        assert sizes == [1000] * 6 + [2]
        assert client.get_run(run.id).data.metrics["valid"] == 0.4
    assert len(client.get_metric_history(run.id, "train")) == 3001


def test_a_run_says_how_it_ended(tracking: Tracking, client: MlflowClient) -> None:
    ended = {}
    for error in (InputError("a wrong call"), KeyboardInterrupt()):
        run = tracking.start("intent", "ends")
        with pytest.raises(type(error)), run:
            raise error
        ended[type(error)] = client.get_run(run.id)
    assert ended[InputError].info.status == "FAILED"
    assert ended[InputError].data.tags["error"] == "InputError: a wrong call"
    assert ended[KeyboardInterrupt].info.status == "KILLED"


def test_a_resumed_training_goes_on_in_its_own_run(tracking: Tracking, client: MlflowClient) -> None:
    def train(fingerprint: str, *, resume: bool, fails: bool) -> str:
        with tracking.training("tagging", "resumed", resume=fingerprint if resume else None) as run:
            run.tags({"rankyard.fingerprint": fingerprint})
            run.parameters({"training": {"epochs": 3}})
            run.datasets("resumed", {"train": SplitDigest(file="train.jsonl", rows=6, sha256="1" * 64)})
            if fails:
                raise KeyboardInterrupt
        return run.id

    with pytest.raises(KeyboardInterrupt):
        train("one", resume=False, fails=True)
    (stopped,) = client.search_runs([client.get_experiment_by_name("tagging").experiment_id])
    assert train("other", resume=True, fails=False) != stopped.info.run_id
    assert train("one", resume=True, fails=False) == stopped.info.run_id
    assert client.get_run(stopped.info.run_id).info.status == "FINISHED"
    assert train("one", resume=True, fails=False) != stopped.info.run_id


def test_a_registered_version_carries_its_digest_metrics_and_model(tracking: Tracking, client: MlflowClient) -> None:
    bundle, version = register(tracking, "carried", int8=True)
    assert version == "1"
    found = client.get_model_version("carried", version)
    assert found.tags["rankyard.digest"] == bundle.digest
    assert found.tags["test.accuracy"] == "0.9000"
    assert "train.jsonl, 6 rows" in found.description
    run = client.get_run(found.run_id)
    assert run.data.metrics["test.accuracy"] == pytest.approx(0.9)
    assert {file.path for file in client.list_artifacts(found.run_id)} == {"evaluation.json"}
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.status == "READY"
    assert {metric.key for metric in model.metrics} >= {"test.accuracy", "size_bytes", "latency.batch_1.p50_ms"}
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "carried", "version": 1}]
    stored = Path(model.artifact_location.removeprefix("file://"))
    assert stored.is_relative_to(tracking.workspace.artifacts)
    assert not [path for path in stored.rglob("*") if path.suffix in {".py", ".pkl", ".pickle"}]


def test_models_lists_aliases_and_versions_with_metrics(tracking: Tracking) -> None:
    register(tracking, "listed")
    register(tracking, "listed", quality={"share_right": 0.5})
    (listed,) = tracking.models("listed")
    assert (listed["name"], listed["aliases"]) == ("listed", {"candidate": "2"})
    assert [(one["version"], one["metrics"]) for one in listed["versions"]] == [
        ("1", {"accuracy": pytest.approx(0.9)}),
        ("2", {"accuracy": 0.5}),
    ]
    assert all(one["created"].endswith("+00:00") for one in listed["versions"])
    assert listed in tracking.models()


def test_a_model_that_others_registered_is_left_alone(tracking: Tracking, client: MlflowClient) -> None:
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "file:///nowhere")
    assert "foreign" not in [model["name"] for model in tracking.models()]
    with pytest.raises(NotFoundError, match="has the versions none"):
        tracking.resolve("foreign/1")


def test_a_reference_resolves_by_alias_by_version_and_by_directory(tracking: Tracking) -> None:
    first, _ = register(tracking, "resolved")
    second, _ = register(tracking, "resolved", int8=True)
    assert tracking.resolve("resolved@candidate").digest == second.digest
    assert tracking.resolve("resolved/1").digest == first.digest
    assert tracking.resolve(str(first.path)) == first
    assert tracking.locate("resolved@candidate").ref == "resolved/2"


def test_what_does_not_exist_is_named_with_what_does(tracking: Tracking, new_tracking: Callable[[], Tracking]) -> None:
    register(tracking, "named")
    with pytest.raises(NotFoundError, match=r"candidate \(version 1\); got named@champion"):
        tracking.resolve("named@champion")
    with pytest.raises(NotFoundError, match="has the versions 1; got named/2"):
        tracking.resolve("named/2")
    with pytest.raises(NotFoundError, match=r"is one of .*named.*; got 'absent'"):
        tracking.resolve("absent@champion")
    with pytest.raises(NotFoundError, match="rankyard train"):
        new_tracking().models("absent")
    with pytest.raises(InputError):
        tracking.resolve("not a reference")


def test_a_bundle_that_is_gone_here_is_fetched_again_and_verified(tracking: Tracking) -> None:
    bundle, _ = register(tracking, "fetched")
    shutil.rmtree(bundle.path)
    assert tracking.resolve("fetched/1") == bundle
    assert not [path for path in tracking.workspace.root.iterdir() if path.name.startswith(".")]


def test_a_flipped_byte_is_found_here_and_in_the_store(tracking: Tracking, client: MlflowClient) -> None:
    bundle, _ = register(tracking, "flipped")
    (bundle.path / MODEL).write_bytes(b"flipped")
    with pytest.raises(BundleError, match="sha256"):
        tracking.resolve("flipped/1")
    shutil.rmtree(bundle.path)
    store = Path(client.get_model_version_download_uri("flipped", "1").removeprefix("file://"))
    (store / "bundle" / MODEL).write_bytes(b"flipped")
    with pytest.raises(BundleError, match="sha256"):
        tracking.resolve("flipped/1")
    assert not bundle.path.exists()


def test_another_bundle_in_the_place_of_a_version_is_refused(tracking: Tracking) -> None:
    first, _ = register(tracking, "swapped")
    second, _ = register(tracking, "swapped", int8=True)
    shutil.rmtree(first.path)
    shutil.copytree(second.path, first.path)
    with pytest.raises(BundleError, match=second.digest):
        tracking.resolve("swapped/1")


def test_alias_moves_are_kept_as_tags(tracking: Tracking, client: MlflowClient) -> None:
    register(tracking, "moved")
    register(tracking, "moved", int8=True)
    for version in ("1", "2", "2", None):
        tracking.move_alias("moved", "champion", version)
    assert tracking.aliases("moved") == {"candidate": "2"}
    tags = client.get_registered_model("moved").tags
    history = [value for tag, value in sorted(tags.items()) if tag.startswith("alias.champion.")]
    assert history == ["1", "2", "removed"]
    first = client.get_model_version("moved", "1").tags
    assert [value for tag, value in sorted(first.items()) if tag.startswith("alias.champion.")] == ["set", "removed"]


def test_importing_and_resolving_a_directory_does_not_wait_for_mlflow(tracking: Tracking) -> None:
    bundle, _ = register(tracking, "light")
    code = (
        "import sys; from pathlib import Path\n"
        "from registry.tracking import Tracking; from registry.workspace import Workspace\n"
        f"Tracking(Workspace(Path('/nowhere'))).resolve({str(bundle.path)!r})\n"
        "assert 'mlflow' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_mlflow_says_nothing_and_leaves_nothing_in_the_current_directory(first_use: FirstUse) -> None:
    assert first_use.printed == ""
    assert first_use.left == ["workspace"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow waits 20 s for a locked database, which it says in SQL."""
    real = sqlalchemy.sql.text
    monkeypatch.setattr(sqlalchemy.sql, "text", lambda text: real(text.replace("timeout = 20000", "timeout = 200")))


@pytest.mark.usefixtures("impatient")
def test_a_locked_database_is_one_sentence(new_tracking: Callable[[], Tracking]) -> None:
    tracking = new_tracking()
    tracking.models()
    with sqlite3.connect(tracking.workspace.database) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(WorkspaceError, match="another one holds it"):
            tracking.start("intent", "locked")
        holder.rollback()
    tracking.start("intent", "free").finish()


def test_a_database_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.database.write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(WorkspaceError, match="must be a database"):
        Tracking(workspace).models()


def test_a_workspace_that_cannot_be_used_is_refused_before_mlflow_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="--workspace"):
        Tracking(Workspace(tmp_path / "file")).models()


def test_a_server_that_does_not_answer_is_one_sentence_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9 must answer"):
        Tracking(Workspace(tmp_path), "http://127.0.0.1:9").models()
    assert time.monotonic() - started < 30  # MLflow alone would try for minutes


@pytest.mark.usefixtures("impatient")
def test_a_run_outlives_a_database_that_is_locked_for_a_while(new_tracking: Callable[[], Tracking]) -> None:
    tracking = new_tracking()
    with tracking.training("intent", "patient") as run:
        with sqlite3.connect(tracking.workspace.database) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            time.sleep(1.1)
            run.metrics({"loss": 1.0}, 1)
            holder.rollback()
        run.metrics({"loss": 0.5}, 2)
    found = MlflowClient(tracking_uri=tracking.uri).get_metric_history(run.id, "loss")
    assert [metric.value for metric in found] == [1.0, 0.5]


def test_the_ui_is_started_on_the_workspace_and_refused_for_a_server(tracking: Tracking) -> None:
    command = tracking.ui_command("127.0.0.1", 5001)
    assert command[:2] == ["mlflow", "server"]
    assert command[command.index("--backend-store-uri") + 1] == tracking.uri
    assert command[command.index("--port") + 1] == "5001"
    with pytest.raises(InputError, match="open that address"):
        Tracking(tracking.workspace, "http://127.0.0.1:9").ui_command("127.0.0.1", 5001)

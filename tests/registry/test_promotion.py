import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from models.errors import BundleError, InputError, NotFoundError, RefusedError, WorkspaceError
from registry import deployment
from registry.bundle import MODEL
from registry.gates import GatesConfig
from registry.promotion import promote, rollback
from registry.tracking import Tracking
from tests.registry.conftest import register

GOOD, BETTER, SPOILT = {"share_right": 0.9}, {"share_right": 0.95}, {"share_right": 0.5}


@pytest.fixture(scope="module")
def tracking(new_tracking: Callable[[], Tracking]) -> Tracking:
    return new_tracking()


@pytest.fixture(scope="module")
def client(tracking: Tracking) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


def published(tracking: Tracking, name: str) -> dict[str, str]:
    pointer = deployment.pointer(tracking.workspace.deployment, name)
    return {alias: release.version for alias, release in pointer.aliases.items()}


def n_decisions(client: MlflowClient) -> int:
    experiment = client.get_experiment_by_name("promotions")
    return len(client.search_runs([experiment.experiment_id])) if experiment else 0


def test_the_first_version_becomes_champion_and_is_published(tracking: Tracking) -> None:
    bundle, _ = register(tracking, "first", quality=GOOD)
    decision = promote(tracking, "first")
    assert (decision.name, decision.version, decision.decision) == ("first", "1", "promoted")
    assert tracking.aliases("first") == {"candidate": "1", "champion": "1"}
    assert published(tracking, "first") == {"champion": "1"}
    assert deployment.resolve(tracking.workspace.deployment, "first@champion").bundle.digest == bundle.digest


def test_a_better_version_takes_over_a_spoilt_one_is_refused_and_one_command_goes_back(
    tracking: Tracking, client: MlflowClient
) -> None:
    for quality, expected in ((GOOD, "promoted"), (BETTER, "promoted"), (SPOILT, "refused")):
        register(tracking, "line", quality=quality)
        decision = promote(tracking, "line")
        assert decision.decision == expected
    assert [gate.name for gate in decision.gates if not gate.passed] == ["quality", "slices"]
    assert tracking.aliases("line") == {"candidate": "3", "champion": "2", "previous": "1"}
    assert published(tracking, "line") == {"champion": "2", "previous": "1"}
    back = rollback(tracking, "line")
    assert (back.version, back.decision, back.gates) == ("1", "promoted", ())
    assert tracking.aliases("line") == {"candidate": "3", "champion": "1", "previous": "2"}
    assert published(tracking, "line") == {"champion": "1", "previous": "2"}
    assert client.get_run(back.run_id).data.tags["rankyard.action"] == "rollback"
    assert rollback(tracking, "line").version == "2"


def test_every_decision_is_a_run_that_a_person_can_read(tracking: Tracking, client: MlflowClient) -> None:
    register(tracking, "record", quality=GOOD)
    promote(tracking, "record")
    register(tracking, "record", quality=SPOILT)
    refused = promote(tracking, "record")
    run = client.get_run(refused.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "promotions"
    assert run.info.status == "FINISHED"
    assert run.data.tags["rankyard.decision"] == "refused"
    assert json.loads(run.data.tags["rankyard.aliases_after"]) == {"candidate": "2", "champion": "1"}
    assert run.data.params["gates.quality.margin"] == "0.01"
    for gate in refused.gates:
        assert run.data.tags[f"gate.{gate.name}"] == ("passed" if gate.passed else "failed")
        assert run.data.metrics[f"{gate.name}.passed"] == gate.passed
        assert run.data.metrics.get(f"{gate.name}.value") == gate.value
        assert run.data.metrics.get(f"{gate.name}.bound") == gate.bound
    text = Path(client.download_artifacts(refused.run_id, "report.md")).read_text()
    assert text.startswith("# promote record/2 to champion: refused")
    assert "- **quality**: accuracy 0.5000, champion 0.9000" in text
    assert text.splitlines()[-1] == "Aliases after: candidate = 2, champion = 1"
    assert run.data.tags["mlflow.note.content"] == text


def test_a_dry_run_judges_and_leaves_no_trace(tracking: Tracking, client: MlflowClient) -> None:
    register(tracking, "dry", quality=GOOD)
    before = n_decisions(client)
    decision = promote(tracking, "dry", dry_run=True)
    assert (decision.decision, decision.run_id) == ("promoted", "")
    assert decision.gates
    assert tracking.aliases("dry") == {"candidate": "1"}
    assert n_decisions(client) == before
    with pytest.raises(NotFoundError):
        deployment.pointer(tracking.workspace.deployment, "dry")


def test_bounds_come_from_the_configuration(tracking: Tracking) -> None:
    register(tracking, "bounds", quality=GOOD)
    strict = GatesConfig.model_validate({"minimum": {"accuracy": 0.99}})
    refused = promote(tracking, "bounds", gates=strict)
    assert [gate.name for gate in refused.gates if not gate.passed] == ["minimum_accuracy"]
    assert tracking.aliases("bounds") == {"candidate": "1"}


def test_another_alias_is_judged_against_the_champion_and_moves_alone(tracking: Tracking) -> None:
    for quality in (GOOD, BETTER):
        register(tracking, "other", quality=quality)
    promote(tracking, "other", "1")
    assert promote(tracking, "other", "2", to="challenger").decision == "promoted"
    assert tracking.aliases("other") == {"candidate": "2", "challenger": "2", "champion": "1"}
    assert published(tracking, "other") == {"challenger": "2", "champion": "1"}


def test_what_cannot_be_promoted_is_one_sentence(tracking: Tracking) -> None:
    register(tracking, "wrong", quality=GOOD)
    promote(tracking, "wrong")
    with pytest.raises(InputError, match="wrong/1 is champion already"):
        promote(tracking, "wrong", "1")
    with pytest.raises(NotFoundError, match="got wrong/7"):
        promote(tracking, "wrong", "7")
    with pytest.raises(NotFoundError, match="got 'nobody'"):
        promote(tracking, "nobody")
    with pytest.raises(InputError, match="a model's name"):
        promote(tracking, "../wrong")
    for alias in ("candidate", "previous"):
        with pytest.raises(InputError, match=alias):
            promote(tracking, "wrong", to=alias)
    with pytest.raises(RefusedError, match="previous champion"):
        rollback(tracking, "wrong")


def test_of_two_promotions_at_once_one_is_told_so(tracking: Tracking) -> None:
    register(tracking, "twice", quality=GOOD)
    with tracking.workspace.lock("promote-twice"), pytest.raises(WorkspaceError, match="only one process"):
        promote(tracking, "twice")
    assert promote(tracking, "twice").decision == "promoted"


def test_a_damaged_bundle_stops_a_promotion_and_a_rollback_before_anything_moves(tracking: Tracking) -> None:
    old, _ = register(tracking, "damaged", quality=GOOD)
    promote(tracking, "damaged")
    new, _ = register(tracking, "damaged", quality=BETTER)
    original = (new.path / MODEL).read_bytes()
    (new.path / MODEL).write_bytes(b"damaged")
    with pytest.raises(BundleError, match="sha256"):
        promote(tracking, "damaged")
    assert tracking.aliases("damaged") == {"candidate": "2", "champion": "1"}
    (new.path / MODEL).write_bytes(original)
    promote(tracking, "damaged")
    (old.path / MODEL).write_bytes(b"damaged")
    with pytest.raises(BundleError, match="sha256"):
        rollback(tracking, "damaged")
    assert tracking.aliases("damaged")["champion"] == published(tracking, "damaged")["champion"] == "2"


def test_a_full_disk_stops_a_promotion_before_any_alias_moves(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tracking, "full", quality=GOOD)

    def full(*_: object) -> None:
        raise WorkspaceError("a bundle must fit on the disk")

    with monkeypatch.context() as patched:
        patched.setattr(deployment, "copy_bundle", full)
        with pytest.raises(WorkspaceError, match="must fit"):
            promote(tracking, "full")
    assert tracking.aliases("full") == {"candidate": "1"}


def test_what_a_crash_left_unpublished_is_published_by_the_next_command(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    for quality in (GOOD, BETTER):
        register(tracking, "crash", quality=quality)
    promote(tracking, "crash", "1")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(deployment, "publish", crash)
        with pytest.raises(KeyboardInterrupt):
            promote(tracking, "crash")
    assert tracking.aliases("crash") == {"candidate": "2", "champion": "2", "previous": "1"}
    assert published(tracking, "crash") == {"champion": "1"}
    assert deployment.resolve(tracking.workspace.deployment, "crash@champion").version == "1"
    with pytest.raises(InputError, match="champion already"):
        promote(tracking, "crash")
    assert published(tracking, "crash") == {"champion": "2", "previous": "1"}


def test_bundles_that_are_gone_here_are_fetched_for_the_comparison(tracking: Tracking) -> None:
    for quality in (GOOD, BETTER):
        bundle, _ = register(tracking, "gone", quality=quality)
        promote(tracking, "gone")
        shutil.rmtree(bundle.path)
    register(tracking, "gone", quality=SPOILT)
    assert promote(tracking, "gone").decision == "refused"
    assert rollback(tracking, "gone").version == "1"

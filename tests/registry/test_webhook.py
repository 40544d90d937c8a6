"""A real MLflow server tells a real gateway that an alias has moved; the gateway looks for nothing of itself."""

import threading
import time
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient

from registry.promotion import promote, rollback
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.registry.conftest import register
from tests.serving.gateway.conftest import gateway

SECRET = "between MLflow and the gateway"
QUERIES = {"queries": ["where is my order", "tell me a joke"]}


@pytest.fixture
def tracking(server: str, tmp_path: Path) -> Tracking:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    return Tracking(Workspace(tmp_path / "workspace"), server)


def listening(tmp_path: Path, **webhook: object) -> dict[str, object]:
    return {"deadline_ms": 30_000, "follow_s": None, "webhook": {"secret_file": str(tmp_path / "secret"), **webhook}}


def tell(server: str, gateway: httpx.Client) -> str:
    """Register the webhook, as README.md says; gives its id."""
    return (
        MlflowClient(server)
        .create_webhook(
            name="rankyard-gateway",
            url=str(gateway.base_url.join("/v1/webhooks/mlflow")),
            events=["model_version_alias.created"],
            secret=SECRET,
        )
        .webhook_id
    )


def wait_for(client: httpx.Client, ref: str) -> None:
    until = time.monotonic() + 60
    while (found := [model["ref"] for model in client.get("/v1/models").json()["models"]]) != [ref]:
        assert time.monotonic() < until, found
        time.sleep(0.01)


def test_rollbacks_told_by_mlflow_under_load_fail_no_request_and_mix_no_versions(tracking, server, tmp_path):
    name = "told"
    for quality in (0.9, 0.95):
        register(tracking, name, quality={"share_right": quality})
        assert promote(tracking, name).decision == "promoted"
    stopping, answers, faults = threading.Event(), [], []

    def load(url):
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stopping.is_set():
                response = client.post("/v1/understand", json=QUERIES)
                faults.extend([] if response.status_code == 200 else [response.text])
                answers.append([one["models"]["intent"] for one in response.json()["results"]])

    says = f"serving {name}/2, after {name}/1"
    with gateway(tracking.workspace.deployment, listening(tmp_path), says=says) as client:
        webhook = tell(server, client)
        caller = threading.Thread(target=load, args=(client.base_url,))
        caller.start()
        try:
            for swap in range(4):
                version = rollback(tracking, name).version
                assert version == ("1" if swap % 2 == 0 else "2")
                wait_for(client, f"{name}/{version}")
        finally:
            stopping.set()
            caller.join()
            MlflowClient(server).delete_webhook(webhook)
    assert faults == []
    assert all(len(set(versions)) == 1 for versions in answers)
    assert {versions[0] for versions in answers} == {f"{name}/1", f"{name}/2"}


def test_an_alias_that_was_moved_without_a_promotion_is_said_and_the_champion_stays(tracking, server, tmp_path):
    name = "by-hand"
    for quality in (0.9, 0.95):
        register(tracking, name, quality={"share_right": quality})
    promote(tracking, name, "1")
    says = f"MLflow says that {name}@champion is version 2, which nobody has published"
    with gateway(tracking.workspace.deployment, listening(tmp_path, settle_s=0.2), says=says) as client:
        webhook = tell(server, client)
        tracking.move_alias(name, "champion", "2")
        client.log.wait_for(says)
        wait_for(client, f"{name}/1")
        MlflowClient(server).delete_webhook(webhook)


def test_mlflow_s_own_trial_of_a_webhook_succeeds(tracking, server, tmp_path):
    register(tracking, "tried")
    promote(tracking, "tried")
    with gateway(tracking.workspace.deployment, listening(tmp_path)) as client:
        webhook = tell(server, client)
        found = MlflowClient(server).test_webhook(webhook)
        assert (found.success, found.response_status) == (True, 200)
        assert found.response_body == '{"status":"ignored"}'
        MlflowClient(server).update_webhook(webhook, secret="another one")
        found = MlflowClient(server).test_webhook(webhook)
        assert (found.success, found.response_status) == (False, 401)
        MlflowClient(server).delete_webhook(webhook)

"""Deliveries as MLflow signs them, and forged ones, at a real gateway that looks for nothing of itself."""

import json
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from registry.deployment import Published, publish
from tests.bundles import tiny_bundle
from tests.serving.gateway.conftest import gateway, start, until

SECRET = "a secret"
ROUTE = "/v1/webhooks/mlflow"
CHAMPION = {"name": "shop-query", "alias": "champion", "version": "2"}


def payload(data, entity="model_version_alias", action="created", at=None):
    at = at or datetime.now(UTC)
    return json.dumps({"entity": entity, "action": action, "timestamp": at.isoformat(), "data": data})


def signed(body, secret=SECRET, age_s=0, delivery_id=None):
    """Headers as MLflow makes them, by MLflow's own signature."""
    delivery_id, timestamp = delivery_id or str(uuid.uuid4()), str(int(time.time() - age_s))
    return {
        "X-MLflow-Delivery-Id": delivery_id,
        "X-MLflow-Timestamp": timestamp,
        "X-MLflow-Signature": _generate_hmac_signature(secret, delivery_id, timestamp, body),
    }


def send(client, body, headers):
    answer = client.post(ROUTE, content=body, headers=headers)
    found = answer.json()
    return answer.status_code, found.get("status") or found["error"]["code"]


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("secret") / "secret"
    file.write_text(f"{SECRET}\n")
    return file


@pytest.fixture(scope="module")
def listening(deployment, secret_file):
    with gateway(deployment, {"follow_s": None, "webhook": {"secret_file": str(secret_file)}}) as opened:
        yield opened


def without(headers, name):
    return {key: value for key, value in headers.items() if key != name}


BODY = payload({"name": "example_model", "alias": "example_alias", "version": "1"})
FORGED = {
    "another secret": lambda: signed(BODY, secret="guessed"),
    "another body": lambda: signed(BODY.replace("example_alias", "champion")),
    "another time": lambda: signed(BODY) | {"X-MLflow-Timestamp": str(int(time.time()) + 7)},
    "another delivery": lambda: signed(BODY) | {"X-MLflow-Delivery-Id": str(uuid.uuid4())},
    "another scheme": lambda: {key: value.replace("v1,", "v2,") for key, value in signed(BODY).items()},
    "no scheme": lambda: {key: value.removeprefix("v1,") for key, value in signed(BODY).items()},
    "cut short": lambda: signed(BODY) | {"X-MLflow-Signature": signed(BODY)["X-MLflow-Signature"][:-4]},
    "no signature": lambda: without(signed(BODY), "X-MLflow-Signature"),
    "no time": lambda: without(signed(BODY), "X-MLflow-Timestamp"),
    "no delivery": lambda: without(signed(BODY), "X-MLflow-Delivery-Id"),
    "nothing": dict,
    "too old": lambda: signed(BODY, age_s=301),
    "of the future": lambda: signed(BODY, age_s=-310),
}


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED)
def test_a_delivery_that_is_forged_or_old_is_refused(listening, headers):
    assert send(listening, BODY, headers()) == (401, "unauthenticated")


def test_a_delivery_counts_once_even_if_it_is_refused_at_first(listening):
    headers = signed(BODY)
    assert send(listening, BODY, headers | {"X-MLflow-Signature": "v1,"}) == (401, "unauthenticated")
    assert send(listening, BODY, headers) == (200, "ignored")
    assert send(listening, BODY, headers) == (409, "replayed")
    assert send(listening, BODY, signed(BODY)) == (200, "ignored")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{", (400, "malformed_json")),
        ('{"entity": "prompt"}', (422, "invalid_input")),
        (payload({"name": "shop-query"}), (422, "invalid_input")),
        (payload({"name": "shop-query"}, action="deleted"), (200, "ignored")),
        (payload({"prompt": 3}, entity="prompt_alias"), (200, "ignored")),
        (payload(CHAMPION | {"alias": "candidate"}), (200, "ignored")),
    ],
)
def test_what_is_signed_and_of_no_use_is_told_so(listening, body, expected):
    assert send(listening, body, signed(body)) == expected


def test_the_documentation_s_example_is_understood(listening):
    content = listening.get("/openapi.json").json()["paths"][ROUTE]["post"]["requestBody"]["content"]
    body = json.dumps(content["application/json"]["examples"]["an alias was set"]["value"])
    assert send(listening, body, signed(body)) == (200, "accepted")


def test_a_gateway_without_a_webhook_hears_nothing(client):
    assert send(client, BODY, signed(BODY)) == (404, "not_found")


@pytest.mark.parametrize("content", [None, b" \n"])
def test_a_secret_that_is_none_is_refused_at_the_start(deployment, tmp_path, content):
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    process = start(deployment, {"webhook": {"secret_file": str(tmp_path / "secret")}})
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert said.startswith("webhook.secret_file must hold the webhook's secret, ")
    assert len(said.splitlines()) == 1


@pytest.fixture
def served(tmp_path, secret_file):
    """A gateway of version 1, `promote(version)` that publishes, and `wait_for(version)`."""
    directory = tmp_path / "deployment"

    def promote(version):
        sealed = tiny_bundle(tmp_path / "bundles", "intent", name=f"n{version}")
        publish(directory, "shop-query", {"champion": Published(version, sealed)})

    promote("1")
    with gateway(
        directory,
        {"follow_s": None, "webhook": {"secret_file": str(secret_file), "settle_s": 600}},
        says="serving shop-query/2, after shop-query/1",
    ) as client:

        def wait_for(version):
            until(lambda: client.get("/v1/models").json()["models"][0]["ref"] == f"shop-query/{version}")

        yield client, promote, wait_for


def test_mlflow_s_word_may_come_before_the_promotion_has_published(served):
    client, promote, wait_for = served
    body = payload(CHAMPION)
    assert send(client, body, signed(body)) == (200, "accepted")
    time.sleep(0.3)
    wait_for("1")
    promote("2")
    wait_for("2")


def test_an_older_word_that_comes_later_is_ignored(served):
    client, promote, wait_for = served
    promote("2")
    body = payload(CHAMPION)
    assert send(client, body, signed(body)) == (200, "accepted")
    wait_for("2")
    older = payload(CHAMPION | {"version": "1"}, at=datetime.now(UTC) - timedelta(minutes=1))
    assert send(client, older, signed(older)) == (200, "ignored")


def test_a_secret_can_be_changed_without_a_restart(served, secret_file):
    client, promote, wait_for = served
    promote("2")
    body = payload(CHAMPION)
    secret_file.write_text("the next secret")
    try:
        assert send(client, body, signed(body)) == (401, "unauthenticated")
        assert send(client, body, signed(body, secret="the next secret")) == (200, "accepted")
    finally:
        secret_file.write_text(SECRET)
    wait_for("2")

"""What a gateway measures of itself, by model and version."""

import socket
import threading

import httpx
import pytest

from registry.deployment import Published, publish
from serving.gateway.telemetry import Telemetry
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle
from tests.serving.gateway.conftest import gateway, until
from tests.serving.gateway.metrics import samples, value

INTENT = {"model": "shop-query", "version": "3"}
RANKING = {"model": "shop-ltr", "version": "2"}
CANDIDATES = [{"id": "a", "features": {"price": 1.0}}, {"id": "b", "features": {"price": 2.0}}]


@pytest.fixture(scope="module")
def observed(deployment):
    with gateway(deployment, {"cache": {"max_bytes": 5_000}}) as opened:
        yield opened


@pytest.mark.parametrize(
    ("body", "labels", "path"),
    [
        ({"query": "red shoes"}, INTENT, "/v1/understand"),
        ({"query": {"text": "shoes"}, "candidates": CANDIDATES}, RANKING, "/v1/rank"),
    ],
)
def test_a_request_is_measured_at_every_station_of_its_model(observed, body, labels, path):
    stations = ["queue_seconds", "encode_seconds", "model_seconds", "decode_seconds", "batch_size"]
    if path == "/v1/rank":
        stations.append("phase_seconds")
    before = {name: value(observed, f"rankyard_{name}_count", **labels) for name in stations}
    assert observed.post(path, json=body).status_code == 200
    after = {name: value(observed, f"rankyard_{name}_count", **labels) for name in stations}
    assert after == {name: count + 1 for name, count in before.items()}
    whole = value(observed, "rankyard_request_seconds_sum", route=path)
    assert sum(value(observed, f"rankyard_{name}_sum", **labels) for name in stations[:4]) < whole


def test_what_is_served_is_said_with_its_digest(observed):
    served = {
        (found.labels["model"], found.labels["version"], found.labels["family"], len(found.labels["digest"]))
        for found in samples(observed)
        if found.name == "rankyard_bundle_info"
    }
    assert served == {("shop-query", "3", "intent", 12), ("shop-ltr", "2", "ranking", 12)}
    assert value(observed, "rankyard_following_refused") == 0
    assert value(observed, "rankyard_swaps_total") == 0


def test_the_cache_says_what_it_holds_and_may(observed):
    for number in range(30):
        observed.post("/v1/understand", json={"query": f"shoes number {number}"})
    assert value(observed, "rankyard_cache_max_bytes") == 5_000
    assert 0 < value(observed, "rankyard_cache_bytes") <= 5_000
    assert 0 < value(observed, "rankyard_cache_answers") < 30


def test_the_process_says_what_it_takes(observed):
    assert value(observed, "process_resident_memory_bytes") > 10e6
    assert value(observed, "process_open_fds") > 3


def test_a_full_queue_is_counted_for_its_model(tmp_path):
    publish(tmp_path / "d", "slow", {"champion": Published("7", tiny_bundle(tmp_path / "b", "intent"))})
    config = {"limits": {"max_queue_length": 1}, "cache": {"max_bytes": 0}}
    with gateway(tmp_path / "d", config) as client:
        results = client.post("/v1/understand", json={"queries": ["shoes"] * 20}).json()["results"]
        refused = sum(result.get("error", {}).get("code") == "overloaded" for result in results)
        assert refused > 0
        assert value(client, "rankyard_rejected_total", model="slow", version="7") == refused


def test_requests_that_expire_in_the_queue_are_counted_and_not_computed(tmp_path):
    publish(tmp_path / "d", "slow", {"champion": Published("7", tiny_bundle(tmp_path / "b", "intent"))})
    config = {"cache": {"max_bytes": 0}, "runtime": {"n_workers": 1}, "batch": {"max_batch_size": 1}}
    with gateway(tmp_path / "d", config) as client:
        body = {"queries": [f"shoes {number}" for number in range(256)]}

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, timeout=60) as caller:
                caller.post("/v1/understand", json=body, headers={"x-deadline-ms": "40"})

        def some_expire() -> bool:
            callers = [threading.Thread(target=ask) for _ in range(4)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            return value(client, "rankyard_dropped_total", model="slow", version="7") > 0

        until(some_expire)
        # Of one moment: a batch that stood ready may still begin.
        found = {one.name: one.value for one in samples(client) if one.labels == {"model": "slow", "version": "7"}}
        assert found["rankyard_queue_seconds_count"] == found["rankyard_batch_size_sum"]
        assert found["rankyard_queue_length"] == 0


def test_a_model_that_two_hold_keeps_its_series_until_both_let_go(tmp_path):
    telemetry = Telemetry()
    served = ServedModel("shop-query", "3", tiny_bundle(tmp_path, "intent"))
    line = b'rankyard_queue_seconds_count{model="shop-query",version="3"}'
    telemetry.hold([served])
    telemetry.hold([served])
    telemetry.release([served])
    assert line in telemetry.exposition()
    telemetry.release([served])
    assert b'model="shop-query"' not in telemetry.exposition()


def test_batches_that_triton_is_not_asked_for_are_counted(deployment):
    with socket.socket() as taken:  # which nobody else takes, and nobody listens to
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        config = {"runtime": {"kind": "triton", "triton_url": nobody}, "cache": {"max_bytes": 0}}
        with gateway(deployment, config, says="answering shop-query/3 in this process") as client:
            for _ in range(3):
                assert client.post("/v1/understand", json={"query": "red shoes"}).status_code == 200
            assert value(client, "rankyard_rerouted_total", reason="open") == 3
            assert value(client, "rankyard_runtime_degraded") == 1

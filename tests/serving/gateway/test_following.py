"""A gateway in a process of its own, whose deployment changes under load."""

import json
import shutil
import threading
import time

import httpx
import pytest

from registry import bundle
from registry.deployment import Published, publish
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle
from tests.serving.gateway.conftest import gateway, until
from tests.serving.gateway.metrics import samples, value

QUERY = "where is my order"


@pytest.fixture
def deployed(tmp_path):
    """A deployment of one intent model, and `promote(version, bundle)`."""
    directory = tmp_path / "deployment"

    def promote(version, sealed):
        publish(directory, "shop-query", {"champion": Published(str(version), sealed)})

    promote(1, tiny_bundle(tmp_path / "bundles", "intent"))
    return directory, promote


def models(client):
    return [model["ref"] for model in client.get("/v1/models").json()["models"]]


def versions(client):
    """Versions that any series is labelled with."""
    return {sample.labels["version"] for sample in samples(client) if "version" in sample.labels}


def wait_for(client, ref):
    until(lambda: models(client) == [ref])


def wait_until_refused(client):
    """Wait until what was published has been looked at, and is not served."""
    until(lambda: value(client, "rankyard_following_refused") == 1)


def test_ten_promotions_under_load_fail_no_request_and_mix_no_versions(deployed, tmp_path):
    directory, promote = deployed
    newer = [tiny_bundle(tmp_path / "bundles", "intent", name=f"n{number}") for number in range(10)]
    stopping, answers, faults = threading.Event(), [], []

    def load(url):
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stopping.is_set():
                response = client.post("/v1/understand", json={"queries": [QUERY, "tell me a joke"]})
                if response.status_code != 200:
                    faults.append(response.text)
                else:
                    answers.append(response.json())

    def wait_for_answer(version):
        """Wait until one of those who ask all the time has been answered by this version."""
        until(lambda: answers and answers[-1]["results"][0]["models"]["intent"] == f"shop-query/{version}")

    with gateway(directory, {"follow_s": 0.02}, says="serving shop-query/11, after shop-query/10") as client:
        callers = [threading.Thread(target=load, args=(client.base_url,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        wait_for_answer(1)
        for version, sealed in enumerate(newer, start=2):
            promote(version, sealed)
            wait_for(client, f"shop-query/{version}")
            assert client.post("/v1/understand", json={"query": QUERY}).json()["models"] == {
                "intent": f"shop-query/{version}"
            }
            wait_for_answer(version)
        stopping.set()
        for caller in callers:
            caller.join()
        until(lambda: versions(client) == {"11"})
        assert value(client, "rankyard_swaps_total") == 10
    assert faults == []
    assert {answer["results"][0]["models"]["intent"] for answer in answers} == {f"shop-query/{n}" for n in range(1, 12)}
    for answer in answers:
        first, second = answer["results"]
        assert first["models"] == second["models"]
        assert (first["intent"]["label"], second["intent"]["label"]) == ("order_status", "oos")


def test_on_triton_a_gateway_serves_the_version_before_until_the_new_one_is_deployed(tmp_path, triton_server):
    directory = tmp_path / "deployment"
    served = [
        ServedModel("f-query", str(version), tiny_bundle(tmp_path / "bundles", "intent", name=f"n{version}"))
        for version in (1, 2, 3)
    ]

    def promote(model):
        publish(directory, "f-query", {"champion": Published(model.version, model.bundle)})

    promote(served[0])
    triton_server.serve(served[:1])
    config = {
        "follow_s": 0.05,
        "cache": {"max_bytes": 0},
        "runtime": {"kind": "triton", "triton_url": triton_server.running.grpc},
    }
    stopping, faults = threading.Event(), []
    with gateway(directory, config, says="still serving f-query/1: Triton at") as client:

        def load():
            with httpx.Client(base_url=client.base_url, timeout=60) as caller:
                while not stopping.is_set():
                    response = caller.post("/v1/understand", json={"query": QUERY})
                    if response.status_code != 200:
                        faults.append(response.text)

        caller = threading.Thread(target=load)
        caller.start()
        for model in served[1:]:
            before = models(client)
            promote(model)
            wait_until_refused(client)
            assert models(client) == before
            triton_server.serve([model])
            wait_for(client, model.ref)
        stopping.set()
        caller.join()
    assert faults == []


def test_a_model_that_does_not_prove_itself_leaves_the_old_one_serving(deployed, tmp_path):
    directory, promote = deployed
    with gateway(directory, {"follow_s": 0.02}, says="still serving shop-query/1: golden row 0") as client:
        promote(2, with_other_golden_rows(tiny_bundle(tmp_path / "bundles", "intent", name="bad"), tmp_path / "spoilt"))
        wait_until_refused(client)
        assert models(client) == ["shop-query/1"]
        assert client.post("/v1/understand", json={"query": QUERY}).status_code == 200
        promote(3, tiny_bundle(tmp_path / "bundles", "intent", name="good"))
        wait_for(client, "shop-query/3")
        assert value(client, "rankyard_following_refused") == 0


def with_other_golden_rows(sealed, bundles):
    """A bundle that is whole, and whose model does not answer what its golden rows say."""
    with bundle.draft(bundles) as draft:
        for name in sealed.manifest.files:
            shutil.copyfile(sealed.path / name, draft / name)
        rows = json.loads((draft / "golden.json").read_text())
        rows["rows"][0]["outputs"]["float32"]["intent_logits"][0] += 0.5
        (draft / "golden.json").write_text(json.dumps(rows))
        return bundle.seal(draft, sealed.manifest, bundles)


def test_a_bundle_that_comes_behind_its_pointer_is_served_once_it_is_whole(deployed, tmp_path):
    directory, promote = deployed
    sealed = tiny_bundle(tmp_path / "bundles", "intent", name="new")
    with gateway(directory, {"follow_s": 0.02}, says="still serving shop-query/1: ") as client:
        promote(2, sealed)
        wait_for(client, "shop-query/2")
        pointer = (directory / "aliases" / "shop-query.json").read_bytes()
        promote(1, tiny_bundle(tmp_path / "bundles", "intent"))
        wait_for(client, "shop-query/1")
        model = directory / "bundles" / sealed.digest / "manifest.json"
        model.rename(tmp_path / "on its way")
        (directory / "aliases" / "shop-query.json").write_bytes(pointer)
        wait_until_refused(client)
        (tmp_path / "on its way").rename(model)
        wait_for(client, "shop-query/2")


def test_a_gateway_that_does_not_follow_serves_what_it_began_with(deployed, tmp_path):
    directory, promote = deployed
    with gateway(directory, {"follow_s": None}) as client:
        promote(2, tiny_bundle(tmp_path / "bundles", "intent", name="new"))
        time.sleep(0.3)
        assert models(client) == ["shop-query/1"]


def test_a_pointer_that_cannot_be_read_leaves_the_old_one_serving(deployed, tmp_path):
    directory, promote = deployed
    with gateway(directory, {"follow_s": 0.02}, says="must be a pointer as written by a promotion") as client:
        (directory / "aliases" / "shop-query.json").write_text("{")
        wait_until_refused(client)
        assert models(client) == ["shop-query/1"]
        promote(2, tiny_bundle(tmp_path / "bundles", "intent", name="new"))
        wait_for(client, "shop-query/2")

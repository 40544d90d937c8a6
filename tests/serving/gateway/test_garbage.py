"""Requests, whatever becomes of them, leave nothing to Python's garbage collector, which would hold up all others."""

import contextlib
import json
import signal
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from registry.deployment import Published, publish
from tests.bundles import tiny_bundle
from tests.serving.gateway import conftest, front
from tests.serving.gateway.bundles import cross_bundle, joint_bundle
from tests.serving.gateway.conftest import ending_well, start, until, url_of

N = 20
"""Requests of each kind: one that leaves anything leaves several objects."""

PROGRAM = f"""
import gc, signal
signal.signal(signal.SIGUSR1, lambda *_: print(gc.collect(), gc.get_stats()[0]["collections"], flush=True))
{conftest.PROGRAM}
"""
ROWS = [{"id": "a", "text": "red shoes", "features": {"price": 1}}, {"id": "b", "text": "red hat"}]
TEXTS = {"name": "input_ids", "shape": [2, 3], "datatype": "INT64", "data": [2, 4, 3, 2, 4, 3]}
MASK = TEXTS | {"name": "attention_mask", "data": [1] * 6}


@pytest.fixture(scope="module")
def asked(tmp_path_factory, deployment):
    """Of a gateway in which two models read texts, and two phases rank, one late."""
    bundles = tmp_path_factory.mktemp("garbage")
    joint, cross = joint_bundle(bundles).path, cross_bundle(bundles).path
    config = {
        "grpc_port": 0,
        "models": {"tagging": str(joint)},
        "phases": [{"model": "shop-ltr@champion"}, {"model": str(cross), "budget_ms": 0.01}],
        "limits": {"max_queue_length": 4, "max_candidates": 10, "max_body_bytes": 10_000},
    }
    with running(deployment, config) as found:
        yield found


@contextlib.contextmanager
def running(deployment: Path, config: dict, says: str = ""):
    """A gateway's client, and what tells how many objects of garbage it had, and how often the collector has come."""
    process = start(deployment, config, program=PROGRAM)

    def garbage() -> tuple[int, int]:
        time.sleep(0.1)  # for what is done after an answer
        process.send_signal(signal.SIGUSR1)
        return tuple(map(int, process.stdout.readline().split()))

    with ending_well(process, says) as (line, _), httpx.Client(base_url=url_of(line), timeout=60) as client:
        client.grpc = line.partition("grpc://")[2].partition(",")[0]
        yield client, garbage


def understand(client, number, **changes):
    return client.post("/v1/understand", **{"json": {"query": f"red shoes {number}"}, **changes})


def rank(client, _number, **changes):
    return client.post("/v1/rank", json={"candidates": ROWS, **changes})


def infer(client, _number, **changes):
    return client.post("/v2/models/joint/infer", json={"inputs": [TEXTS, MASK], **changes})


def at_once(client, sent, *, waits=True):
    """One request in one piece, over a connection of its own; nothing where nobody waits for the answer."""
    with front.socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as caller:
        caller.sendall(sent)
        if waits:
            ((status, _, _),) = front.answers(caller, 1)
            return httpx.Response(status)
        return None


def late(client, path, body):
    """A request whose deadline is over when it has been read."""
    return at_once(client, front.post(path, json.dumps(body).encode(), "x-deadline-ms: 0.01"))


def over_grpc(client, _number, shape):
    tensor = triton.InferInput("features", list(shape), "FP32")
    tensor.set_data_from_numpy(np.zeros(shape, np.float32))
    with triton.InferenceServerClient(client.grpc) as caller:
        try:
            caller.infer("shop-ltr", [tensor])
        except InferenceServerException as error:
            return error


KINDS = {  # the status that it must be answered with, None where nobody waits for one
    "a query": (200, understand),
    "a kept query": (200, lambda client, _: understand(client, 0)),
    "several, one of them bad": (
        200,
        lambda client, n: understand(client, n, json={"queries": [f"hat {n}", "", "red"]}),
    ),
    "no JSON": (400, lambda client, n: understand(client, n, content=b"{", json=None)),
    "a blank query": (422, lambda client, n: understand(client, n, json={"query": " "})),
    "too large": (413, lambda client, n: understand(client, n, json={"query": "x" * 20_000})),
    "too late": (504, lambda client, n: late(client, "/v1/understand", {"query": f"red {n}"})),
    "several, too late": (200, lambda client, n: late(client, "/v1/understand", {"queries": [f"a {n}", f"b {n}"]})),
    "a list, its second phase late": (200, rank),
    "a list, too late": (504, lambda client, _: late(client, "/v1/rank", {"candidates": ROWS})),
    "an explained list": (200, lambda client, n: rank(client, n, explain="values")),
    "an unknown feature": (422, lambda client, n: rank(client, n, candidates=[{"id": "a", "features": {"weight": 1}}])),
    "too many": (413, lambda client, n: rank(client, n, candidates=[{"id": f"{place}"} for place in range(11)])),
    "by columns": (200, lambda client, n: rank(client, n, candidates={"ids": ["a"], "texts": ["red"], "features": {}})),
    "tensors": (200, infer),
    "no tensors": (400, lambda client, n: infer(client, n, inputs=[])),
    "tensors, too late": (504, lambda client, _: late(client, "/v2/models/joint/infer", {"inputs": [TEXTS, MASK]})),
    "an unknown path": (404, lambda client, _: client.get("/v1/nothing")),
    "metrics": (200, lambda client, _: client.get("/metrics")),
    "no HTTP": (400, lambda client, _: at_once(client, b"NONSENSE\r\n\r\n")),
    "hung up on": (
        None,
        lambda client, _: at_once(client, front.post("/v1/understand", b'{"query": "x"}'), waits=False),
    ),
    "half a body": (None, lambda client, _: at_once(client, front.post("/v1/rank", b"x" * 99)[:-9], waits=False)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_requests_leave_no_garbage(asked, kind):
    client, garbage = asked
    status, ask = KINDS[kind]
    ask(client, 10_000)
    garbage()
    answers = [ask(client, number) for number in range(N)]
    assert garbage()[0] < N
    assert {None if answer is None else answer.status_code for answer in answers} == {status}


def test_calls_over_grpc_leave_what_is_grpcs_own(asked):
    """Five small objects a call; a refusal would leave the request and all who had to do with it."""
    client, garbage = asked
    left = []
    for shape in ((1, 2), (1, 9)):
        over_grpc(client, 0, shape)
        garbage()
        answers = [over_grpc(client, number, shape) for number in range(N)]
        assert (answers[-1] is None) == (shape == (1, 2))
        left.append(garbage()[0])
    assert max(left) <= 6 * N


def test_what_is_held_is_not_looked_through_again_and_again(asked):
    client, garbage = asked
    _, before = garbage()
    callers = [front.begun((client.base_url.host, client.base_url.port), 9) for _ in range(100)]
    _, after = garbage()
    for caller in callers:
        caller.close()
    assert after == before


def test_versions_that_were_replaced_leave_no_garbage(tmp_path):
    versions = {number: tiny_bundle(tmp_path / number, "intent", labels=(f"l{number}", "oos")) for number in "123456"}
    publish(tmp_path, "q", {"champion": Published("1", versions["1"])})
    with running(tmp_path, {"follow_s": 0.05}, "serving q/6, after q/5") as (client, garbage):

        def served() -> str:
            (model,) = client.get("/v1/models").json()["models"]
            return model["ref"]

        garbage()
        for number, bundle in versions.items():
            publish(tmp_path, "q", {"champion": Published(number, bundle)})
            until(lambda number=number: served() == f"q/{number}")
            understand(client, 1)
        time.sleep(0.5)  # until the last one has retired
        assert garbage()[0] < N

"""The gateway as a process: its start, its end, and what it refuses to start with."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from models.errors import WorkspaceError
from serving.gateway import following, gateway, server
from serving.gateway import port as ports
from serving.gateway.config import GatewayConfig
from tests.serving.gateway.conftest import start, until, url_of
from tests.serving.gateway.front import begun, is_refused, rest


def address(process: subprocess.Popen[str]) -> tuple[str, int]:
    url = httpx.URL(url_of(process.stdout.readline()))
    return url.host, url.port


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_was_begun_and_ends_well(deployment, number):
    process = start(deployment, {"drain_s": 60})
    place, body = address(process), json.dumps({"query": "track my parcel"}).encode()
    with begun(place, len(body)) as caller:
        process.send_signal(number)
        until(lambda: is_refused(place))
        assert process.poll() is None
        caller.sendall(body)
        answer = rest(caller)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"order_status" in answer
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_a_stopping_gateway_takes_no_new_connections(deployment):
    process = start(deployment, {"drain_s": 60})
    place = address(process)
    with begun(place, 5):
        assert not is_refused(place)
        process.send_signal(signal.SIGTERM)
        until(lambda: is_refused(place))
        assert process.poll() is None
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_work_that_outlasts_the_drain_is_told_so(deployment):
    process = start(deployment, {"drain_s": 1})
    with begun(address(process), 50) as caller:
        caller.sendall(b"{")
        process.send_signal(signal.SIGTERM)
        answer = caller.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after" in answer
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_port_in_use_is_one_sentence_before_any_model_is_loaded(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(tmp_path / "no-deployment-at-all", port=port)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert f"127.0.0.1:{port} cannot be taken" in said


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("127.0.0.1", 70_000), ("192.0.2.1", 0)])
def test_an_impossible_address_is_refused(tmp_path: Path, host, port):
    with pytest.raises(WorkspaceError, match=str(port)):
        server.run(GatewayConfig(), tmp_path, None, host, port, say=print)


def test_nothing_published_is_one_sentence(tmp_path: Path):
    process = start(tmp_path)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert "promote a model first" in said


def test_it_lives_but_is_not_ready_before_its_models_are_loaded(deployment, monkeypatch):
    lines: list[str] = []
    may_load = threading.Event()
    listener = ports.bind("127.0.0.1", 0)
    url = ports.address(listener)
    monkeypatch.setattr(server, "bind", lambda *_: listener)
    choose = following.choose
    monkeypatch.setattr(following, "choose", lambda *given: may_load.wait(60) and choose(*given))
    stops: list[Callable[[], object]] = []
    signalled = gateway.signalled

    @contextmanager
    def told() -> Iterator[asyncio.Event]:
        with signalled() as stop:
            stops.append(partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set))
            yield stop

    monkeypatch.setattr(gateway, "signalled", told)
    running = threading.Thread(
        target=server.run, args=(GatewayConfig(), deployment, None, "127.0.0.1", 0), kwargs={"say": lines.append}
    )
    running.start()
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.get("/healthz").status_code == 200
            for unready in (client.get("/readyz"), client.post("/v1/understand", json={"query": "red shoes"})):
                assert (unready.status_code, unready.json()["error"]["code"]) == (503, "unavailable")
                assert int(unready.headers["retry-after"]) >= 1
            assert lines == []
            may_load.set()
            until(lambda: lines)
            assert client.get("/readyz").status_code == 200
            assert lines == [f"ready on {url}, serving shop-query/3, shop-ltr/2"]
    finally:
        may_load.set()
        stops[0]()
        running.join(60)


def test_an_address_of_ip_version_6_is_written_in_brackets():
    try:
        listener = ports.bind("::1", 0)
    except WorkspaceError:
        pytest.skip("this machine has no IPv6 loopback")
    with listener:
        assert ports.address(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_a_gateway_machine_needs_no_training_package():
    heavy = ("torch", "mlflow", "xgboost", "sklearn", "transformers", "pandas", "scipy", "onnx", "tritonclient", "grpc")
    program = (
        "import sys, serving.gateway.gateway\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
        "print('swagger_ui_bundle' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert said.stdout.split("\n")[:2] == ["[]", "False"]

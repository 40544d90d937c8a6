"""A gateway of two processes, real ones at a real port: what they share, and what becomes of them."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton

from models.config import read, validate
from registry.deployment import Published, publish
from serving.gateway.config import GatewayConfig
from tests.bundles import tiny_bundle
from tests.serving.gateway.conftest import ending_well, gateway, start, until, url_of
from tests.serving.gateway.front import begun, is_refused, rest
from tests.serving.gateway.metrics import samples, value
from tests.serving.gateway.test_webhook import CHAMPION, SECRET, payload, send, signed
from tests.stopping import stop

TWO = {"processes": 2}


def children(pid: int) -> list[int]:
    """The gateway processes of a supervisor."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def watched(pids: list[int]) -> Iterator[Callable[[], bool]]:
    """Whether all processes end soon, even where they are nobody's children any more."""
    with ExitStack() as opened:
        descriptors = [os.pidfd_open(pid) for pid in pids]
        for descriptor in descriptors:
            opened.callback(os.close, descriptor)

        def have_ended() -> bool:
            return all(select.select([one], [], [], 60)[0] for one in descriptors)

        yield have_ended


def process_of(client: httpx.Client) -> str:
    """What tells the process that a client's connection belongs to: its part of the ids of requests."""
    return answered_by(client.get("/healthz"))


def answered_by(answer: httpx.Response) -> str:
    """The process that an answer comes from, as `process_of` has it."""
    return answer.headers["x-request-id"].partition("-")[0]


@contextmanager
def clients(url: str, n: int) -> Iterator[list[httpx.Client]]:
    """So many clients, each with one connection that stays."""
    kept = httpx.Limits(keepalive_expiry=None)
    with ExitStack() as opened:
        found = [opened.enter_context(httpx.Client(base_url=url, timeout=60, limits=kept)) for _ in range(n)]
        for client in found:
            assert client.get("/healthz").status_code == 200
        yield found


@contextmanager
def one_of_each(url: str) -> Iterator[list[httpx.Client]]:
    """Two clients, of which each has its connection at another process."""
    with ExitStack() as opened:

        def differ() -> bool:
            opened.close()
            found[:] = opened.enter_context(clients(url, 2))
            return process_of(found[0]) != process_of(found[1])

        found: list[httpx.Client] = []
        until(differ)  # connections that others have just closed may count for a moment
        yield found


@contextmanager
def two(deployment: Path, config: dict | None = None, *, says: str = "") -> Iterator[tuple[str, int]]:
    """Address and process id of a gateway of two processes, which must end well; it logs `says`, or nothing."""
    process = start(deployment, TWO | (config or {}))
    with ending_well(process, says) as (line, _):
        assert line.endswith("by 2 processes\n")
        yield url_of(line), process.pid


@pytest.fixture(scope="module")
def served(deployment) -> Iterator[tuple[str, int]]:
    with two(deployment) as found:
        yield found


def total(client: httpx.Client, route: str = "/v1/understand") -> float:
    """Of what each process told last: one that is late, on a busy machine, may have counted more."""
    return value(client, "rankyard_requests_total", route=route, status="200") or 0.0


def test_connections_are_spread_evenly_and_every_process_answers_for_all(served):
    url, _ = served
    with clients(url, 6) as callers:
        by_process = [process_of(caller) for caller in callers]
        assert sorted(by_process.count(process) for process in set(by_process)) == [3, 3]
        before = total(callers[0])
        for n_requests, caller in enumerate(callers, start=1):
            for _ in range(n_requests):
                assert caller.post("/v1/understand", json={"query": "red shoes"}).status_code == 200
        until(lambda: total(callers[0]) == before + 1 + 2 + 3 + 4 + 5 + 6)
        until(lambda: value(callers[0], "rankyard_connections") == 6)
        for caller in callers:
            assert total(caller) == before + 1 + 2 + 3 + 4 + 5 + 6
            assert value(caller, "rankyard_request_seconds_count", route="/v1/understand") == total(caller)
            assert value(caller, "rankyard_connections") == 6
            assert value(caller, "rankyard_processes") == 2
            assert value(caller, "rankyard_process_restarts_total") == 0


def test_what_is_served_is_said_once_and_memory_is_that_of_all(served):
    url, pid = served
    processes = (pid, *children(pid))
    assert len(processes) == 3
    with clients(url, 1) as (caller,):

        def is_that_of_all() -> bool:
            (rss_bytes,) = [one.value for one in samples(caller) if one.name == "process_resident_memory_bytes"]
            each = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) * 4096 for one in processes]
            return rss_bytes == pytest.approx(sum(each), rel=0.1)

        until(is_that_of_all)  # once all have told, even one that a busy machine holds up
        info = [sample.value for sample in samples(caller) if sample.name == "rankyard_bundle_info"]
        assert info == [1, 1]


def test_each_process_has_its_part_of_the_cores(served):
    url, _ = served
    with clients(url, 1) as (caller,):
        (group,) = caller.get("/v2/models/shop-query/config").json()["instance_group"]
    assert group["count"] == max(1, len(os.sched_getaffinity(0)) // 2)


def test_more_connections_than_a_process_takes_at_a_time_are_all_answered(served):
    url, _ = served
    address = (httpx.URL(url).host, httpx.URL(url).port)
    with ExitStack() as opened:
        callers = [opened.enter_context(socket.create_connection(address, timeout=60)) for _ in range(800)]
        for caller in callers:
            caller.sendall(b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert all(caller.recv(10_000).startswith(b"HTTP/1.1 200") for caller in callers)
        with clients(url, 1) as (one,):
            until(lambda: value(one, "rankyard_connections") == 801)


def test_a_process_that_does_not_answer_holds_up_no_scrape_and_no_sum_goes_back(served):
    url, pid = served
    with one_of_each(url) as callers:
        before = total(callers[0]) + len(callers)
        for caller in callers:
            assert caller.post("/v1/understand", json={"query": "red shoes"}).status_code == 200
        until(lambda: total(callers[0]) == before)
        stopped = children(pid)[0]
        with ThreadPoolExecutor(2) as threads:
            try:
                stop(stopped)
                asked = [threads.submit(total, caller) for caller in callers]
                (done,), (waiting,) = wait(asked, 60, FIRST_COMPLETED)
                assert done.result() == before
                with clients(url, 6) as newcomers:  # what is late is given no more
                    assert len({process_of(caller) for caller in newcomers}) == 1
                assert not waiting.done()  # the one whose process it is
            finally:
                os.kill(stopped, signal.SIGCONT)
            assert waiting.result(60) == before


def test_a_process_that_is_killed_is_replaced_while_callers_go_on(deployment):
    with (
        two(deployment, says="process 1 is ready, after the one that has ended") as (url, pid),
        clients(url, 4) as callers,
    ):
        n_answered, failures, sums = [0] * 4, [0] * 4, []
        processes = [process_of(caller) for caller in callers]
        is_over = threading.Event()

        def ask(number: int) -> None:
            caller = callers[number]
            while not is_over.is_set():
                try:
                    answer = caller.post("/v1/understand", json={"query": f"shoes {n_answered[number]}"})
                except httpx.TransportError:  # the connection's process is no more
                    failures[number] += 1
                    processes[number] = process_of(caller)
                else:
                    assert answer.status_code == 200
                    n_answered[number] += 1
                    # Where it was closed between two requests, the client opens another one and says nothing.
                    failures[number] += answered_by(answer) != processes[number]
                    processes[number] = answered_by(answer)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            with one_of_each(url) as scraping:

                def scraped() -> dict[str, float | None]:
                    for caller in scraping:
                        try:
                            text = {(one.name, one.labels.get("route")): one.value for one in samples(caller)}
                        except httpx.TransportError:
                            continue
                        sums.append(text["rankyard_requests_total", "/v1/understand"])
                    return {
                        name: text.get((name, None))
                        for name in ("rankyard_processes", "rankyard_process_restarts_total")
                    }

                until(lambda: scraped() and sums[-1] > 20)
                killed = children(pid)[0]
                os.kill(killed, signal.SIGKILL)
                expected = {"rankyard_processes": 2, "rankyard_process_restarts_total": 1}
                until(lambda: scraped() == expected)
                n_then = min(n_answered)
                until(lambda: scraped() and min(n_answered) > n_then + 5)
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        assert sums == sorted(sums)
        assert sorted(failures) == [0, 0, 1, 1]
        assert killed not in children(pid)
        assert len(children(pid)) == 2
        with clients(url, 1) as (newcomer,):
            assert process_of(newcomer) not in {process_of(caller) for caller in callers}
            assert sum(n_answered) - total(newcomer) < sum(n_answered) / 2


def test_connections_that_a_process_never_took_go_to_another_when_it_dies(deployment):
    with two(deployment, says="process 1 is ready, after the one that has ended") as (url, pid), ExitStack() as opened:
        stopped, _ = children(pid)
        stop(stopped)
        address = (httpx.URL(url).host, httpx.URL(url).port)
        callers = [opened.enter_context(socket.create_connection(address, timeout=60)) for _ in range(6)]
        for caller in callers:
            caller.sendall(b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n")
        answered: list[socket.socket] = []
        until(
            lambda: answered.extend(select.select(set(callers) - set(answered), [], [], 0.1)[0]) or len(answered) == 3
        )
        os.kill(stopped, signal.SIGKILL)
        for caller in callers:
            assert caller.recv(10_000).startswith(b"HTTP/1.1 200")
        with clients(url, 1) as (one,):
            until(lambda: value(one, "rankyard_processes") == 2)


def promote(directory: Path, bundles: Path, version: str) -> None:
    sealed = tiny_bundle(bundles, "intent", name=f"n{version}")
    publish(directory, "shop-query", {"champion": Published(version, sealed)})


def serves(caller: httpx.Client) -> str:
    return caller.get("/v1/models").json()["models"][0]["ref"]


def test_a_promotion_reaches_every_process(tmp_path):
    promote(tmp_path / "deployment", tmp_path / "bundles", "1")
    says = "serving shop-query/2, after shop-query/1"
    with two(tmp_path / "deployment", {"follow_s": 0.1}, says=says) as (url, _), one_of_each(url) as callers:
        for caller in callers:
            caller.post("/v1/understand", json={"query": "red shoes"})
        promote(tmp_path / "deployment", tmp_path / "bundles", "2")
        until(lambda: {serves(caller) for caller in callers} == {"shop-query/2"})
        for caller in callers:
            answer = caller.post("/v1/understand", json={"query": "red shoes"}).json()
            assert answer["models"]["intent"] == "shop-query/2"
        until(lambda: {one.labels["version"] for one in samples(callers[0]) if "version" in one.labels} == {"2"})
        until(lambda: value(callers[1], "rankyard_swaps_total") == 2)


def test_one_word_of_mlflow_reaches_every_process_also_one_that_starts_later(tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    promote(tmp_path / "deployment", tmp_path / "bundles", "1")
    config = {"follow_s": None, "webhook": {"secret_file": str(tmp_path / "secret"), "settle_s": 600}}
    with two(tmp_path / "deployment", config, says="serving shop-query/2, after shop-query/1") as (url, pid):
        body = payload(CHAMPION)
        headers = signed(body)
        with one_of_each(url) as callers:
            assert send(callers[0], body, headers) == (200, "accepted")
            until(lambda: send(callers[1], body, headers) == (409, "replayed"))
        os.kill(children(pid)[0], signal.SIGKILL)
        with clients(url, 1) as (caller,):
            until(
                lambda: (
                    (value(caller, "rankyard_process_restarts_total"), value(caller, "rankyard_processes")) == (1, 2)
                )
            )
        promote(tmp_path / "deployment", tmp_path / "bundles", "2")  # published after the word, as promotions do
        with one_of_each(url) as callers:
            until(lambda: {serves(caller) for caller in callers} == {"shop-query/2"})
            for caller in callers:
                assert send(caller, body, headers) == (409, "replayed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_every_process_finish_and_leaves_none(deployment, number):
    process = start(deployment, TWO | {"drain_s": 60})
    url = httpx.URL(url_of(process.stdout.readline()))
    body = json.dumps({"query": "track my parcel"}).encode()
    with watched(children(process.pid)) as have_ended, ExitStack() as opened:
        callers = [opened.enter_context(begun((url.host, url.port), len(body))) for _ in range(2)]
        with clients(str(url), 1):  # which is closed by its process before
            process.send_signal(number)
            until(lambda: is_refused((url.host, url.port)))
        for caller in callers:
            caller.sendall(body)
            answer = rest(caller)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"order_status" in answer
        assert have_ended()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_processes_end_when_their_supervisor_is_killed(deployment):
    process = start(deployment, TWO)
    url = url_of(process.stdout.readline())
    with watched(children(process.pid)) as have_ended, clients(url, 2):
        process.kill()
        assert have_ended()
    process.communicate(timeout=60)


@pytest.mark.parametrize("config", [{}, {"models": {"intent": "no-such-model@champion"}}])
def test_what_cannot_be_served_is_refused_as_by_one_process(tmp_path, deployment, config):
    directory = deployment if config else tmp_path
    one, several = (start(directory, config | {"processes": n}) for n in (1, 2))
    said = [process.communicate(timeout=60) for process in (one, several)]
    assert said[0] == said[1]
    assert said[0][1].count("\n") == 1
    assert one.returncode == several.returncode == 2


def test_ports_in_use_are_refused_before_a_process_is_started(deployment):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        processes = [start(deployment, TWO, port=port), start(deployment, TWO | {"grpc_port": port})]
        said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert f"a port of its own, 127.0.0.1:{port} cannot be taken" in said[0]
    assert f"a gRPC port of its own, 127.0.0.1:{port} cannot be taken" in said[1]
    assert [text.count("\n") for text in said] == [1, 1]


def test_processes_share_a_grpc_port_that_is_no_one_else_s(deployment):
    with gateway(deployment, TWO | {"grpc_port": 0}) as client:
        port = int(client.grpc.rpartition(":")[2])
        for n in (1, 2):
            other = start(deployment, {"processes": n, "grpc_port": port})
            assert f"127.0.0.1:{port} cannot be taken" in other.communicate(timeout=60)[1]
            assert other.returncode == 2
        tensor = triton.InferInput("features", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.array([[20.0, 1.5]], np.float32))
        for _ in range(4):
            with triton.InferenceServerClient(client.grpc) as caller:
                (score,) = caller.infer("shop-ltr", [tensor]).as_numpy("score")
            assert score == pytest.approx(1.5 - 20.0 / 100)
        route = "/inference.GRPCInferenceService/ModelInfer"
        until(lambda: value(client, "rankyard_requests_total", route=route, status="200") == 4)


def test_log_lines_say_which_process_wrote_them(tmp_path):
    promote(tmp_path / "deployment", tmp_path / "bundles", "1")
    process = start(tmp_path / "deployment", TWO | {"logs": {"format": "json", "requests": True, "level": "info"}})
    url = url_of(process.stdout.readline())
    with one_of_each(url):
        pass
    process.terminate()
    _, said = process.communicate(timeout=60)
    lines = [json.loads(line) for line in said.splitlines()]
    assert {line["process"] for line in lines if line["message"] == "answered"} == {1, 2}


def test_a_process_reads_the_configuration_that_its_supervisor_read():
    for raw in (
        read("gateway"),
        {"runtime": {"fallback": False, "kind": "triton"}, "catalogue": {"file": "a.jsonl"}, "grpc_port": 0},
        {
            "phases": [
                {"model": "a@champion", "keep": 9},
                {"model": "b@champion", "fuse": {"method": "reciprocal_rank"}},
            ]
        },
    ):
        config = validate(GatewayConfig, raw)
        sent = config.model_copy(update={"grpc_port": 8001}).model_dump_json(exclude_unset=True)
        assert GatewayConfig.model_validate_json(sent) == validate(GatewayConfig, raw | {"grpc_port": 8001})


def test_the_command_line_comes_before_the_configuration(deployment, tmp_path):
    (tmp_path / "gateway.yaml").write_text(f"{{deployment: {deployment}, processes: 1}}")
    command = [sys.executable, "-m", "rankyard", "serve", "--config", str(tmp_path / "gateway.yaml")]
    command += ["--workspace", str(tmp_path), "--port", "0", "--processes"]
    with subprocess.Popen([*command, "2"], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4]) as process:
        assert process.stderr.readline().endswith(", by 2 processes\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    refused = subprocess.run([*command, "0"], capture_output=True, text=True, cwd=Path(__file__).parents[4])
    assert refused.returncode == 2
    assert "--processes: must be a whole number from 1, got '0'" in refused.stderr

"""A server's life: started once, found again, ended with all that it started. Real ones, and false ones for faults."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from models.errors import UnavailableError, WorkspaceError
from serving.triton import binary, server
from serving.triton.http import TritonHttp
from serving.triton.repository import install
from serving.triton.settings import TritonSettings
from tests.bundles import tiny_bundle
from tests.triton_server import needs_triton

ROOT = Path(__file__).parents[3]
UP = """
import sys
from pathlib import Path
from serving.triton.server import up
print(up(Path(sys.argv[1]), Path(sys.argv[1]) / "repository").pid)
"""


def session(pid: int) -> list[str]:
    """Command lines of a server and of all that it started."""
    return [command for found, command in processes() if found == pid]


def processes() -> Iterator[tuple[int, str]]:
    """Session and command line of every living process."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if fields[0] != "Z":
            yield int(fields[3]), command.decode(errors="replace")


def wait_until(is_so, timeout_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def free_ports() -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def has_said(directory: Path, words: str) -> bool:
    log = directory / "server.log"
    return log.exists() and words in log.read_text()


@pytest.fixture
def false_server(tmp_path, monkeypatch):
    """Puts a program named tritonserver first on the path."""

    def put(program: str) -> None:
        file = tmp_path / "bin" / "tritonserver"
        file.parent.mkdir()
        file.write_text(f"#!{sys.executable}\n{program}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", str(file.parent), prepend=os.pathsep)

    return put


SILENT = "import sys, time\nprint('E0101 a sensor is missing', flush=True)\ntime.sleep(60)"


@needs_triton
def test_a_server_is_found_again_and_ends_with_all_that_it_started(tmp_path):
    running = server.up(tmp_path, tmp_path / "repository")
    try:
        wait_until(lambda: server.is_ready(running.http))  # which waits for two seconds alone
        assert server.up(tmp_path, tmp_path / "repository") == running
        assert server.status(tmp_path) == running
        with pytest.raises(WorkspaceError, match="one server at a time"):
            server.up(tmp_path, tmp_path / "another")
        bundle = tiny_bundle(tmp_path / "b")
        install(TritonHttp(running.http), tmp_path / "repository", "s-query", "1", bundle, TritonSettings())
        assert sum("triton_python_backend_stub" in command for command in session(running.pid)) == 2
    finally:
        assert server.down(tmp_path)
    assert session(running.pid) == []
    assert server.status(tmp_path) is None
    assert not server.down(tmp_path)


@needs_triton
def test_several_that_start_a_server_at_once_get_the_same_one(tmp_path):
    try:
        starting = [
            subprocess.Popen([sys.executable, "-c", UP, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        pids = {int(one.communicate(timeout=120)[0]) for one in starting}
        assert len(pids) == 1
        running = server.status(tmp_path)
        assert running is not None
        assert pids == {running.pid}
    finally:
        server.down(tmp_path)
    assert session(running.pid) == []


@needs_triton
def test_a_server_that_was_killed_is_not_running_and_its_instances_end_with_it(tmp_path):
    running = server.up(tmp_path, tmp_path / "repository")
    try:
        bundle = tiny_bundle(tmp_path / "b")
        install(
            TritonHttp(running.http), tmp_path / "repository", "s-query", "1", bundle, TritonSettings(n_instances=1)
        )
        os.kill(running.pid, signal.SIGKILL)
        wait_until(lambda: server.status(tmp_path) is None)
        assert not server.is_ready(running.http)
    finally:
        # Most instances notice within seconds that their server is gone; one that it left locked never does.
        assert not server.down(tmp_path)
    wait_until(lambda: session(running.pid) == [])
    assert not (tmp_path / "server.json").exists()


@needs_triton
def test_the_usual_ports_are_taken_where_all_are_free(tmp_path, monkeypatch):
    usual = free_ports()
    monkeypatch.setattr(server, "_USUAL_PORTS", usual)
    try:
        running = server.up(tmp_path, tmp_path / "repository")
        assert [running.http, running.grpc, running.metrics] == [f"127.0.0.1:{port}" for port in usual]
    finally:
        server.down(tmp_path)


@needs_triton
def test_a_server_comes_back_where_gateways_ask_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_USUAL_PORTS", (0, 0, 0))  # others every time
    try:
        first = server.up(tmp_path, tmp_path / "repository")
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: server.status(tmp_path) is None)
        second = server.up(tmp_path, tmp_path / "repository")
        server.down(tmp_path)
        third = server.up(tmp_path, tmp_path / "repository")
    finally:
        server.down(tmp_path)
    assert len({(one.http, one.grpc, one.metrics) for one in (first, second, third)}) == 1


def test_other_ports_are_taken_where_one_of_the_usual_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert server._ports((port,)) is None
        assert server._ports((*free_ports()[:2], port)) is None
    chosen = server._ports((0, 0, 0))
    assert len(set(chosen)) == 3


@needs_triton
def test_a_port_that_is_taken_after_all_is_told_from_the_log(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(server, "_ports", lambda _wanted: (port, *free_ports()[:2]))
        with pytest.raises(UnavailableError, match=f"it has ended.*{port}.*already in use") as raised:
            server.up(tmp_path, tmp_path / "repository")
    assert "\n" not in raised.value.message
    assert not (tmp_path / "server.json").exists()


def test_a_server_that_dies_is_told_with_the_end_of_its_log(tmp_path, false_server):
    false_server("import sys; print('starting'); sys.exit('error: no licence')")
    with pytest.raises(UnavailableError, match=r"must stay up, it has ended; .*server\.log says: error: no"):
        server.up(tmp_path, tmp_path / "repository")
    assert server.status(tmp_path) is None


def test_a_server_that_never_gets_ready_is_ended(tmp_path, false_server, monkeypatch):
    false_server(SILENT)
    monkeypatch.setattr(server, "_READY_TIMEOUT_S", 0.5)
    is_ready = server.is_ready

    def once_it_has_spoken(http: str) -> bool:
        wait_until(lambda: has_said(tmp_path, "a sensor is missing"))
        return is_ready(http)

    monkeypatch.setattr(server, "is_ready", once_it_has_spoken)
    with pytest.raises(UnavailableError, match=r"must be ready within 0 s, it was not; .* a sensor is missing"):
        server.up(tmp_path, tmp_path / "repository")
    assert not any(str(tmp_path) in command for _, command in processes())


def test_a_server_whose_start_is_interrupted_is_ended(tmp_path, false_server, monkeypatch):
    false_server(SILENT)
    seen = []

    def interrupt(_http: str) -> bool:
        seen.append(server.status(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "is_ready", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.up(tmp_path, tmp_path / "repository")
    assert seen[0] is not None
    assert session(seen[0].pid) == []
    assert server.status(tmp_path) is None


def test_a_server_that_does_not_listen_to_reason_is_killed(tmp_path, false_server, monkeypatch):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)"
    false_server(f"import signal, time\n{deaf}\ntime.sleep(600)")
    monkeypatch.setattr(server, "_STOP_TIMEOUT_S", 0.3)
    monkeypatch.setattr(server, "is_ready", lambda _http: True)
    running = server.up(tmp_path, tmp_path / "repository")
    wait_until(lambda: has_said(tmp_path, "deaf"))
    assert server.down(tmp_path)
    assert session(running.pid) == []


def test_a_program_that_cannot_be_started_is_told(tmp_path, monkeypatch):
    file = tmp_path / "tritonserver"
    file.write_bytes(b"\x7fELF of another machine")
    file.chmod(0o755)
    monkeypatch.setattr(server, "find_binary", lambda _directory: binary.Binary(file, {}))
    with pytest.raises(UnavailableError, match="must be a program that can be started"):
        server.up(tmp_path, tmp_path / "repository")


def test_without_a_server_the_way_to_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(binary.shutil, "which", lambda _name: None)
    monkeypatch.setattr(binary.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match=r"pip install 'rankyard\[triton\]'"):
        server.up(tmp_path, tmp_path / "repository")


def test_a_stranger_with_the_servers_process_id_is_never_ended(tmp_path, false_server, monkeypatch):
    false_server(SILENT)
    monkeypatch.setattr(server, "is_ready", lambda _http: True)
    running = server.up(tmp_path, tmp_path / "repository")
    server.down(tmp_path)
    stranger = replace(running, pid=os.getppid())
    (tmp_path / "server.json").write_text(json.dumps(asdict(stranger)))
    assert server.status(tmp_path) is None
    assert not server.down(tmp_path)


def test_a_state_that_is_not_ours_is_told(tmp_path):
    (tmp_path / "server.json").write_text('{"pid": 1')
    with pytest.raises(WorkspaceError, match=r"server\.json must be as"):
        server.status(tmp_path)


def test_a_disk_that_is_too_small_for_the_backend_is_told_once(tmp_path, monkeypatch):
    full = "[Errno 28] No space left on device: 'stub'"

    def copytree(*_):
        raise shutil.Error([("a", "b", full), ("c", "d", full)])

    monkeypatch.setattr(shutil, "copytree", copytree)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(WorkspaceError) as raised:
        server.up(tmp_path, tmp_path / "repository")
    assert raised.value.message.count("No space left on device") == 1


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="must have a directory that can be written"):
        server.up(tmp_path / "file" / "triton", tmp_path / "repository")

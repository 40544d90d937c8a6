"""Slow and hostile clients: each is ended as its limit says, holds little, and hurts nobody else."""

import contextlib
import json
import os
import resource
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from serving.gateway.connection import Patience
from tests.serving.gateway.conftest import gateway, until
from tests.serving.gateway.front import TIMEOUT_S, answers, get, post, rest, serving


@pytest.fixture(scope="module")
def served():
    with serving(patience=Patience(linger_s=TIMEOUT_S)) as one:
        yield one
        assert one.exchange(get("/others"))[0] == 200


P = b"POST / HTTP/1.1\r\nhost: a\r\n"
CHUNKED = P + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"get / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"MADE-UP / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT shop:443 HTTP/1.1\r\nhost: shop:443\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1.1\r\nhost: a\r\n\r\n",
        b"GET no-slash HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nna me: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: nul\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: bell\x07\r\n\r\n",
        CHUNKED + b"not hexadecimal\r\nab\r\n0\r\n\r\n",
        CHUNKED + b"-2\r\nab\r\n0\r\n\r\n",
        CHUNKED + b"fffffffffffffffff\r\nab",
        CHUNKED + b"2\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_ends(served, sent):
    assert_refused(served, sent)


@pytest.mark.parametrize(
    "sent",
    [
        P + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        P + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        P + b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
        P + b"content-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
        P + b"content-length: 4, 4\r\n\r\nabcd",
        P + b"content-length: +4\r\n\r\nabcd",
        P + b"content-length: -4\r\n\r\nabcd",
        P + b"content-length: 0x4\r\n\r\nabcd",
        P + b"content-length: 4 4\r\n\r\nabcd",
        P + b"content-length: \r\n\r\nabcd",
        P + b"content-length: 99999999999999999999999\r\n\r\nabcd",
        P + b"content-length : 4\r\n\r\nabcd",
        P + b"content-length: 4\r\n folded\r\n\r\nabcd",
        P + b"transfer-encoding: identity\r\n\r\nabcd",
        P + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        P + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        P + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        P + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        P + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        P + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        P + b"x: a\r\rtransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        P.replace(b"\r\n", b"\n") + b"content-length: 4\n\nabcd",
        b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n",
        CHUNKED + b"2 \r\nab\r\n0\r\n\r\n",
        CHUNKED + b"2\nab\r\n0\r\n\r\n",
        CHUNKED + b"2;a\nb\r\nab\r\n0\r\n\r\n",
    ],
)
def test_what_two_readers_could_read_in_two_ways_is_refused(served, sent):
    """Request smuggling: a proxy and this server must never disagree on where a request ends."""
    assert_refused(served, sent)


def assert_refused(served, sent):
    """One 400, the end of the connection, and no answer to what is hidden behind."""
    with served.connect() as caller:
        caller.sendall(get("/before") + sent + get("/hidden"))
        first, refusal = answers(caller, 2)
        assert rest(caller) == b""
    assert json.loads(first[2])["path"] == "/before"
    assert (refusal[0], refusal[1]["connection"]) == (400, "close")
    assert json.loads(refusal[2])["fault"]["code"] == "malformed_http"
    assert not any(request.path == "/hidden" for request in served.application.asked)


@pytest.mark.parametrize(
    "sent",
    [
        get("/" + "a" * 40_000),
        get("/", "x: " + "a" * 40_000),
        get("/", *(f"x{number}: a" for number in range(1_100))),
        b"GET /" + b"a" * 40_000,  # and never an end
        b"GET / HTTP/1.1\r\nx: " + b"a" * 60_000,
        CHUNKED + b"0\r\n" + b"x-late: a\r\n" * 2_000,
        CHUNKED + b"0\r\nx-late: " + b"a" * 60_000,
        CHUNKED + b"2;" + b"a" * 60_000,
    ],
)
def test_a_head_beyond_its_limit_is_refused(served, sent):
    with served.connect() as caller:
        caller.sendall(sent)
        received = rest(caller)
    assert received.startswith(b"HTTP/1.1 431")
    assert b"at most 32768 bytes" in received


@pytest.mark.parametrize("head", [P + b"content-length: 1000001\r\n\r\n", CHUNKED + b"f4241\r\n"])
def test_a_client_that_sends_too_much_before_it_reads_sees_why(served, head):
    with served.connect() as caller:
        caller.sendall(head + b"x" * 5_000_000)
        received = rest(caller)
    assert received.startswith(b"HTTP/1.1 413")
    assert b"at most 1000000 bytes" in received


def test_a_client_that_never_stops_sending_is_cut_off(served):
    with served.connect() as caller:
        caller.sendall(b"NONSENSE\r\n\r\n")
        with pytest.raises(ConnectionError):
            caller.sendall(b"x" * 100_000_000)


def test_requests_beyond_what_may_wait_stay_unread(served):
    """Thirty thousand requests in one burst: few are parsed before the first is answered, all are answered."""
    n = 30_000
    with served.connect() as caller:
        sending = threading.Thread(target=caller.sendall, args=(get("/held") + get("/") * n,))
        while served.application.has_asked.acquire(blocking=False):
            pass
        sending.start()
        assert served.application.has_asked.acquire(timeout=TIMEOUT_S)
        (connection,) = served.call(lambda: [one for one in served.server._connections if one._asked is not None])
        while served.call(lambda: connection._is_reading):
            pass
        assert served.call(lambda: len(connection._parser.whole)) < 1_000
        served.call(served.application.released.set)
        found = 0
        tail = b""
        while found < n + 1:
            data = caller.recv(1 << 20)
            assert data
            found += (tail + data).count(b"HTTP/1.1 200 OK") - tail.count(b"HTTP/1.1 200 OK")
            tail = data[-14:]
        sending.join(TIMEOUT_S)
    served.call(served.application.released.clear)


def test_heads_that_drip_end_in_time_and_hold_up_nobody():
    with serving(patience=Patience(head_s=0.2)) as served, contextlib.ExitStack() as stack:
        dripping = [stack.enter_context(served.connect()) for _ in range(50)]
        for caller in dripping:
            caller.sendall(b"GET / HTT")
        assert served.exchange(get("/others"))[0] == 200
        for caller in dripping:
            received = rest(caller)
            assert received.startswith(b"HTTP/1.1 408")
            assert b"head_timeout" in received


def test_bodies_that_never_come_end_at_their_deadline_and_hold_up_nobody():
    with serving() as served, contextlib.ExitStack() as stack:
        served.application.allowed = 0.3
        waiting = [stack.enter_context(served.connect()) for _ in range(50)]
        for caller in waiting:
            caller.sendall(post("/", b"x" * 100)[:-1])
        assert served.exchange(get("/others"))[0] == 200
        for caller in waiting:
            received = rest(caller)
            assert received.startswith(b"HTTP/1.1 408")
            assert b"99 bytes did" in received


def test_the_bodies_of_all_callers_together_are_bounded():
    with serving(max_bodies_bytes=1_000_000) as served, contextlib.ExitStack() as stack:
        callers = [stack.enter_context(served.connect()) for _ in range(4)]
        for number, caller in enumerate(callers):
            caller.sendall(post("/", b"x" * 400_000)[:-1])
            if number < 2:
                while served.call(lambda: served.server._n_bodies) < (number + 1) * 399_999:
                    pass
        assert all(rest(caller).startswith(b"HTTP/1.1 429") for caller in callers[2:])
        for caller in callers[:2]:
            caller.sendall(b"x")
            assert answers(caller, 1)[0][0] == 200
        assert served.call(lambda: served.server._n_bodies) == 0
        assert served.exchange(post("/", b"x" * 900_000))[0] == 200


def test_a_connection_without_a_request_is_closed_in_time():
    with serving(patience=Patience(idle_s=1.0)) as served, served.connect() as used:
        used.sendall(get("/"))
        assert answers(used, 1)[0][0] == 200
        with served.connect() as fresh:
            assert (rest(fresh), rest(used)) == (b"", b"")


def test_a_client_that_never_reads_is_ended_and_asks_for_no_more_meanwhile():
    with serving(patience=Patience(stalled_s=0.2)) as served, socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        caller.settimeout(TIMEOUT_S)
        caller.connect(served.address)
        caller.sendall(get("/bytes/20000000") * 10)
        assert served.application.has_asked.acquire(timeout=TIMEOUT_S)
        until(lambda: not served.server.n_connections)
        assert len(served.application.asked) == 1


def test_a_client_that_reads_slowly_gets_all_of_it():
    """Slower than the patience with one that reads nothing, but it goes on."""
    with serving(patience=Patience(stalled_s=3)) as served, served.connect() as caller:
        caller.sendall(get("/bytes/30000000", "connection: close"))
        received, begin_s = 0, time.monotonic()
        while data := caller.recv(100_000):
            received += len(data)
            if time.monotonic() - begin_s < 6:
                time.sleep(0.02)
        assert received > 30_000_000


def test_connections_beyond_the_limit_are_told_so_and_leave_the_others_alone():
    with serving(max_connections=3) as served, contextlib.ExitStack() as stack:
        kept = [stack.enter_context(served.connect()) for _ in range(3)]
        for caller in kept:
            caller.sendall(get("/"))
            assert answers(caller, 1)[0][0] == 200
        with served.connect() as refused:
            received = rest(refused)
        assert received.startswith(b"HTTP/1.1 503")
        assert b"at most 3 connections" in received
        kept[0].close()
        while served.server.n_connections > 2:
            served.call(lambda: None)
        assert served.exchange(get("/"))[0] == 200


def test_a_flood_beyond_the_limit_is_closed_without_a_word():
    patience = Patience(linger_s=TIMEOUT_S)  # longer than a slow machine takes for all of them
    with serving(max_connections=1, patience=patience) as served, contextlib.ExitStack() as stack:
        flood = [stack.enter_context(served.connect()) for _ in range(600)]
        received = []
        for caller in flood[1:]:
            with contextlib.suppress(ConnectionError):
                received.append(caller.recv(1_000))
        n_told = sum(one.startswith(b"HTTP/1.1 503") for one in received)
        assert n_told == 256


def test_callers_that_reset_their_connections_leave_nothing_behind():
    with serving() as served:
        for number in range(300):
            with served.connect() as caller:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                caller.sendall((get("/held"), post("/", b"x" * 100)[:-1], b"GET / HT")[number % 3])
        assert served.exchange(get("/others"))[0] == 200
        until(lambda: not served.server.n_connections)
        held = [request for request in served.application.asked if request.path == "/held"]
        assert served.call(lambda: all(request.is_given_up for request in held))


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_idle_connections_cost_little_and_disturb_nobody(deployment):
    n, kb_each = 10_000, 16
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < n + 500:
        pytest.skip(f"this system lets a process open {hard} files at most, 10,500 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n + 500), hard))
    with gateway(deployment) as client, contextlib.ExitStack() as stack:
        address = (client.base_url.host, client.base_url.port)
        query = {"query": "red shoes"}
        assert client.post("/v1/understand", json=query).status_code == 200
        pid = listening_pid(address[1])
        before = rss_bytes(pid)
        for _ in range(n):
            stack.enter_context(socket.create_connection(address, timeout=60))
        for number in range(200):
            assert client.post("/v1/understand", json={"query": f"red shoes {number}"}).status_code == 200
        until(lambda: "rankyard_connections 10001.0" in client.get("/metrics").text)
        assert (rss_bytes(pid) - before) / n < kb_each * 1_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def listening_pid(port: int) -> int:
    """The process that listens on a port of this machine, from /proc."""
    inode = next(
        fields[9]
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    )
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.readlink() == Path(f"socket:[{inode}]"):
                return int(link.parts[2])
    raise AssertionError(port)

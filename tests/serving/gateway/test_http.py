"""HTTP/1.1 as the server speaks it, on real sockets; answers are read by h11, another library."""

import asyncio
import json
import select
import selectors
import socket
import threading
import time
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.gateway import http
from serving.gateway.messages import Request
from serving.gateway.parser import Limits, RequestParser
from tests.serving.gateway.front import TIMEOUT_S, Application, answers, echo, get, post, rest, serving


@pytest.fixture(scope="module")
def served():
    with serving() as one:
        yield one


def test_a_request_arrives_as_it_was_sent(served):
    status, understood = served.exchange(
        b"POST /a%20b/c?x=%31#d HTTP/1.1\r\nHost: shop\r\nX-Twice: 1\r\nX-Empty:\r\nX-TWICE:  2 \t\r\n"
        b"Content-Length: 3\r\n\r\n\xff\x00a"
    )
    assert status == 200
    assert understood == {
        "method": "POST",
        "path": "/a b/c",
        "headers": {"host": "shop", "x-twice": "1, 2", "x-empty": "", "content-length": "3"},
        "body": "\xff\x00a",
        "fault": None,
    }


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("http://shop:80/a?b", "/a"),
        ("http://shop", "/"),
        ("/%2F", "//"),
        ("/%C3%A9", "/é"),
        ("/a//b", "/a//b"),
    ],
)
def test_the_path_is_what_the_target_names(served, target, path):
    assert served.exchange(f"GET {target} HTTP/1.1\r\nhost: a\r\n\r\n".encode())[1]["path"] == path


def test_an_answer_has_its_length_its_type_the_date_and_the_headers_of_the_application(served):
    with served.connect() as caller:
        caller.sendall(get("/"))
        ((status, headers, body),) = answers(caller, 1)
    assert status == 200
    assert int(headers["content-length"]) == len(body)
    assert (headers["content-type"], headers["x-first"], headers["x-second"]) == ("application/json", "1", "2")
    assert parsedate_to_datetime(headers["date"]).utcoffset().total_seconds() == 0
    assert "connection" not in headers


def test_head_has_the_length_but_not_the_body(served):
    with served.connect() as caller:
        caller.sendall(b"HEAD /bytes/1234 HTTP/1.1\r\nhost: a\r\n\r\n" + get("/next"))
        (_, headers, body), (_, _, after) = answers(caller, 2, (b"HEAD", b"GET"))
    assert (headers["content-length"], body) == ("1234", b"")
    assert json.loads(after)["path"] == "/next"


def test_chunks_are_one_body_and_trailers_are_no_headers(served):
    status, understood = served.exchange(
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        b"2;name=value\r\nab\r\n3\r\ncde\r\n0\r\nhost: evil\r\nx-late: 1\r\n\r\n"
    )
    assert (status, understood["body"]) == (200, "abcde")
    assert understood["headers"] == {"host": "a", "transfer-encoding": "chunked"}


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    ],
)
def test_a_connection_ends_after_the_answer_where_it_is_to(served, head):
    with served.connect() as caller:
        caller.sendall(head + get("/never"))
        received = rest(caller)
    assert received.count(b"HTTP/1.1 200 OK") == 1
    assert b"connection: close\r\n" in received


def test_pipelined_requests_are_answered_in_order_whether_at_once_or_later(served):
    paths = ["/later", "/1", "/2", "/later", "/later", "/3"] * 50
    with served.connect() as caller:
        caller.sendall(b"".join(post(path, str(number).encode()) for number, path in enumerate(paths)))
        found = [json.loads(body) for _, _, body in answers(caller, len(paths))]
    assert [(one["path"], one["body"]) for one in found] == [(path, str(n)) for n, path in enumerate(paths)]


def test_answers_of_one_turn_are_sent_once_all_of_them_are_there(served, monkeypatch):
    gate, are_sent = threading.Event(), []
    with served.connect() as first, served.connect() as second:
        callers = (first, second)
        for caller in callers:  # both are known to the loop
            caller.sendall(get("/"))
            answers(caller, 1)
        answer = served.application.answer

        def watched(request):
            are_sent.append(bool(select.select(callers, (), (), 0)[0]))
            return answer(request)

        monkeypatch.setattr(served.application, "answer", watched)
        holder = threading.Thread(target=served.call, args=(gate.wait, TIMEOUT_S))
        holder.start()
        for caller in callers:
            caller.sendall(get("/"))
        gate.set()
        holder.join()
        assert [len(answers(caller, 1)) for caller in callers] == [1, 1]
    assert are_sent == [False, False]


def test_a_client_is_told_to_go_on_only_where_its_body_is_not_there_yet(served):
    expecting = post("/", b"", "expect: 100-continue").replace(b"length: 0", b"length: 5")
    with served.connect() as caller:
        caller.sendall(expecting)
        assert caller.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(b"hello")
        assert json.loads(answers(caller, 1)[0][2])["body"] == "hello"
        caller.sendall(expecting + b"hello")
        assert caller.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_client_is_told_to_go_on_after_the_answers_before(served):
    with served.connect() as caller:
        caller.sendall(get("/later") + post("/", b"", "expect: 100-continue").replace(b"length: 0", b"length: 2"))
        received = b""
        while not received.endswith(b"100 Continue\r\n\r\n"):
            received += caller.recv(1000)
        assert received.startswith(b"HTTP/1.1 200")
        caller.sendall(b"ok")
        assert json.loads(answers(caller, 1)[0][2])["body"] == "ok"


@pytest.mark.parametrize("expect", ["100-continue", "200-ok"])
def test_what_is_refused_by_its_head_is_not_told_to_go_on(served, expect):
    with served.connect() as caller:
        caller.sendall(post("/", b"", f"expect: {expect}").replace(b"length: 0", b"length: 1000001"))
        received = rest(caller)
    assert received.startswith(b"HTTP/1.1 413" if expect == "100-continue" else b"HTTP/1.1 417")


def test_a_wish_for_another_protocol_is_not_taken_up_and_costs_no_body(served):
    """As the HTTP client of Java 11 and later asks, with every request over plain TCP."""
    wishes = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAAB")
    with served.connect() as caller:
        sent = post("/first", b'{"query":"a"}', *wishes) + get("/second", *wishes) + post("/third", b"b", *wishes)
        caller.sendall(sent)
        found = [json.loads(body) for _, _, body in answers(caller, 3)]
    assert [(one["path"], one["body"]) for one in found] == [
        ("/first", '{"query":"a"}'),
        ("/second", ""),
        ("/third", "b"),
    ]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_wish_for_another_protocol_on_a_connection_that_ends_is_answered(served, version):
    wishes = ("connection: Upgrade, close", "upgrade: h2c")
    with served.connect() as caller:
        caller.sendall(post("/last", b"ab", *wishes).replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        head, _, body = rest(caller).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(body)["body"] == "ab"


def test_a_caller_that_hangs_up_takes_its_request_with_it(served):
    application = served.application
    with served.connect() as caller:
        caller.sendall(get("/held"))
        while not (application.asked and application.asked[-1].path == "/held"):
            assert application.has_asked.acquire(timeout=TIMEOUT_S)
    assert application.has_given_up.acquire(timeout=TIMEOUT_S)
    assert application.given_up[-1].is_given_up


def has_head(served) -> bool:
    """Whether the head of a request has been read, whose body has not come."""
    return served.call(lambda: any(one._parser.has_head for one in served.server._connections))


def test_stopping_finishes_what_was_begun_and_says_that_it_is_the_last():
    with serving() as served:
        with served.connect() as idle, served.connect() as busy, served.connect() as half:
            busy.sendall(get("/held") + get("/waits"))
            half.sendall(post("/half", b"12")[:-1])
            assert served.application.has_asked.acquire(timeout=TIMEOUT_S)
            while served.server.n_connections < 3 or not has_head(served):
                pass
            stopping = served.stop(TIMEOUT_S)
            assert idle.recv(1000) == b""
            half.sendall(b"2")
            assert b"connection: close" in rest(half)
            served.call(served.application.released.set)
            (first, second) = answers(busy, 2)
            assert ("connection" in first[1], second[1]["connection"]) == (False, "close")
        stopping.result(TIMEOUT_S)


def test_stopping_in_the_turn_of_an_answer_sends_it(monkeypatch):
    with serving() as served, served.connect() as caller:
        answer, stopping = served.application.answer, []

        def stopped(request):
            stopping.append(asyncio.get_running_loop().create_task(served.server.stop(TIMEOUT_S)))
            return answer(request)

        monkeypatch.setattr(served.application, "answer", stopped)
        caller.sendall(get("/"))
        assert rest(caller).startswith(b"HTTP/1.1 200")


def test_what_outlasts_the_drain_is_cancelled_or_told_so():
    with serving() as served:
        with served.connect() as busy, served.connect() as half:
            busy.sendall(get("/held"))
            half.sendall(post("/half", b"12")[:-1])
            assert served.application.has_asked.acquire(timeout=TIMEOUT_S)
            while not has_head(served):
                pass
            stopping = served.stop(0.0)
            assert served.application.has_given_up.acquire(timeout=TIMEOUT_S)
            assert rest(half).startswith(b"HTTP/1.1 503")
            assert rest(busy).startswith(b"HTTP/1.1 200")
        stopping.result(TIMEOUT_S)


class Watched(selectors.DefaultSelector):
    """Notes how long a loop was ready to sleep at each of its turns."""

    def __init__(self):
        super().__init__()
        self.timeouts = []

    def select(self, timeout=None):
        self.timeouts.append(timeout)
        return super().select(timeout)


class Sends:
    """A connection that has something to send."""

    def flush(self):
        pass


def test_the_loop_stays_awake_after_an_answer_for_those_who_ask_again_at_once(monkeypatch):
    monkeypatch.setattr(http, "_SOON_S", TIMEOUT_S)
    selector = Watched()
    server = http.HttpServer(Application(), Limits(1), max_connections=1, max_bodies_bytes=1)

    async def sleeps():
        del selector.timeouts[:]
        await asyncio.sleep(0.01)
        return any(selector.timeouts)

    async def answered(begun_s):
        server.asked(begun_s)
        server.answered()
        server.send_soon(Sends())
        return not await sleeps()

    async def run():
        is_awake = [await answered(time.monotonic() + wait_s) for wait_s in (TIMEOUT_S, 0.0, 0.0)]
        server.asked(time.monotonic())
        is_awake.append(not await sleeps())  # it waits for the model
        server.answered()
        is_awake += [await answered(time.monotonic() + wait_s) for wait_s in (0.0, 2 * TIMEOUT_S, 0.0)]
        monkeypatch.setattr(http, "_SOON_S", 0.0)
        is_awake.append(not await sleeps())
        return is_awake

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        assert runner.run(run()) == [False, True, True, False, True, False, True, False]


# What any client may send, and how it may come in pieces.

_names = st.sampled_from(["accept", "x-a", "X-B", "content-type"])
_values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(str.strip)
_bodies = st.tuples(st.binary(max_size=9), st.sampled_from([1, 7, 4_000])).map(lambda drawn: Repeated(*drawn))


class Repeated(NamedTuple):
    part: bytes
    n: int

    @property
    def body(self) -> bytes:
        return self.part * self.n


class Sent(NamedTuple):
    """A request to be written: with a length, with a wish to upgrade, or in chunks; `None` for no body."""

    path: str
    headers: list[tuple[str, str]]
    bodies: list[Repeated]
    kind: str

    def written(self) -> bytes:
        headers = [f"{name}: {value}" for name, value in self.headers]
        if self.kind == "get":
            return get(self.path, *headers)
        if self.kind == "chunks":
            head = post(self.path, b"", "transfer-encoding: chunked", *headers).replace(b"content-length: 0\r\n", b"")
            parts = [one.body for one in self.bodies if one.body]
            return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nx-late: 1\r\n\r\n"
        wish = ["connection: upgrade", "upgrade: h2c"] if self.kind == "upgrade" else []
        return post(self.path, b"".join(one.body for one in self.bodies), *headers, *wish)


_paths = st.sampled_from(["/", "/a%20b", "/a?b=c", "http://shop/a"])
_headers = st.lists(st.tuples(_names, _values), max_size=4)
_requests = st.builds(
    Sent, _paths, _headers, st.lists(_bodies, max_size=2), st.sampled_from(["get", "length", "chunks", "upgrade"])
)

_ends = st.sampled_from(
    [
        b"",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        post("/", b"", "x y: z"),
        b"\r\n",
    ]
)


def parsed(pieces: list[bytes], max_body_bytes: int = 40_000) -> list[bytes]:
    """The requests of a stream that came in `pieces`, whose reader takes them out when there is no more room."""
    parser = RequestParser(Limits(max_body_bytes, n_waiting=4))
    found: list[Request] = []
    for piece in pieces:
        left: bytes | memoryview = piece
        while len(left) and not parser.is_done:
            left = parser.feed(left)
            found += parser.whole
            parser.whole.clear()
    parser.close()
    return [echo(request) for request in found]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_requests, min_size=1, max_size=8), _ends, st.lists(st.floats(0, 1), max_size=20))
def test_however_a_stream_is_cut_its_requests_are_the_same(requests, end, places):
    stream = b"".join(one.written() for one in requests) + end
    cuts = sorted(int(place * len(stream)) for place in places)
    pieces = [stream[begin:stop] for begin, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True) if begin < stop]
    assert parsed(pieces) == parsed([stream])


def test_a_head_that_is_refused_has_no_headers_wherever_it_is_cut():
    stream = post("/", b"", "x y: z")
    refused = parsed([stream])
    assert [json.loads(one)["headers"] for one in refused] == [{}]
    for cut in range(1, len(stream)):
        assert parsed([stream[:cut], stream[cut:]]) == refused


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_requests.filter(lambda one: one.kind != "upgrade"), min_size=1, max_size=8))
def test_requests_are_those_that_another_library_reads(requests):
    other = h11.Connection(h11.SERVER)
    expected = []
    for sent in requests:
        other.receive_data(sent.written())
        request, body = other.next_event(), b""
        while not isinstance(event := other.next_event(), h11.EndOfMessage):
            body += event.data
        expected.append((request.method.decode(), request.target.decode(), sorted(request.headers), body))
        other.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        other.send(h11.EndOfMessage())
        other.start_next_cycle()
    found = [json.loads(one) for one in parsed([b"".join(one.written() for one in requests)], 1_000_000)]
    assert [one["method"] for one in found] == [method for method, _, _, _ in expected]
    assert [one["body"].encode("latin-1") for one in found] == [bytes(body) for _, _, _, body in expected]
    for one, (_, _, headers, _) in zip(found, expected, strict=True):
        joined: dict[str, str] = {}
        for name, value in [(name.decode(), value.decode("latin-1")) for name, value in headers]:
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
        assert {name: sorted(value.split(", ")) for name, value in one["headers"].items()} == {
            name: sorted(value.split(", ")) for name, value in joined.items()
        }


def test_pieces_of_one_byte_on_a_socket_are_read_like_one_piece(served):
    sent = post("/a", b"hello") + post("/b", b"", "connection: close")
    with served.connect() as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(sent)):
            caller.sendall(sent[place : place + 1])
        found = answers(caller, 2)
    assert [json.loads(body)["body"] for _, _, body in found] == ["hello", ""]

"""Bodies that travel compressed."""

import gzip
import tracemalloc
import zlib

import pytest

from serving.gateway.encoding import decoded, encoded
from tests.serving.gateway.forms import refused

BODY = b'{"query": "red nike shoes"}' * 100


@pytest.mark.parametrize(
    ("packed", "name"),
    [(gzip.compress(BODY), b"gzip"), (zlib.compress(BODY), b"deflate"), (gzip.compress(BODY), b" X-GZip"), (BODY, b"")],
)
def test_a_body_is_read_in_the_encoding_that_it_names(packed, name):
    assert decoded(packed, name, len(BODY)) == BODY


@pytest.mark.parametrize(
    ("packed", "name", "code", "says"),
    [
        (BODY, b"br", "unsupported_media_type", "got 'br'"),
        (BODY, b"gzip, gzip", "unsupported_media_type", "got 'gzip, gzip'"),
        (BODY, b"gzip", "malformed_encoding", "must be in gzip as it says"),
        (gzip.compress(BODY)[:-1], b"gzip", "malformed_encoding", "it ends too early"),
        (gzip.compress(BODY) + b"x", b"gzip", "malformed_encoding", "1 bytes follow its end"),
        (gzip.compress(BODY + b"x"), b"gzip", "too_large", "at most 2700 bytes when it is decompressed"),
    ],
)
def test_a_body_that_is_not_what_it_says_or_too_large_is_refused(packed, name, code, says):
    found = refused(lambda: decoded(packed, name, len(BODY)))
    assert found[0] == code
    assert says in found[2]


def test_a_bomb_costs_no_more_memory_than_the_limit():
    writer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(writer.compress(bytes(2**20)) for _ in range(1024)) + writer.flush()
    tracemalloc.start()
    try:
        assert refused(lambda: decoded(bomb, b"gzip", 2**20))[0] == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("accepted", "name"),
    [
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"br;q=1.0, GZip;q=0.8", b"gzip"),
        (b"gzip; q=0, deflate", b"deflate"),
        (b"gzip;q=0.000, deflate ; Q=0.0", None),
        (b"gzip;q=0.001", b"gzip"),
        (b"", None),
        (b"identity, br", None),
    ],
)
def test_an_answer_is_compressed_as_its_caller_asks(accepted, name):
    packed, found = encoded(BODY, accepted)
    assert found == name
    reader = {b"gzip": gzip.decompress, b"deflate": zlib.decompress, None: bytes}[name]
    assert reader(packed) == BODY


def test_a_short_answer_is_left_as_it_is():
    assert encoded(b"x" * 1023, b"gzip") == (b"x" * 1023, None)


def test_every_route_that_takes_a_body_reads_it_compressed(tree_client):
    body = gzip.compress(b'{"candidates": [{"id": "a", "features": {"price": 1}}]}')
    answer = tree_client.post("/v1/rank", content=body, headers={"content-encoding": "gzip"})
    assert answer.json()["ranking"][0]["id"] == "a"
    assert tree_client.post("/v1/rank", content=body, headers={"content-encoding": "br"}).status_code == 415

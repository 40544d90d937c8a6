"""What is sent: distinct or repeated by Zipf's law, always the same by seed, and what the gateway's contract says."""

import itertools
import math
from collections import Counter

import msgspec
import numpy as np
import pytest

from models.errors import InputError
from serving.bench import queries, traffic
from serving.bench.arrivals import arrivals
from serving.bench.lists import ARROW, BINARY, COLUMNS, HEAD_BYTES, ROWS
from serving.gateway import arrow, wire
from serving.gateway.candidates import by_column
from serving.gateway.config import LimitsConfig

FEATURES = ("price", "popularity", "stock")


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def test_generated_queries_are_all_different_and_those_of_a_seed_its_own():
    first, second = queries.generated(0), queries.generated(1)
    texts = {first(number) for number in range(50_000)}
    assert len(texts) == 50_000
    assert texts.isdisjoint(second(number) for number in range(50_000))
    assert first(7) == queries.generated(0)(7)


def test_a_file_s_queries_come_once_each_before_any_comes_again():
    text = queries.of_file(["a", "b", "a", "c"], seed=0)
    assert sorted(text(number) for number in range(3)) == ["a", "b", "c"]
    assert sorted(text(number) for number in range(3, 6)) == ["a 1", "b 1", "c 1"]
    assert queries.of_file(["a", "b"], seed=1)(0) in ("a 1000", "b 1000")


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.5])
def test_repetition_follows_zipf_s_law(exponent):
    n = 200_000
    drawn = Counter(take(queries.numbers(0, zipf=exponent, n_distinct=100), n))
    weights = [1 / rank**exponent for rank in range(1, 101)]
    for number in (0, 1, 9, 99):
        expected = n * weights[number] / sum(weights)
        assert drawn[number] == pytest.approx(expected, abs=5 * math.sqrt(expected))
    assert max(drawn) == 99
    assert take(queries.numbers(3, zipf=exponent, n_distinct=9), 99) == take(
        queries.numbers(3, zipf=exponent, n_distinct=9), 99
    )


def test_without_zipf_every_number_comes_once():
    assert take(queries.numbers(0), 4) == [0, 1, 2, 3]


def body_of(request):
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    return body


def test_a_request_is_whole_and_says_where_it_goes():
    make = traffic.post(
        "http://h:80/prefix/",
        "/v1/understand",
        traffic.understand_body(lambda _: 'size 8" é'),
        [("x-deadline-ms", "5")],
    )
    head = make(0).partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert head[:2] == [b"POST /prefix/v1/understand HTTP/1.1", b"host: h:80"]
    assert b"x-deadline-ms: 5" in head
    assert wire.decode(body_of(make(0)), wire.understand_decoder).query == 'size 8" é'


@pytest.mark.parametrize("with_texts", [False, True])
def test_candidates_by_row_and_by_column_are_the_same_lists(with_texts):
    bodies = {}
    for form in ("rows", "columns"):
        make = traffic.rank_body(
            queries.generated(0), FEATURES, (2, 5), form=form, seed=0, top_k=3, with_texts=with_texts
        )
        bodies[form] = [wire.decode(make(number), wire.rank_decoder) for number in range(100)]
    for rows, columns in zip(bodies["rows"], bodies["columns"], strict=True):
        ids = [row.id for row in rows.candidates]
        assert ids == columns.candidates.ids
        assert {name: [row.features[name] for row in rows.candidates] for name in FEATURES} == dict(
            columns.candidates.features
        )
        texts = [row.text for row in rows.candidates]
        assert (texts if with_texts else None) == columns.candidates.texts
        assert (rows.query, rows.top_k) == (columns.query, 3)
    assert [len(one.candidates.ids) for one in bodies["columns"][:4]] == [2, 5, 2, 5]


@pytest.mark.parametrize("with_texts", [False, True])
def test_candidates_by_arrow_and_as_tensors_are_the_lists_that_columns_are(with_texts):
    bodies = {
        form: traffic.rank_body(
            queries.generated(0), FEATURES, (2, 5), form=form, seed=0, top_k=3, with_texts=with_texts
        )
        for form in (COLUMNS, ARROW, BINARY)
    }
    for number in range(100):
        expected = by_column(wire.decode(bodies[COLUMNS](number), wire.rank_decoder), LimitsConfig())
        options, found = arrow.read(bodies[ARROW](number), LimitsConfig())
        assert (found.ids, found.texts, found.text) == (expected.ids, expected.texts, expected.text)
        assert (options.query.text, options.top_k) == (expected.text, 3)
        assert found.features.names == expected.features.names
        np.testing.assert_array_equal(found.features.matrix, expected.features.matrix)
        head, tensors = bodies[BINARY](number)[:HEAD_BYTES], bodies[BINARY](number)[HEAD_BYTES:]
        (tensor,) = msgspec.json.decode(head)["inputs"]
        assert tensor["parameters"]["binary_data_size"] == len(tensors)
        matrix_DF = np.frombuffer(tensors, np.float32).reshape(tensor["shape"])
        np.testing.assert_array_equal(matrix_DF, expected.features.matrix)


@pytest.mark.parametrize("form", [ROWS, COLUMNS, ARROW, BINARY])
def test_no_two_rank_requests_are_the_same_list(form):
    body = traffic.rank_body(lambda _: "red shoes", FEATURES, (3,), form=form, seed=0)
    assert len({body(number) for number in range(1_000)}) == 1_000


def test_a_query_beyond_an_arrow_stream_s_place_is_refused():
    body = traffic.rank_body(lambda _: "x" * 2_000, FEATURES, (3,), form=ARROW, seed=0)
    with pytest.raises(InputError, match="at most 1024 bytes, one has 2000"):
        body(0)


@pytest.mark.parametrize(
    ("form", "path", "content_type"),
    [
        (ROWS, "/p/v1/rank", "application/json"),
        (ARROW, "/p/v1/rank", "application/vnd.apache.arrow.stream"),
        (BINARY, "/p/v2/models/m/infer", "application/octet-stream"),
    ],
)
def test_every_form_goes_where_it_is_read(form, path, content_type):
    make = traffic.rank("http://h:1/p/", lambda _: b"body", form, model="m", headers=[("x-deadline-ms", "5")])
    found, headers, body = traffic.parts(make(0))
    assert (found, headers["content-type"], body) == (path, content_type, b"body")
    assert headers["x-deadline-ms"] == "5"
    assert headers.get("inference-header-content-length") == (str(HEAD_BYTES) if form == BINARY else None)


def test_candidates_without_features_can_be_sent():
    make = traffic.rank_body(queries.generated(0), (), (2,), form="rows", seed=0, with_texts=True)
    assert [row.features for row in wire.decode(make(5), wire.rank_decoder).candidates] == [{}, {}]


def test_mixed_traffic_has_its_share_of_rankings_from_the_beginning():
    make = traffic.mixed(lambda _: b"u", lambda _: b"r", 0.2)
    for n in (100, 10_000):
        assert b"".join(map(make, range(n))).count(b"r") == pytest.approx(0.2 * n, abs=2)


def test_poisson_arrivals_have_exponential_gaps_of_the_rate():
    moments = np.array(take(arrivals("poisson", 50, 0), 20_000))
    gaps = np.diff(moments)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)
    assert (gaps > 2 / 50).mean() == pytest.approx(math.exp(-2), rel=0.05)
    assert take(arrivals("poisson", 50, 0), 5) == moments[:5].tolist()


def test_constant_arrivals_are_a_metronome():
    assert take(arrivals("constant", 4, 0), 4) == [0, 0.25, 0.5, 0.75]

"""SVMrank lists: what the fast reader gives, the same as scikit-learn, and one sentence for each broken rule."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_svmlight_file

from models.errors import DataError
from training.data import svmrank
from training.data.splits import RankingRows
from training.data.svmrank import read_svmrank

MQ2008 = Path(__file__).parents[4] / "shared/data/mq2008/Fold1/train.txt.gz"


def write(directory: Path, content: str) -> Path:
    path = directory / "train.txt"
    path.write_bytes(content.encode())
    return path


def matrix(rows: RankingRows) -> np.ndarray:
    return np.concatenate([np.stack([one.features[name] for name in rows.feature_names], axis=1) for one in rows.lists])


def test_lists_stand_in_order_of_first_appearance_and_documents_in_that_of_the_file(tmp_path: Path) -> None:
    rows = read_svmrank(
        write(tmp_path, "2 qid:9 1:1 2:10 # a\n0 qid:3 1:2 2:20 # b\n1 qid:9 1:3 2:30 # c\n0 qid:x-1 1:4 2:40 # d\n")
    )
    assert rows.query_ids == ("9", "3", "x-1")
    assert [one.ids for one in rows.lists] == [("a", "c"), ("b",), ("d",)]
    assert [labels_D.tolist() for labels_D in rows.labels] == [[2, 1], [0], [0]]
    assert rows.feature_names == ("1", "2")
    assert rows.lists[0].features["1"].tolist() == [1, 3]
    assert rows.lists[0].features["2"].dtype == np.float32
    assert rows.file == "train.txt"


def test_a_feature_that_a_line_leaves_out_is_nan_and_never_0(tmp_path: Path) -> None:
    rows = read_svmrank(write(tmp_path, "1 qid:1 12:5 2:0\n0 qid:1 2:nan\n0 qid:1\n"))
    assert rows.feature_names == ("2", "12")
    np.testing.assert_array_equal(matrix(rows), np.array([[0, 5], [np.nan, np.nan], [np.nan, np.nan]], "f4"))


def test_a_feature_that_first_appears_far_down_gets_a_column_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svmrank, "_CHUNK_BYTES", 8)
    rows = read_svmrank(write(tmp_path, "1 qid:1 7:1\n0 qid:1 7:2\n0 qid:2 3:4 7:3\n"))
    assert rows.feature_names == ("3", "7")
    np.testing.assert_array_equal(matrix(rows), np.array([[np.nan, 1], [np.nan, 2], [4, 3]], "f4"))


def test_a_documents_id_is_letors_or_the_first_word_of_its_comment_or_its_line(tmp_path: Path) -> None:
    content = (
        "0 qid:1 1:1 #docid = GX008-86-4444840 inc = 1 prob = 0.086622\n\n# nothing\n"
        "0 qid:1 1:1 # shoe-7 red\n0 qid:1 1:1 #\n0 qid:1 1:1"
    )
    assert read_svmrank(write(tmp_path, content)).lists[0].ids == ("GX008-86-4444840", "shoe-7", "line 5", "line 6")


def test_tabs_carriage_returns_and_a_byte_order_mark_hold_nothing(tmp_path: Path) -> None:
    rows = read_svmrank(write(tmp_path, "\ufeff 1\tqid:1  1:1.5e-3\t2:-.5 \r\n0 qid:1 1:+2. 2:1\r\n"))
    np.testing.assert_array_equal(matrix(rows), np.array([[1.5e-3, -0.5], [2, 1]], "f4"))


def test_gzip_is_read_as_plain_text_is(tmp_path: Path) -> None:
    plain = write(tmp_path, "1 qid:1 1:1\n0 qid:1 1:2\n")
    packed = tmp_path / "train.svm.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_svmrank(packed).sha256 == read_svmrank(plain).sha256
    np.testing.assert_array_equal(matrix(read_svmrank(packed)), matrix(read_svmrank(plain)))


def test_reading_one_query_after_the_other_copies_no_feature(tmp_path: Path) -> None:
    rows = read_svmrank(write(tmp_path, "1 qid:1 1:1\n0 qid:1 1:2\n0 qid:2 1:3\n"))
    first, second = (one.features["1"] for one in rows.lists)
    assert first.base is not None
    assert first.base is second.base


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(1, 5),
            st.dictionaries(st.integers(1, 9), st.floats(-1e6, 1e6, width=32), min_size=1),
        ),
        min_size=1,
        max_size=30,
    ),
    chunk_bytes=st.sampled_from([1, 40, 1 << 20]),
)
def test_values_are_those_that_scikit_learn_reads(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[tuple[int, int, dict[int, float]]],
    chunk_bytes: int,
) -> None:
    lines = [
        f"{label} qid:{query} " + " ".join(f"{feature}:{value!r}" for feature, value in sorted(features.items()))
        for label, query, features in documents
    ]
    path = write(tmp_path_factory.mktemp("svm"), "\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svmrank, "_CHUNK_BYTES", chunk_bytes)
        rows = read_svmrank(path)
    expected, labels, queries = load_svmlight_file(str(path), query_id=True, zero_based=True)
    order = np.concatenate([np.flatnonzero(queries == int(query)) for query in rows.query_ids])
    columns = [int(name) for name in rows.feature_names]
    np.testing.assert_array_equal(np.nan_to_num(matrix(rows)), expected.toarray()[order][:, columns].astype("f4"))
    np.testing.assert_array_equal(np.concatenate(rows.labels), labels[order])


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("x qid:1 1:1", "must begin with a relevance label, got 'x'"),
        ("nan qid:1 1:1", "a label must be an integer from 0 to 31, got nan"),
        ("-1 qid:1 1:1", "a label must be an integer from 0 to 31, got -1"),
        ("0.5 qid:1 1:1", "a label must be an integer from 0 to 31, got 0.5"),
        ("32 qid:1 1:1", "a label must be an integer from 0 to 31, got 32"),
        ("1 1:1 2:1", "must be followed by qid:ID, got '1:1'"),
        ("1 qid: 1:1", "must be followed by qid:ID, got 'qid:'"),
        ("1", "must be followed by qid:ID, got ''"),
        ("1 qid:1 1:", "a feature must be NUMBER:VALUE, got '1:'"),
        ("1 qid:1 1:1 7", "a feature must be NUMBER:VALUE, got '7'"),
        ("1 qid:1 1: 2 3:4", "a feature must be NUMBER:VALUE, got '1:'"),
        ("1 qid:1 1::2", "a feature must be NUMBER:VALUE, got '1::2'"),
        ("1 qid:1 1:2:3", "a feature must be NUMBER:VALUE, got '1:2:3'"),
        ("1 qid:1 :2", "a feature must be NUMBER:VALUE, got ':2'"),
        ("1 qid:1 -1:2", "a feature must be NUMBER:VALUE, got '-1:2'"),
        ("1 qid:1 price:2", "a feature must be NUMBER:VALUE, got 'price:2'"),
        ("1 qid:1 1:0x1", "a feature must be NUMBER:VALUE, got '1:0x1'"),
        ("1 qid:1 1:two", "a feature must be NUMBER:VALUE, got '1:two'"),
        ("1 qid:1 1:1 1:2", "a feature must be once in a line, 1 is there twice"),
        ("1 qid:1 1:1 2:1 1:2", "a feature must be once in a line, 1 is there twice"),
        ("1 qid:1 4000000000:1", "a feature's number must be at most 100000, got 4000000000"),
        ("1 qid:1 99999999999999999999:1", "a feature's number must be at most 100000"),
        ("1 qid:1 1:inf", "feature 1 must be finite in 32 bits or missing"),
        ("1 qid:1 1:-1e60", "feature 1 must be finite in 32 bits or missing"),
        ("1 qid:0 1:1 # first", "a document must be once in the list of query 0, first is in line 1 too"),
    ],
)
def test_a_bad_line_is_named_with_the_rule_that_it_breaks(tmp_path: Path, line: str, rule: str) -> None:
    with pytest.raises(DataError) as caught:
        read_svmrank(write(tmp_path, f"1 qid:0 1:1 # first\n\n{line}\n0 qid:2 1:3\n"))
    assert caught.value.message.startswith("train.txt has 1 bad row: line 3: ")
    assert rule in caught.value.message


def test_many_bad_lines_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 9 bad rows: line 2: .*line 3: .*line 4: .*and 6 more"):
        read_svmrank(write(tmp_path, "1 qid:1 1:1\n" + "1 qid 1\n" * 9))


@pytest.mark.parametrize("content", ["", "\n \n", "# only a comment\n"])
def test_a_file_without_documents_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="at least one row"):
        read_svmrank(write(tmp_path, content))


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"1 qid:1 1:1 # a\n0 qid:1 1:2 # \xff\n")
    with pytest.raises(DataError, match="must be UTF-8, line 2"):
        read_svmrank(path)


@pytest.mark.skipif(not MQ2008.exists(), reason="the MQ2008 files are not beside the checkout")
def test_mq2008_whose_query_ids_are_not_sorted_is_read_whole() -> None:
    rows = read_svmrank(MQ2008)
    assert (len(rows), sum(len(labels_D) for labels_D in rows.labels), len(rows.feature_names)) == (471, 9630, 46)
    assert rows.lists[0].ids[0].startswith("GX")

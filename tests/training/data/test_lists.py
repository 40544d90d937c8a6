"""Lists as one matrix: the one that serving would make of them, and no copy where the rows stand so already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.manifest import Contents, Signature, TensorSpec
from models.ranking import RankingModel, RankRequest
from training.data.lists import matrix, with_features
from training.data.splits import RankingRows
from training.data.svmrank import read_svmrank

GROUPED = "1 qid:1 1:1 2:2 3:3\n0 qid:1 1:4\n0 qid:2 3:5 2:6\n2 qid:3 1:7 2:8 3:9\n"
MIXED = "1 qid:1 1:1 2:2 3:3\n0 qid:2 3:5 2:6\n0 qid:1 1:4\n"


def rows_of(directory: Path, text: str) -> RankingRows:
    path = directory / "train.txt"
    path.write_text(text)
    return read_svmrank(path)


def as_served(rows: RankingRows, names: tuple[str, ...]) -> np.ndarray:
    signature = Signature(
        inputs=(TensorSpec(name="features", dtype="float32", shape=(-1, len(names))),),
        outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
        layout="concat",
    )
    model = RankingModel(Contents(family="ranking", signature=signature, features=names))
    return np.concatenate([model.encode(one).arrays["features"] for one in rows.lists])


@pytest.mark.parametrize("text", [GROUPED, MIXED])
@pytest.mark.parametrize("names", [("1", "2", "3"), ("3", "1", "2"), ("1", "2", "3", "4")])
def test_the_matrix_is_the_one_that_serving_makes(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    rows = rows_of(tmp_path, text)
    for some in (rows, rows.take(np.array([1, 0])), rows.take(np.array([0]))):
        np.testing.assert_array_equal(matrix(some, names), as_served(some, names))


def test_features_left_out_leave_the_matrix(tmp_path: Path) -> None:
    rows = with_features(rows_of(tmp_path, GROUPED), ("3", "1", "9"))
    assert rows.feature_names == ("1", "3")
    np.testing.assert_array_equal(matrix(rows, ("1", "3", "9")), as_served(rows, ("1", "3", "9")))


def test_lists_that_follow_each_other_are_a_view_and_others_are_not(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, GROUPED)
    whole, chosen = matrix(rows, ("1", "2", "3")), rows.lists[1].features["2"]
    part = matrix(rows.take(np.array([1, 2])), ("1", "2", "3"))
    assert whole is not None
    assert part is not None
    assert np.shares_memory(whole, chosen)
    assert np.shares_memory(part, chosen)
    assert not np.shares_memory(matrix(rows.take(np.array([2, 1])), ("1", "2", "3")), chosen)


def test_lists_of_dictionaries_are_left_to_the_model(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, GROUPED)
    lists = tuple(RankRequest(one.ids, features=dict(one.features)) for one in rows.lists)
    assert matrix(RankingRows(rows.query_ids, lists, rows.labels, rows.feature_names), ("1", "2", "3")) is None

"""Public data sets, read as training reads them; each test skips where the data is not beside the checkout."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import xgboost
from sklearn.datasets import load_svmlight_file

from models.config import read
from models.metrics import ranking_metrics
from tests.silent import Silent
from training import boosting, intent, ranking, tagging
from training.config import parse
from training.fit import Checkpoint

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"the public data set {name} is not at {DATA}")
    return DATA / name


@pytest.mark.parametrize(
    ("name", "module", "configuration", "rows"),
    [
        ("clinc150", intent, "intent_transformer", (15_100, 3_100, 5_500)),
        ("atis", tagging, "joint_transformer", (4_478, 500, 893)),
        ("snips", tagging, "joint_transformer", (13_084, 700, 700)),
        ("mq2008/Fold1", ranking, "ranking_xgboost", (471, 157, 156)),
    ],
)
def test_every_row_is_read(name: str, module: object, configuration: str, rows: tuple[int, ...]) -> None:
    task = module.__name__.rpartition(".")[2]
    splits = module.read(folder(name), parse(read(configuration), task))  # type: ignore[attr-defined]
    assert tuple(len(part) for part in splits.named().values()) == rows


def test_text_pairs_are_held_out_by_query() -> None:
    splits = ranking.read(folder("crowdflower"), parse(read("ranking_pairs"), "ranking"))
    assert len(splits.train) + len(splits.valid) == 209
    assert not set(splits.train.query_ids) & set(splits.valid.query_ids)
    assert splits.test is not None
    assert sum(len(labels) for labels in splits.test.labels) == 2_060


def test_a_ranker_scores_mq2008_as_plain_xgboost_with_the_same_settings(tmp_path: Path) -> None:
    directory = folder("mq2008/Fold1")
    config = parse(read("ranking_xgboost", ["training.n_trees=40", "training.n_threads=1"]), "ranking")
    splits = ranking.read(directory, config)
    fitted = ranking.fit(config, splits, Silent(), Checkpoint(tmp_path, ""))

    def plain(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read by scikit-learn; queries together, in order of first appearance, as XGBoost wants them."""
        with gzip.open(directory / f"{split}.txt.gz") as file:
            x, y, qid = load_svmlight_file(file, query_id=True)
        _, first, inverse = np.unique(qid, return_index=True, return_inverse=True)
        order = np.argsort(first[inverse], kind="stable")
        return x.toarray()[order].astype(np.float32), y[order], qid[order]

    x, y, qid = plain("train")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(qid)) + 1])
    matrix = xgboost.QuantileDMatrix(
        x, y, qid=np.repeat(np.arange(len(starts)), np.diff([*starts, len(y)])), max_bin=config.training.max_bins
    )
    booster = xgboost.train(boosting.boosting_parameters(config), matrix, num_boost_round=fitted.n_trees)
    test_x, test_y, test_qid = plain("test")
    scores = booster.inplace_predict(test_x)
    ends = np.flatnonzero(np.diff(test_qid)) + 1
    theirs = ranking_metrics(np.split(test_y, ends), np.split(scores, ends))["ndcg@10"].value
    assert splits.test is not None
    own_x = np.concatenate([np.stack([one.features[str(i)] for i in range(1, 47)], 1) for one in splits.test.lists])
    own = fitted.booster.inplace_predict(own_x, iteration_range=(0, fitted.n_trees))
    np.testing.assert_array_equal(own, scores)
    ours = ranking_metrics(splits.test.labels, np.split(own, ends))["ndcg@10"].value
    assert ours == theirs

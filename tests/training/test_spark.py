"""A ranker grown by Spark: with one worker the trees of the local engine, and the same bundle."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import ConfigError
from models.manifest import Contents
from models.ranking import RankingModel
from models.session import OnnxSession
from tests.silent import Silent
from training import ranking
from training.config import RankingConfig, parse
from training.fit import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")


def config(**training: Any) -> RankingConfig:
    settings = {"n_trees": 25, "patience": 6, "learning_rate": 0.2, "max_depth": 3, "n_threads": 1, **training}
    raw = {"task": "ranking", "model": {"kind": "xgboost"}, "training": {**settings, "monotone": {"1": 1}}}
    return RankingConfig.model_validate(raw)


def write(path: Path, seed: int, n_queries: int) -> None:
    rng = np.random.default_rng(seed)
    lines = []
    for query in range(n_queries):
        for x in rng.normal(size=(10, 4)):
            label = int(np.clip(np.round(x[0] - x[1] + rng.normal(0, 0.5)), 0, 3))
            pairs = [f"{place}:{value:.5f}" for place, value in enumerate(x, start=1) if rng.random() > 0.1]
            lines.append(f"{label} qid:{query} {' '.join(pairs)}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed")
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java to run Spark")
def test_one_worker_grows_the_trees_of_the_local_engine_and_writes_the_same_bundle(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", 1, 60)
    write(tmp_path / "valid.txt", 2, 20)
    splits = ranking.read(tmp_path, config())
    recorder = Silent()
    by_spark = config(engine="spark", spark_master="local[2]")
    local, spark = (
        ranking.fit(one, splits, recorder, Checkpoint(tmp_path / "none", "")) for one in (config(), by_spark)
    )
    assert recorder.said[-1] == "growing trees by Spark on local[2], workers: 1"
    assert spark.parameters() == local.parameters()
    written: list[tuple[Contents, np.ndarray]] = []
    for name, fitted in (("local", local), ("spark", spark)):
        (tmp_path / name).mkdir()
        contents = fitted.write(tmp_path / name)
        encoded = [RankingModel(contents).encode(one) for one in splits.valid.lists]
        features = np.concatenate([one.arrays["features"] for one in encoded])
        scores = OnnxSession(tmp_path / name / "model.onnx").run({"features": features})["score"]
        source = np.concatenate([one["score"] for one in fitted.outputs(encoded)])
        np.testing.assert_array_equal(scores, source)
        written.append((contents, scores))
    assert written[0][0] == written[1][0]
    np.testing.assert_array_equal(written[0][1], written[1][1])


def test_settings_of_spark_are_refused_where_the_engine_is_local() -> None:
    raw = {"task": "ranking", "model": {"kind": "xgboost"}, "training": {"n_workers": 2}}
    with pytest.raises(ConfigError, match="n_workers and spark_master are for engine spark"):
        parse(raw, "ranking")

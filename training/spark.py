"""Growing the trees of a ranker by Spark: the rows are shared among tasks, the booster is the one XGBoost gives anyway.

The rows go to Spark as a Parquet file in a temporary directory: tasks on other machines need that directory (TMPDIR)
to be on a file system that all of them share.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost

from models.errors import InputError
from training.config import RankingTraining
from training.fit import Recorder

if TYPE_CHECKING:
    from training.boosting import Judged

_LABEL, _QUERY, _IS_VALID = "label", "query", "is_valid"


def grow(
    training: RankingTraining, parameters: Mapping[str, Any], train: Judged, valid: Judged, recorder: Recorder
) -> xgboost.Booster:
    """Grow trees as `xgboost.train` with these parameters does; with one worker they are the same trees.

    More workers sum their histograms, whose last bits differ, and take the sample of pairs and rows each on its own.
    InputError where pyspark or Java is not installed.
    """
    with _session(training.spark_master) as session, tempfile.TemporaryDirectory(prefix="rankyard-spark-") as directory:
        # Beside a session: pyspark is an extra.
        from xgboost.spark import SparkXGBRanker

        path = Path(directory) / "rows.parquet"
        names = _write(path, train, valid)
        recorder.say(f"growing trees by Spark on {session.sparkContext.master}, workers: {training.n_workers}")
        ranker = SparkXGBRanker(
            features_col=names,
            label_col=_LABEL,
            qid_col=_QUERY,
            validation_indicator_col=_IS_VALID,
            n_estimators=training.n_trees,
            early_stopping_rounds=training.patience,
            num_workers=training.n_workers,
            missing=float("nan"),
            # A task has the cores that spark.task.cpus gives it.
            **{name: value for name, value in parameters.items() if name not in {"nthread", "lambda"}},
            reg_lambda=parameters["lambda"],
        )
        booster: xgboost.Booster = ranker.fit(session.read.parquet(str(path))).get_booster()
    booster.feature_names = None
    return booster


def _write(path: Path, train: Judged, valid: Judged) -> list[str]:
    """Write both splits as rows; gives the names of the columns of features."""
    n_train = len(train.labels)
    features_NF = (train.features, valid.features)
    names = [f"f{column}" for column in range(train.features.shape[1])]
    columns = {name: np.concatenate([one[:, column] for one in features_NF]) for column, name in enumerate(names)}
    columns[_LABEL] = np.concatenate([train.labels, valid.labels])
    columns[_QUERY] = np.concatenate([train.query_numbers, valid.query_numbers + train.query_numbers[-1] + 1])
    columns[_IS_VALID] = np.arange(len(columns[_LABEL])) >= n_train
    pq.write_table(pa.table(columns), path)
    return names


@contextmanager
def _session(master: str | None) -> Iterator[Any]:
    """Give the session that runs already, or one of our own, which ends with the block."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ModuleNotFoundError as error:
        raise InputError("training.engine spark needs pyspark; pip install 'rankyard[spark]'") from error
    running = SparkSession.getActiveSession()
    if running is not None:
        yield running
        return
    # Tasks must run the Python, and see the packages, of this process.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("rankyard").config("spark.ui.showConsoleProgress", "false")
    if master is not None:
        builder = builder.master(master)
    if master is not None and master.startswith("local"):
        # One machine talks to itself, whatever its name resolves to, and nobody looks at its pages.
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
        builder = builder.config("spark.ui.enabled", "false")
    try:
        session = builder.getOrCreate()
    except (PySparkException, OSError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"training.engine spark needs Java 17 or newer (java, JAVA_HOME), got: {message}") from error
    try:
        yield session
    finally:
        session.stop()

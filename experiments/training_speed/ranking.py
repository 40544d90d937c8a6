"""How fast a ranker is read and trained, each beside the library's own way, in one run; and how much memory it takes.

python -m experiments.training_speed.ranking             writes results/ranking.json, about two minutes
python -m experiments.training_speed.ranking --memory    writes results/ranking_memory.json: 1 M rows, five minutes
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.datasets import load_svmlight_file

from experiments.report import Row, save
from training import ranking
from training.boosting import boosting_parameters
from training.config import RankingConfig
from training.data.splits import RankingRows, Splits
from training.data.svmrank import read_svmrank
from training.fit import Checkpoint

HERE = Path(__file__).parent
N_FEATURES = 136
N_ROWS, N_TRAIN_ROWS, N_MEMORY_ROWS = 200_000, 60_000, 1_000_000
N_TREES, N_REPEATS = 40, 3


class Silent:
    """A recorder that keeps nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""


def main() -> None:
    """Measure speed, or memory in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--in-directory", type=Path, help="what --memory runs in its own process")
    options = parser.parse_args()
    if options.in_directory is not None:
        print(json.dumps(train_directory(options.in_directory)))
        return
    with tempfile.TemporaryDirectory() as directory:
        if options.memory:
            memory(Path(directory))
        else:
            speed(Path(directory))


def speed(directory: Path) -> None:
    """Reading beside scikit-learn, training beside XGBoost on the same matrix."""
    path = directory / "train.txt"
    write(path, N_ROWS, seed=0)
    read_s, theirs_s = alternately(lambda: read_svmrank(path), lambda: load_svmlight_file(str(path), query_id=True))
    rows = read_svmrank(path)
    sizes = np.cumsum([len(labels_D) for labels_D in rows.labels])
    n_train = int(np.searchsorted(sizes, N_TRAIN_ROWS))
    n_valid = int(np.searchsorted(sizes, N_TRAIN_ROWS * 5 // 4))
    splits = Splits(rows.take(np.arange(n_train)), rows.take(np.arange(n_train, n_valid)), None)
    fit_s, plain_s = alternately(
        lambda: ranking.fit(config(), splits, Silent(), Checkpoint(HERE / "none", "")), plain(splits)
    )
    shown: dict[str, Any] = {"served_as": "-", "seeds": [0]}
    quotients = {
        "read, times as fast as scikit-learn": ([b / a for a, b in zip(read_s, theirs_s, strict=True)], 5.0, False),
        "train, times XGBoost's own": ([a / b for a, b in zip(fit_s, plain_s, strict=True)], 1.05, True),
    }
    result = []
    for metric, (values, target, at_most) in quotients.items():
        seconds = statistics.median(read_s if metric.startswith("read") else fit_s)
        n_rows = N_ROWS if metric.startswith("read") else N_TRAIN_ROWS
        result.append(
            Row(
                f"generated, {n_rows:,} x {N_FEATURES}",
                "ranking_xgboost",
                metric,
                statistics.median(values),
                min(values),
                max(values),
                seconds=seconds,
                target=target,
                at_most=at_most,
                **shown,
            )
        )
    times = {
        "read_s": read_s,
        "sklearn_s": theirs_s,
        "fit_s": fit_s,
        "xgboost_s": plain_s,
        "file_bytes": path.stat().st_size,
    }
    save(HERE / "results" / "ranking.json", result, "python -m experiments.training_speed.ranking", times=times)
    show(result)
    print(times)


def memory(directory: Path) -> None:
    """Train on 1 M rows in a process of its own, and ask the system for its peak."""
    write(directory / "train.txt", N_MEMORY_ROWS, seed=0)
    write(directory / "valid.txt", N_MEMORY_ROWS // 50, seed=1)
    command = [sys.executable, "-m", "experiments.training_speed.ranking", "--in-directory", str(directory)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE.parent.parent)
    found = json.loads(done.stdout.splitlines()[-1])
    peak_gib = found["peak_bytes"] / 2**30
    row = Row(
        f"generated, {N_MEMORY_ROWS:,} x {N_FEATURES}",
        "ranking_xgboost",
        "peak memory, GiB",
        peak_gib,
        peak_gib,
        peak_gib,
        seeds=[0],
        seconds=found["read_s"] + found["fit_s"],
        served_as="-",
        target=3.0,
        at_most=True,
    )
    command_shown = "python -m experiments.training_speed.ranking --memory"
    save(HERE / "results" / "ranking_memory.json", [row], command_shown, found=found)
    show([row])
    print(found)


def train_directory(directory: Path) -> dict[str, float]:
    """Read and train, and give seconds and peaks."""
    began = time.perf_counter()
    splits = ranking.read(directory, config())
    read = time.perf_counter()
    peak_reading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    fitted: Any = ranking.fit(config(), splits, Silent(), Checkpoint(HERE / "none", ""))
    fit = time.perf_counter()
    fitted.write(directory)
    return {
        "peak_reading_bytes": peak_reading,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "read_s": round(read - began, 2),
        "fit_s": round(fit - read, 2),
        "file_bytes": (directory / "train.txt").stat().st_size,
    }


def config() -> RankingConfig:
    training = {"n_trees": N_TREES, "patience": N_TREES, "seed": 0}
    return RankingConfig.model_validate({"task": "ranking", "model": {"kind": "xgboost"}, "training": training})


def plain(splits: Splits[RankingRows]) -> Callable[[], xgboost.Booster]:
    """Give what a person would write who has the matrices already, with the same settings."""
    matrices = []
    for rows in (splits.train, splits.valid):
        features_NF = np.concatenate([np.stack([*one.features.values()], axis=1) for one in rows.lists])
        numbers_N = np.repeat(np.arange(len(rows)), [len(labels_D) for labels_D in rows.labels])
        matrices.append((features_NF, np.concatenate(rows.labels), numbers_N))

    def train() -> xgboost.Booster:
        (x, y, qid), (valid_x, valid_y, valid_qid) = matrices
        return xgboost.train(
            boosting_parameters(config()),
            xgboost.QuantileDMatrix(x, y, qid=qid),
            num_boost_round=N_TREES,
            evals=[(xgboost.DMatrix(valid_x, valid_y, qid=valid_qid), "valid")],
            early_stopping_rounds=N_TREES,
            verbose_eval=False,
        )

    return train


def alternately(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Seconds of each, by turns, so that a busy moment strikes both; a first turn of each is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(N_REPEATS + 1):
        for done, call in zip(seconds, (first, second), strict=True):
            began = time.perf_counter()
            call()
            if turn:
                done.append(round(time.perf_counter() - began, 3))
    return seconds


def write(path: Path, n_rows: int, seed: int) -> None:
    """Lists of 80 to 160 documents as LETOR has them: counts, and real numbers of six digits."""
    rng = np.random.default_rng(seed)
    formats = [f"{place}:%d" if place <= 60 else f"{place}:%.6g" for place in range(1, N_FEATURES + 1)]
    line = "%d qid:%d " + " ".join(formats) + "\n"
    query, left = 0, 0
    weights_F: NDArray[np.float64] = np.random.default_rng(99).normal(size=N_FEATURES) / 100
    with path.open("w") as file:
        for start in range(0, n_rows, 5000):
            values = rng.gamma(1, 10, size=(min(5000, n_rows - start), N_FEATURES))
            values[:, :60] = np.round(values[:, :60])
            labels = np.clip(np.round(values @ weights_F + rng.normal(0, 1, len(values))), 0, 4)
            for label, row in zip(labels.tolist(), values.tolist(), strict=True):
                if not left:
                    query, left = query + 1, int(rng.integers(80, 161))
                left -= 1
                file.write(line % (label, query, *row))


def show(rows: list[Row]) -> None:
    for row in rows:
        print(f"{row.data:<30} {row.metric:<40} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}] target {row.target}")


if __name__ == "__main__":
    main()

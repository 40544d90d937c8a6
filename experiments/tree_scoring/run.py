"""Scoring lists by 300 trees of depth 6 over 46 features: rankyard beside ONNX Runtime, XGBoost in place, and treelite.

python -m experiments.tree_scoring.run [--treelite PYTHON]    writes results/scoring.json, about a minute

All on one thread, in turns, other rows at every call; `--treelite` is an interpreter that has treelite. Figures are
medians of microseconds of processor time a list, which other work on the machine disturbs least. Every score is
compared: those of ONNX Runtime, XGBoost and rankyard bit by bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import xgboost
from numpy.typing import NDArray

from experiments.report import Row, save
from models.session import OnnxSession
from models.trees import read_trees
from serving.runtime.booster import BoosterScorer
from serving.runtime.compiled import CompiledScorer
from serving.runtime.scorers import CALIBRATION_S, SIZES, OnnxScorer, SizedScorer, calibrate, proof_rows
from training.trees import export_trees

HERE = Path(__file__).parent
N_TREES, N_FEATURES, N_ROWS = 300, 46, 20_000
LENGTHS = (1, 10, 100, 1_000, 10_000)
N_ROUNDS = 7
CALL_S = 0.02
"""One measurement of a contestant takes about so long: short lists are scored many times."""

Score = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def main() -> None:
    """Measure lists without and with missing values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--treelite", type=Path, help="a Python interpreter with treelite")
    options = parser.parse_args()
    rows, details = [], {}
    with tempfile.TemporaryDirectory() as directory:
        for name, part_missing in (("complete", 0.0), ("5 % missing", 0.05)):
            found = measure(Path(directory), part_missing, options.treelite)
            details[name] = found
            rows += [row(name, n_documents, times) for n_documents, times in found["times_us"].items()]
    save(HERE / "results" / "scoring.json", rows, "python -m experiments.tree_scoring.run --treelite PYTHON", **details)


def measure(directory: Path, part_missing: float, treelite: Path | None) -> dict:
    """Times of every contestant at every length, microseconds a list: length -> contestant -> one a round."""
    features_NF, booster = grow(part_missing)
    booster.save_model(directory / "model.json")
    np.save(directory / "features.npy", features_NF)
    onnx.save_model(export_trees(booster), str(directory / "model.onnx"))
    sized = ours(directory / "model.onnx")
    session = plain_session(directory / "model.onnx")
    contestants: dict[str, Score] = {
        "rankyard": lambda block: sized.run({"features": block})["score"],
        "onnxruntime": lambda block: session.run(None, {"features": block})[0],
        "xgboost": booster.inplace_predict,
    }
    for name, score in contestants.items():
        assert score(features_NF).tobytes() == booster.inplace_predict(features_NF).tobytes(), name
    times: dict[int, dict[str, list[float]]] = {}
    peer = None if treelite is None else Peer(treelite, directory)
    for n_documents in LENGTHS:
        n_calls = max(1, min(N_ROWS // n_documents, round(CALL_S / (20e-6 + 10e-6 * n_documents))))
        times[n_documents] = {name: [] for name in (*contestants, *(["treelite"] if peer else []))}
        for turn in range(N_ROUNDS):
            first = (turn * 37) % (N_ROWS - n_documents * n_calls + 1)
            for name, score in contestants.items():
                blocks = [features_NF[first + i * n_documents :][:n_documents] for i in range(n_calls)]
                started = time.thread_time()
                for block in blocks:
                    score(block)
                times[n_documents][name].append((time.thread_time() - started) / n_calls * 1e6)
            if peer is not None and turn < 3:
                times[n_documents]["treelite"].append(peer.seconds(first, n_documents, min(n_calls, 20)) * 1e6)
        shown = {name: round(statistics.median(values), 1) for name, values in times[n_documents].items()}
        print(f"{part_missing:.0%} missing, {n_documents} documents: {shown}", flush=True)
    return {"scorers": str(sized), "times_us": times}


def grow(part_missing: float) -> tuple[NDArray[np.float32], xgboost.Booster]:
    """A ranker on generated lists of 20, grown with missing values, and the lists to score."""
    random = np.random.default_rng(0)
    features = random.random((N_ROWS, N_FEATURES), dtype=np.float32)
    value = features @ random.normal(size=N_FEATURES) + 2 * np.sin(6 * features[:, 0]) + random.normal(size=N_ROWS) / 2
    labels = np.digitize(value, np.quantile(value, [0.5, 0.75, 0.9]))
    features[random.random(features.shape) < part_missing] = np.nan
    matrix = xgboost.QuantileDMatrix(features, labels, qid=np.arange(N_ROWS) // 20)
    parameters = {"objective": "rank:ndcg", "max_depth": 6, "learning_rate": 0.1, "tree_method": "hist", "nthread": 1}
    booster = xgboost.train(parameters, matrix, N_TREES)
    booster.set_param({"nthread": 1})
    return features, booster


def ours(file: Path) -> SizedScorer:
    """What a gateway has after loading these trees."""
    trees = read_trees(file)
    assert trees is not None
    known = [OnnxScorer(OnnxSession(file)), BoosterScorer(trees), CompiledScorer(trees)]
    return SizedScorer(*calibrate(known, proof_rows(trees, SIZES[-1]), CALIBRATION_S))


def plain_session(file: Path) -> ort.InferenceSession:
    """ONNX Runtime as one would open it for one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class Peer:
    """treelite, in a process of the interpreter that has it."""

    def __init__(self, python: Path, directory: Path) -> None:
        arguments = [str(python), str(HERE / "peer.py"), str(directory / "model.json"), str(directory / "features.npy")]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, first: int, n_documents: int, n_calls: int) -> float:
        """Of one list, the mean of `n_calls`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([first, n_documents, n_calls]) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline())[0])


def row(data: str, n_documents: int, times: dict[str, list[float]]) -> Row:
    """Our time by the best peer's, in the median over rounds; both of one round saw the same machine."""
    peers = [name for name in times if name != "rankyard"]
    best = min(peers, key=lambda name: statistics.median(times[name]))
    ratios = sorted(a / b for a, b in zip(times["rankyard"], times[best], strict=False))
    return Row(
        data=f"300 trees, {data}",
        configuration=f"{n_documents} documents",
        metric=f"time, times that of {best}",
        value=statistics.median(ratios),
        low=ratios[0],
        high=ratios[-1],
        seeds=[0],
        seconds=statistics.median(times["rankyard"]) / 1e6,
        served_as="float32",
        target=1.05,
        at_most=True,
    )


if __name__ == "__main__":
    main()

"""Scoring alone: what a bundle's trees cost in this project's runtime and in other libraries, over sizes of the list.

python -m experiments.serving_limit.scorers BUNDLE BOOSTER CACHE SIZES SECONDS REPETITIONS    prints JSON

Runs in an environment that has the other libraries too, all scorers in turns, each on one thread.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import xgboost
from numpy.typing import NDArray

from experiments.serving_limit.lightgbm_text import lightgbm_text
from models.session import OnnxSession
from registry.bundle import open_bundle
from serving.runtime.scorers import choose

Score = Callable[[NDArray[np.float32]], Any]

OURS = "rankyard"
_MISSING = 0.05
_CELLS = 4_000_000


def scorers(bundle: Path, booster_file: Path, cache: Path) -> dict[str, Score]:
    """Give every way to score a matrix [D, F] float32 with NaN, by its name."""
    import lleaves  # the others' own environment has these alone
    import tl2cgen
    import treelite

    opened = open_bundle(bundle)
    path = opened.model_file(opened.variant)
    onnx = OnnxSession(path)
    chosen = choose(opened, path, onnx, None)
    ours = onnx.run if chosen is None else chosen.run
    print(f"rankyard scores by {chosen or 'onnx'}", file=sys.stderr)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    booster = xgboost.Booster(model_file=str(booster_file))
    booster.set_param({"nthread": 1})
    model = treelite.frontend.load_xgboost_model(str(booster_file))
    digest = hashlib.sha256(booster_file.read_bytes()).hexdigest()[:12]
    compiled = cache / f"trees-{digest}.so"
    if not compiled.exists():
        tl2cgen.export_lib(model, toolchain="gcc", libpath=str(compiled), params={"parallel_comp": 8})
    predictor = tl2cgen.Predictor(str(compiled), nthread=1)
    text = cache / f"trees-{digest}.txt"
    text.write_text(lightgbm_text(json.loads(booster_file.read_text())))
    llvm = lleaves.Model(model_file=str(text))
    llvm.compile(cache=str(cache / f"trees-{digest}.elf"))
    return {
        OURS: lambda features_DF: ours({"features": features_DF})["score"],
        "onnxruntime": lambda features_DF: session.run(None, {"features": features_DF})[0],
        "xgboost": lambda features_DF: booster.inplace_predict(features_DF),
        "treelite": lambda features_DF: treelite.gtil.predict(model, features_DF, nthread=1),
        "tl2cgen": lambda features_DF: predictor.predict(tl2cgen.DMatrix(features_DF)),
        "lleaves": lambda features_DF: llvm.predict(features_DF, n_jobs=1),
    }


def measured(ways: dict[str, Score], n_features: int, size: int, seconds: float, repetitions: int) -> dict[str, Any]:
    """Milliseconds of a call of each way, a median for every repetition, and the largest difference from XGBoost."""
    generator = np.random.default_rng(size)
    n_lists = max(2, min(64, _CELLS // (size * n_features)))
    lists = generator.random((n_lists, size, n_features), dtype=np.float32)
    lists[generator.random(lists.shape) < _MISSING] = np.nan
    expected = np.asarray(ways["xgboost"](lists[0])).reshape(-1)
    found: dict[str, Any] = {name: {"ms": []} for name in ways}
    for name, score in ways.items():
        scores = np.asarray(score(lists[0]), dtype=np.float64).reshape(-1)
        found[name]["difference"] = float(np.abs(scores - expected).max())
    for repetition in range(repetitions):
        for name in list(ways)[:: -1 if repetition % 2 else 1]:
            found[name]["ms"].append(_median_ms(ways[name], lists, seconds))
    return found


def _median_ms(score: Score, lists: NDArray[np.float32], seconds: float) -> float:
    times_s: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s or len(times_s) < 3:
        features_DF = lists[len(times_s) % len(lists)]
        begin_s = time.perf_counter()
        score(features_DF)
        times_s.append(time.perf_counter() - begin_s)
    return float(np.median(times_s)) * 1e3


def main() -> None:
    """Measure as the command line says."""
    bundle, booster, cache, sizes, seconds, repetitions = sys.argv[1:]
    ways = scorers(Path(bundle), Path(booster), Path(cache))
    n_features = len(open_bundle(Path(bundle)).manifest.features or ())
    found = {size: measured(ways, n_features, int(size), float(seconds), int(repetitions)) for size in sizes.split(",")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

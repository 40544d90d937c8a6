"""Scoring alone: what a bundle's trees cost in this project's runtime and in other libraries, over sizes of the list.

python -m experiments.serving_limit.scorers BUNDLE BOOSTER CACHE LLEAVES SIZES SECONDS REPETITIONS    prints JSON

Runs in an environment that has the other libraries too; lleaves is asked in that of the interpreter LLEAVES. Each in
its turn, on one thread.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import xgboost
from numpy.typing import NDArray

from experiments.serving_limit.lightgbm_text import lightgbm_text
from experiments.serving_limit.lists import Score, made, median_ms
from models.session import OnnxSession
from registry.bundle import open_bundle
from serving.runtime.scorers import choose

OURS = "rankyard"

Measure = Callable[[int, float], tuple[float, NDArray[np.float64]]]
"""From the size of the lists and seconds to the median call in milliseconds, and the first list's scores."""


def scorers(bundle: Path, booster_file: Path, cache: Path, lleaves: str) -> dict[str, Measure]:
    """Give every way to score a matrix [D, F] float32 with NaN, by its name."""
    import tl2cgen  # the others' own environment has these alone
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
    n_features = len(opened.manifest.features or ())
    here: dict[str, Score] = {
        OURS: lambda features_DF: ours({"features": features_DF})["score"],
        "onnxruntime": lambda features_DF: session.run(None, {"features": features_DF})[0],
        "xgboost": lambda features_DF: booster.inplace_predict(features_DF),
        "treelite": lambda features_DF: treelite.gtil.predict(model, features_DF, nthread=1),
        "tl2cgen": lambda features_DF: predictor.predict(tl2cgen.DMatrix(features_DF)),
    }
    elsewhere = [lleaves, "-m", "experiments.serving_limit.llvm", str(text), str(text.with_suffix(".elf"))]
    return {
        **{name: measured_here(score, n_features) for name, score in here.items()},
        "lleaves": measured_elsewhere([*elsewhere, str(n_features)]),
    }


def measured_here(score: Score, n_features: int) -> Measure:
    """Measure a scorer in this process."""

    def measure(size: int, seconds: float) -> tuple[float, NDArray[np.float64]]:
        lists = made(size, n_features)
        return median_ms(score, lists, seconds), np.asarray(score(lists[0]), dtype=np.float64).reshape(-1)

    return measure


def measured_elsewhere(command: list[str]) -> Measure:
    """Measure a scorer in a process that answers lines of `SIZE SECONDS`; it ends with this one."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(size: int, seconds: float) -> tuple[float, NDArray[np.float64]]:
        assert process.stdin is not None
        assert process.stdout is not None
        print(size, seconds, file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline())
        return answer["ms"], np.array(answer["scores"])

    return measure


def measured(ways: dict[str, Measure], size: int, seconds: float, repetitions: int) -> dict[str, Any]:
    """Milliseconds of a call of each way, a median for every repetition, and the largest difference from XGBoost."""
    expected = ways["xgboost"](size, 0)[1]
    found: dict[str, Any] = {
        name: {"ms": [], "difference": float(np.abs(way(size, 0)[1] - expected).max())} for name, way in ways.items()
    }
    for repetition in range(repetitions):
        for name in list(ways)[:: -1 if repetition % 2 else 1]:
            found[name]["ms"].append(ways[name](size, seconds)[0])
    return found


def main() -> None:
    """Measure as the command line says."""
    bundle, booster, cache, lleaves, sizes, seconds, repetitions = sys.argv[1:]
    ways = scorers(Path(bundle), Path(booster), Path(cache), lleaves)
    found = {size: measured(ways, int(size), float(seconds), int(repetitions)) for size in sizes.split(",")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

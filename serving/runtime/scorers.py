"""Who scores a list of trees, chosen by its length: every scorer is proved equal, then timed, when a model is loaded.

Legend: D documents, F features.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.errors import ConfigError, ParityError, RankyardError
from models.session import OnnxSession
from models.trees import Trees, read_trees
from registry import golden
from registry.bundle import Bundle
from serving.runtime.booster import BoosterScorer
from serving.runtime.compiled import CompiledScorer

SIZES = tuple(2**power for power in range(11))
"""Lengths of list at which scorers are timed; a longer list is scored as the longest of them."""
CALIBRATION_S = 0.2
_N_PROOF = 256
_N_ROUNDS, _MOST_ROUNDS = 3, 9
"""How often a size is timed; short lists more often, as a busy machine disturbs them more than it costs."""

_OTHERS = (BoosterScorer, CompiledScorer)
"""Scorers beside ONNX Runtime, which is the measure of all."""

_log = logging.getLogger("rankyard.gateway")

Run = Callable[[Arrays], dict[str, NDArray[np.generic]]]


class Scorer(Protocol):
    """Scores a matrix of candidates; `tests/conformance/test_scorers.py` runs against every implementation."""

    name: str

    def run(self, arrays: Arrays) -> dict[str, NDArray[np.generic]]:
        """As a session does: `score` [D] of `features` [D, F] float32, missing as NaN, each row by itself.

        Several threads may call at once.
        """


class OnnxScorer:
    """ONNX Runtime on the calling thread."""

    name = "onnx"

    def __init__(self, session: OnnxSession) -> None:
        self.run = session.run


class SizedScorer:
    """The fastest scorer of each length: `scorers[i]` up to `sizes[i]` documents, the last beyond."""

    def __init__(self, sizes: Sequence[int], scorers: Sequence[Scorer]) -> None:
        self.sizes = tuple(sizes)
        self.scorers = tuple(scorers)
        self._runs = [scorer.run for scorer in (*scorers, scorers[-1])]

    def run(self, arrays: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run one batch, as a session does."""
        return self._runs[bisect_left(self.sizes, len(arrays["features"]))](arrays)

    def __str__(self) -> str:
        """Who scores from which length on: `onnx from 1, xgboost from 32`."""
        changes = [
            f"{scorer.name} from {before + 1}"
            for before, scorer, previous in zip((0, *self.sizes), self.scorers, (None, *self.scorers), strict=False)
            if scorer is not previous
        ]
        return ", ".join(changes)


def choose(bundle: Bundle, model_file: Path, session: OnnxSession, allowed: Sequence[str] | None) -> SizedScorer | None:
    """Find the fastest scorer of each length among those that give exactly the scores of `session`.

    allowed: names of scorers, None for all that are installed. None where there is nothing to choose: the model is
    none of trees, or ONNX Runtime alone is there. One that is not equal, or that cannot hold the trees, is left out and
    said in the log; where it was named, that is an error: ConfigError, ParityError or RankyardError.
    """
    # A library is loaded only where there may be trees: it takes 30 MB.
    if bundle.manifest.features is None or (trees := read_trees(model_file)) is None:
        return None
    makers = [make for make in _OTHERS if (make.is_installed() if allowed is None else make.name in allowed)]
    if not makers:
        return None
    onnx = OnnxScorer(session)
    rows_DF = proof_rows(trees, SIZES[-1])
    equal: list[Scorer] = [onnx]
    for make in makers:
        if not make.is_installed():
            raise ConfigError(
                f"runtime.scorers may name {make.name} only where it is installed, it is not; pip install "
                f"'rankyard[{make.name}]', or leave it out",
                field="runtime.scorers",
            )
        try:
            scorer = make(trees)
            _prove(bundle, scorer, onnx, rows_DF[:_N_PROOF])
            equal.append(scorer)
        except RankyardError as error:
            if allowed is not None:
                raise
            _log.warning("%s is not scored by %s: %s", bundle.path, make.name, error.message)
    return SizedScorer(*calibrate(equal, rows_DF, CALIBRATION_S))


def proof_rows(trees: Trees, n_rows: int) -> NDArray[np.float32]:
    """Rows [n_rows, F] where scorers would differ if they can: at thresholds, just below and between them, and missing.

    The same rows for the same trees.
    """
    random = np.random.default_rng(0)
    rows_DF = np.zeros((n_rows, trees.n_features), np.float32)
    branches = ~trees.is_leaf
    for feature in range(trees.n_features):
        thresholds = trees.thresholds[branches & (trees.features == feature)]
        if len(thresholds):
            picked = random.choice(thresholds, n_rows)
            below = np.nextafter(picked, np.float32(-np.inf))
            rows_DF[:, feature] = np.where(random.random(n_rows) < 0.5, picked, below)
    rows_DF[random.random(rows_DF.shape) < 0.1] = np.nan
    return rows_DF


def _prove(bundle: Bundle, scorer: Scorer, reference: Scorer, rows_DF: NDArray[np.float32]) -> None:
    """Refuse a scorer that differs from the reference by a bit, on the golden rows or on `rows_DF`; ParityError."""
    matrices = [np.asarray(row.encoded.arrays["features"], np.float32) for row in golden.read(bundle)]
    for features_DF in (*matrices, rows_DF, rows_DF[:1]):
        expected, found = (one.run({"features": features_DF})["score"] for one in (reference, scorer))
        if expected.tobytes() != found.tobytes():
            difference = float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max())
            raise ParityError(
                f"scores of {scorer.name} must be equal to {reference.name}'s bit by bit, they differ by up to "
                f"{difference:.3g}; leave {scorer.name} out of runtime.scorers"
            )


def calibrate(
    scorers: Sequence[Scorer], rows_DF: NDArray[np.float32], most_s: float
) -> tuple[tuple[int, ...], tuple[Scorer, ...]]:
    """Time every scorer at each of SIZES, in turns; gives the sizes, and of each the fastest scorer.

    Times are the calling thread's own: a wait for a busy processor would choose the wrong scorer for good.
    A size that cannot be timed once more within `most_s` seconds in all is left out, and those above it: they go by the
    largest one that was.
    """
    started = time.thread_time()
    sizes, fastest = [], []
    for size in SIZES:
        spent = time.thread_time() - started
        best = dict.fromkeys(range(len(scorers)), math.inf)
        n_rounds = min(max(_N_ROUNDS, SIZES[-1] // size), _MOST_ROUNDS)
        for turn in range(n_rounds):
            if turn and time.thread_time() - started > most_s:
                break
            for place, scorer in enumerate(scorers):
                # Other rows each time: a processor learns the way that one row takes.
                first = (turn * size) % (len(rows_DF) - size + 1)
                arrays = {"features": rows_DF[first : first + size]}
                begun = time.thread_time()
                scorer.run(arrays)
                best[place] = min(best[place], time.thread_time() - begun)
        sizes.append(size)
        fastest.append(scorers[min(best, key=best.__getitem__)])
        took = time.thread_time() - started - spent
        # The next size has up to four times as many rows.
        if time.thread_time() - started + 4 * took / n_rounds > most_s:
            break
    return tuple(sizes), tuple(fastest)

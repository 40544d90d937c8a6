"""How long an answer takes in process: from text to label, and inside the model alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays, Encoded, collate, split
from models.manifest import Contents, Signature
from models.model import Model
from models.ranking import RankRequest
from models.session import OnnxSession
from registry.evaluation import Latency
from training.data.splits import RankingRows
from training.evaluate import AnyRows, Run

BATCH_SIZES = (1, 8, 32)
LIST_SIZES = (10, 100, 1000)

_ROUND_S = 0.05
_N_ROUNDS = 9
_N_CALLS = 200
_BUDGET_S = 1.2  # for each size: below 5 s in all
_POOL = 512


def latency(model: Model, contents: Contents, run: Run, rows: AnyRows, *, seed: int) -> dict[str, Latency]:
    """Time calls of `batch_1`, `batch_8`, `batch_32` texts or `list_10`, `list_100`, `list_1000` documents.

    Requests are drawn from `rows` by `seed`; `run` should use one thread, so that figures of two machines or models
    compare. {} where there are no rows.
    """
    generator = np.random.default_rng(seed)
    if not len(rows):
        return {}
    if isinstance(rows, RankingRows):
        return {
            f"list_{size}": _time(model, contents, run, [_list_of(size, rows, generator)], 1) for size in LIST_SIZES
        }
    drawn = generator.choice(len(rows), size=min(len(rows), _POOL), replace=False)
    requests = rows.take(drawn).requests()
    return {f"batch_{size}": _time(model, contents, run, requests, size) for size in BATCH_SIZES}


def side_by_side(
    files: Mapping[str, Path], encoded: Sequence[Encoded], signature: Signature
) -> dict[str, dict[str, float]]:
    """Milliseconds in ONNX Runtime of several models on the same batches: name -> `CORES_batch_SIZE` -> median.

    Timed are 1, 8 and 32 requests of median length (lists, which are batches already: 1) on one core, in time of the
    processor, which other programs do not lengthen, and the largest batch on all cores. The models take turns, so that
    what slows the machine slows all of them.
    """
    by_length = sorted(encoded, key=lambda one: one.length)
    if not by_length:
        return {}
    middle = len(by_length) // 2
    sizes = BATCH_SIZES if signature.layout == "rows" else (1,)
    figures: dict[str, dict[str, float]] = {name: {} for name in files}
    for cores, n_threads in (("one_core", 1), ("all_cores", 0)):
        runs = {name: OnnxSession(path, n_threads=n_threads).run for name, path in files.items()}
        for size in sizes if n_threads else sizes[-1:]:
            first = max(0, min(middle - size // 2, len(by_length) - size))
            batch = collate(list(islice(cycle(by_length[first:]), size)), signature)
            for name, times_s in _in_turns(runs, batch, time.thread_time if n_threads else time.perf_counter).items():
                figures[name][f"{cores}_batch_{size}"] = float(np.median(times_s) * 1e3)
    return figures


def _in_turns(runs: Mapping[str, Run], batch: Arrays, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of a call, round by round; a round has as many calls as the fastest model makes in 50 ms."""
    n_calls = 1
    for warm in runs.values():
        begin = clock()
        warm(batch)
        warm(batch)
        n_calls = max(n_calls, min(20, int(_ROUND_S / (clock() - begin) * 2)))
    times_s: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_N_ROUNDS):
        for name, run in runs.items():
            begin = clock()
            for _ in range(n_calls):
                run(batch)
            times_s[name].append((clock() - begin) / n_calls)
    return times_s


def _time(model: Model, contents: Contents, run: Run, requests: Sequence[Any], batch_size: int) -> Latency:
    """Call with ever other requests until the budget is spent; the first call, which warms up, counts only if alone."""
    queue = cycle(requests)
    begin = time.perf_counter()
    times = [_call(model, contents, run, list(islice(queue, batch_size)))]
    while len(times) <= _N_CALLS and time.perf_counter() - begin < _BUDGET_S:
        times.append(_call(model, contents, run, list(islice(queue, batch_size))))
    warm = np.array(times[1:] or times) * 1e3
    (total_p50, model_p50), (total_p95, model_p95) = np.percentile(warm, [50, 95], axis=0)
    return Latency(
        n_calls=len(warm),
        total_p50_ms=total_p50,
        total_p95_ms=total_p95,
        model_p50_ms=model_p50,
        model_p95_ms=model_p95,
    )


def _call(model: Model, contents: Contents, run: Run, requests: Sequence[Any]) -> tuple[float, float]:
    """Seconds of one call in all, and of the model alone."""
    begin = time.perf_counter()
    encoded = [model.encode(request) for request in requests]
    batch = collate(encoded, contents.signature)
    before = time.perf_counter()
    outputs = run(batch)
    after = time.perf_counter()
    model.decode_batch(requests, encoded, split(outputs, encoded, contents.signature))
    return time.perf_counter() - begin, after - before


def _list_of(n_documents: int, rows: RankingRows, generator: np.random.Generator) -> RankRequest:
    """One list of `n_documents` out of many lists, repeated only where the rows hold too few documents."""
    lists = [rows.lists[i] for i in generator.permutation(len(rows)).tolist()]
    n_needed = int(np.searchsorted(np.cumsum([len(request.ids) for request in lists]), n_documents)) + 1
    lists = lists[:n_needed]
    texts = [text for request in lists for text in request.texts or ()]
    columns: dict[str, NDArray[np.float32]] = {
        name: np.resize(np.concatenate([request.features[name] for request in lists]), n_documents)
        for name in lists[0].features
    }
    return RankRequest(
        ids=tuple(map(str, range(n_documents))),
        text=lists[0].text,
        texts=tuple(islice(cycle(texts), n_documents)) if texts else None,
        features=columns,
        query_features=lists[0].query_features,
    )

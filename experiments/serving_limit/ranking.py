"""Ranking candidates by value: a lone request against its decoding and scoring alone, and scorers by size of list."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import loops
from experiments.environment import fresh, overlay
from experiments.servers import exchange
from experiments.serving_limit.ranker import BOOSTER
from experiments.serving_limit.scorers import OURS
from experiments.serving_limit.study import EMBEDDED, Part, Study
from experiments.turns import in_turns, medians, ratios, row, series
from models.batch import collate
from models.model import open_model
from models.session import OnnxSession
from registry.bundle import open_bundle
from serving.bench.lists import BINARY
from serving.bench.queries import numbers
from serving.bench.traffic import rank, rank_body, requests
from serving.gateway import wire
from serving.gateway.candidates import Reader
from serving.gateway.config import LimitsConfig
from serving.runtime.scorers import choose

_ROOT = Path(__file__).parents[2]
_POOL = 64


def by_value(study: Study) -> Part:
    """Every form that the gateway reads, closed loop and alone."""
    settings = study.config["rank"]
    with study.gateway("shipped", models={"ranking": str(study.ranker)}) as server:
        sent = answered_forms(study, server.url)
        contestants: dict[str, Callable[[], dict[str, Any]]] = {}
        for form, stream in sent.items():
            contestants[f"{form}, many"] = lambda stream=stream: study.closed(
                server.url, stream, settings["concurrency"]
            )
            contestants[f"{form}, 1"] = lambda stream=stream: study.closed(server.url, stream, 1)
            if form != BINARY:
                contestants[f"{form}, alone"] = lambda form=form: alone(study, form)
                contestants[f"{form}, alone by onnx"] = lambda form=form: alone(study, form, by=["onnx"])
        found = in_turns(contestants, study.repetitions)
    data = f"rank, {settings['list_size']} x {study.config['ranker']['features']} by value"
    rows = [
        row(
            data,
            EMBEDDED,
            f"1 caller, by {form}, p50 as times of decoding and scoring {way}",
            ratios(series(found[f"{form}, 1"], "p50_ms"), series(found[f"{form}, {way}"], "p50_ms")),
            target=target,
            at_most=True,
            served_as="float32",
        )
        for form in sent
        if form != BINARY
        for way, target in (("alone", 1.3), ("alone by onnx", None))
    ]
    return Part(rows, {"medians": medians(found, loops.KEYS)})


def answered_forms(study: Study, url: str) -> dict[str, Iterator[bytes]]:
    """Give the requests of every form that is to be measured and that this gateway answers; say which it does not."""
    sent = {form: sent_as(study, url, form) for form in study.config["rank"]["forms"]}
    found = {form: exchange(url, next(stream)) for form, stream in sent.items()}
    for form, (status, body) in found.items():
        if status != 200:
            print(f"  left out: requests by {form}, status {status}: {body[:300]!r}", file=sys.stderr)
    return {form: stream for form, stream in sent.items() if found[form][0] == 200}


def sent_as(study: Study, url: str, form: str) -> Iterator[bytes]:
    """Rank requests of one form, no list twice."""
    features, size = open_bundle(study.ranker).manifest.features or (), study.config["rank"]["list_size"]
    body = rank_body(study.text, features, (size,), form=form, seed=0)
    return requests(rank(url, body, form, model=open_bundle(study.ranker).manifest.name), numbers(0))


def alone(study: Study, form: str, by: Sequence[str] | None = None) -> dict[str, Any]:
    """Milliseconds from a request's bytes to its answer's in this process: what a server cannot do without.

    by: the scorers that may score, None for those of the gateway.
    """
    bundle = open_bundle(study.ranker)
    model: Any = open_model(bundle.path, bundle.manifest)
    file = bundle.model_file(bundle.variant)
    session = OnnxSession(file)
    run = (choose(bundle, file, session, by) or session).run
    reader = Reader(LimitsConfig(), model.sent)
    make = rank_body(
        study.text, bundle.manifest.features or (), (study.config["rank"]["list_size"],), form=form, seed=1
    )
    bodies = [make(number) for number in range(_POOL)]
    times_s: list[float] = []
    end_s = time.perf_counter() + study.config["seconds"] / 2
    while time.perf_counter() < end_s:
        begin_s = time.perf_counter()
        asked = reader.read(bodies[len(times_s) % _POOL]).request
        encoded = model.encode(asked)
        wire.encode(model.decode(asked, encoded, run(collate([encoded], bundle.manifest.signature))))
        times_s.append(time.perf_counter() - begin_s)
    return {"p50_ms": float(np.median(times_s)) * 1e3}


def scoring(study: Study) -> Part:
    """Trees alone: this project's runtime against other libraries, at every size of list."""
    settings = study.config["scoring"]
    python = overlay(study.environments / "scorers", study.config["scorers"])
    lleaves = fresh(study.environments / "lleaves", study.config["lleaves"])
    sizes = ",".join(map(str, settings["sizes"]))
    program = [
        str(python),
        "-m",
        "experiments.serving_limit.scorers",
        str(study.ranker),
        str(study.workspace / BOOSTER),
    ]
    arguments = [str(study.environments), str(lleaves), sizes, str(settings["seconds"]), str(study.repetitions)]
    done = subprocess.run(
        [*program, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    rows, n_ahead = [], 0
    for size, ways in found.items():
        best = min((name for name in ways if name != OURS), key=lambda name: statistics.median(ways[name]["ms"]))
        times = ratios(ways[OURS]["ms"], ways[best]["ms"])
        n_ahead += statistics.median(times) < 1
        metric = f"list of {size}, time as times of the best other, {best}"
        rows.append(
            row("trees alone, 300 x depth 6", "runtime", metric, times, target=1.05, at_most=True, served_as="float32")
        )
    rows.append(
        row(
            "trees alone, 300 x depth 6",
            "runtime",
            "sizes at which nobody is faster",
            [n_ahead],
            target=2,
            served_as="float32",
        )
    )
    ms = {
        size: {name: round(statistics.median(one["ms"]), 4) for name, one in ways.items()}
        for size, ways in found.items()
    }
    differences = {
        name: max(ways[name]["difference"] for ways in found.values()) for name in found[str(settings["sizes"][0])]
    }
    return Part(rows, {"ms": ms, "largest_difference_from_xgboost": differences})

"""The gateway over Triton against Triton's own client straight to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from experiments import loops
from experiments.serving_limit.study import Part, Study
from experiments.turns import in_turns, medians, ratios, row, series
from models.batch import collate
from models.model import open_model
from registry.bundle import open_bundle
from registry.deployment import Published, publish
from serving.triton import server
from serving.triton.repository import deploy
from serving.triton.settings import TritonSettings
from serving.triton.tensors import DATATYPES

NAME = "limit-intent"
_CONFIGURATION = "gateway over Triton"


def over_triton(study: Study) -> Part:
    """Throughput at each number of callers, and what the gateway adds for a lone one."""
    concurrencies = study.config["triton"]["concurrency"]
    bundle = open_bundle(study.intent)
    deployment = study.workspace / "deployment"
    publish(deployment, NAME, {"champion": Published("1", bundle)})
    with _triton(study) as running:
        deploy(deployment, [NAME], study.workspace / "repository", TritonSettings(), f"http://{running.http}")
        runtime = {"kind": "triton", "triton_url": running.grpc}
        models = {"intent": f"{NAME}@champion"}
        with study.gateway("shipped", models=models, deployment=str(deployment), runtime=runtime) as gateway:
            sent = study.queries(gateway.url)
            contestants = {
                f"{who}, {n}": (
                    (lambda n=n: study.closed(gateway.url, sent, n))
                    if who == "gateway"
                    else (lambda n=n: straight(study, running.grpc, n))
                )
                for n in concurrencies
                for who in ("gateway", "straight")
            }
            found = in_turns(contestants, study.repetitions)
    rows = []
    for n in concurrencies:
        ours, theirs = found[f"gateway, {n}"], found[f"straight, {n}"]
        if n == 1:
            added = [a - b for a, b in zip(series(ours, "p50_ms"), series(theirs, "p50_ms"), strict=True)]
            rows.append(row("understand", _CONFIGURATION, "1 caller, ms added at p50", added, target=0.8, at_most=True))
        else:
            parts = ratios(series(ours, "throughput_per_s"), series(theirs, "throughput_per_s"))
            rows.append(
                row("understand", _CONFIGURATION, f"{n} callers, part of tritonclient's throughput", parts, target=0.95)
            )
    return Part(rows, {"medians": medians(found, loops.KEYS)})


def straight(study: Study, address: str, concurrency: int) -> dict[str, Any]:
    """Callers that tokenize, ask Triton by gRPC and read the answer, each a thread with a request at a time."""
    bundle = open_bundle(study.intent)
    model: Any = open_model(bundle.path, bundle.manifest)
    signature = bundle.manifest.signature
    texts, lock = map(study.text, count(int(time.time() * 1000) % 1_000_000 * 7)), threading.Lock()
    client = triton.InferenceServerClient(address)
    begin_s = time.perf_counter() + study.config["warmup_seconds"]
    end_s = begin_s + study.config["seconds"]
    times_s: list[float] = []

    def call() -> None:
        while (now_s := time.perf_counter()) < end_s:
            with lock:
                text = next(texts)
            encoded = model.encode(text)
            arrays = collate([encoded], signature)
            tensors = []
            for spec in signature.inputs:
                tensor = triton.InferInput(spec.name, list(arrays[spec.name].shape), DATATYPES[spec.dtype])
                tensor.set_data_from_numpy(np.ascontiguousarray(arrays[spec.name]))
                tensors.append(tensor)
            answer = client.infer(NAME, tensors, "1")
            model.decode(text, encoded, {spec.name: answer.as_numpy(spec.name)[0] for spec in signature.outputs})
            done_s = time.perf_counter()
            if now_s >= begin_s and done_s < end_s:
                times_s.append(done_s - now_s)

    callers = [threading.Thread(target=call) for _ in range(concurrency)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    client.close()
    p50_ms, p99_ms = np.percentile(times_s, [50, 99]) * 1e3
    return {
        "throughput_per_s": len(times_s) / study.config["seconds"],
        "p50_ms": float(p50_ms),
        "p99_ms": float(p99_ms),
    }


@contextmanager
def _triton(study: Study) -> Iterator[server.Running]:
    directory = study.workspace / "triton"
    try:
        yield server.up(directory, study.workspace / "repository")
    finally:
        server.down(directory)

"""The ways from a text to logits on Triton: who tokenizes, and who joins requests into batches."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton

from models.batch import Arrays, Encoded
from models.manifest import Signature, TensorSpec
from models.model import open_model
from registry.bundle import Bundle
from serving.gateway.batcher import Batcher
from serving.gateway.config import BatchConfig
from serving.gateway.telemetry import Telemetry
from serving.runtime.protocol import ServedModel
from serving.runtime.triton import TritonRuntime
from serving.triton.config import config_pbtxt
from serving.triton.http import TritonHttp
from serving.triton.settings import TritonSettings

IDS, TEXT, TOKENIZER, ENSEMBLE = "study-ids", "study-text", "study-tokenizer", "study-ensemble"
WIDTH = 256
"""Bytes of a text's row."""

_HERE = Path(__file__).parent
_TIMEOUT_S = 30.0
_MOST_WAITING = 10_000
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Way:
    """model: what Triton is asked for. is_joined: whether the gateway sends batches, or each request alone."""

    model: str
    is_joined: bool

    @property
    def reads_text(self) -> bool:
        """Whether Triton tokenizes."""
        return self.model != IDS


WAYS = {
    "gateway tokenizes and joins": Way(IDS, is_joined=True),
    "gateway tokenizes, Triton joins": Way(IDS, is_joined=False),
    "Triton tokenizes, gateway joins": Way(TEXT, is_joined=True),
    "Triton tokenizes and joins": Way(TEXT, is_joined=False),
    "ensemble on Triton": Way(ENSEMBLE, is_joined=False),
}


class TextRuntime:
    """A runtime that sends texts: rows carry the texts' numbers, in as many columns as they may have tokens."""

    def __init__(self, url: str, n_workers: int, model: str, output: str) -> None:
        self.n_workers = n_workers
        self.is_degraded = False
        self.texts: dict[int, bytes] = {}
        self._client = triton.InferenceServerClient(url)
        self._model, self._output = model, output

    async def load(self, model: ServedModel) -> None:
        """Nothing: it was proved before."""

    async def infer(
        self, model: ServedModel, inputs: Arrays, *, timeout_s: float, lone_s: float | None = None
    ) -> dict[str, Any]:
        """Send the texts of a batch."""
        del model, lone_s
        numbers = inputs["number"][:, 0].tolist()
        rows = np.zeros((len(numbers), WIDTH), dtype=np.uint8)
        for row, number in enumerate(numbers):
            text = self.texts.pop(number)
            rows[row, : len(text)] = np.frombuffer(text, dtype=np.uint8)
        tensor = triton.InferInput("text", list(rows.shape), "UINT8")
        tensor.set_data_from_numpy(rows)
        answer = await self._client.infer(self._model, [tensor], client_timeout=timeout_s)
        return {self._output: answer.as_numpy(self._output)}

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


class Gateway:
    """The gateway's own batcher in front of a way; what it does with an answer is the same on all."""

    def __init__(self, way: Way, bundle: Bundle, url: str, n_workers: int, concurrency: int) -> None:
        self._way = way
        self._model: Any = open_model(bundle.path, bundle.manifest)
        batch = BatchConfig() if way.is_joined else BatchConfig(max_batch_size=1)
        n_workers = n_workers if way.is_joined else concurrency
        self.runtime: Any = (
            TextRuntime(url, n_workers, way.model, bundle.manifest.signature.outputs[0].name)
            if way.reads_text
            else TritonRuntime(url, n_workers)
        )
        if way.reads_text:
            number = TensorSpec(name="number", dtype="int64", shape=(-1, -1))
            signature = Signature(inputs=(number,), outputs=bundle.manifest.signature.outputs, layout="rows")
            bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"signature": signature}))
        self._served = ServedModel(way.model, "1", bundle)
        self._batcher = Batcher(self.runtime, batch, _MOST_WAITING, Telemetry())
        self._n_sent = 0

    async def open(self) -> None:
        """Load the model, where the way has something to prove."""
        await self.runtime.load(self._served)

    async def ask(self, text: str) -> tuple[Any, Arrays]:
        """Answer one text: the decoded intent, and the logits that it was read from."""
        if self._way.reads_text:
            self._n_sent += 1
            encoded_text = text.encode()[:WIDTH]
            self.runtime.texts[self._n_sent] = encoded_text
            length = 2 + len(encoded_text) // _CHARACTERS_A_TOKEN
            encoded = Encoded({"number": np.full(length, self._n_sent, dtype=np.int64)})
        else:
            encoded = self._model.encode(text)
        outputs = await self._batcher.submit(self._served, encoded, time.monotonic() + _TIMEOUT_S)
        return self._model.decode(text, encoded, outputs), outputs


async def measured(gateway: Gateway, texts: Iterator[str], n_callers: int, seconds: float, warmup_s: float) -> dict:
    """Keep so many callers waiting for an answer: throughput, percentiles, and what this process spent on a request."""
    begin_s = time.perf_counter() + warmup_s
    end_s = begin_s + seconds
    times_s: list[float] = []

    async def call() -> None:
        while (sent_s := time.perf_counter()) < end_s:
            await gateway.ask(next(texts))
            done_s = time.perf_counter()
            if sent_s >= begin_s and done_s < end_s:
                times_s.append(done_s - sent_s)

    callers = [asyncio.create_task(call()) for _ in range(n_callers)]
    await asyncio.sleep(warmup_s)
    cpu_s = time.process_time()
    await asyncio.sleep(seconds)
    cpu_s = time.process_time() - cpu_s
    await asyncio.gather(*callers)
    p50_ms, p99_ms = np.percentile(times_s, [50, 99]) * 1e3
    return {
        "throughput_per_s": len(times_s) / seconds,
        "p50_ms": float(p50_ms),
        "p99_ms": float(p99_ms),
        "gateway_cpu_us": cpu_s / len(times_s) * 1e6,
    }


def write(repository: Path, bundle: Bundle, settings: TritonSettings) -> None:
    """Write what the other ways need beside the deployed model: all with its batching, instances and threads."""
    signature = bundle.manifest.signature
    plain = config_pbtxt(IDS, "1", bundle, settings)
    batching = [line for line in plain.splitlines() if line.startswith(("max_batch", "dynamic_", "instance_", "param"))]
    outputs = [line for line in plain.splitlines() if line.startswith("output")]
    text = f'input [ {{ name: "text" data_type: TYPE_UINT8 dims: [ {WIDTH} ] }} ]'
    ids = [line.replace("input [", "output [") for line in plain.splitlines() if line.startswith("input")]
    _write(repository / TEXT, [f'name: "{TEXT}"', 'backend: "python"', text, *outputs, *batching])
    _write(repository / TOKENIZER, [f'name: "{TOKENIZER}"', 'backend: "python"', text, *ids, *batching])
    names = [spec.name for spec in signature.inputs]
    steps = [
        _step(TOKENIZER, {"text": "text"}, {name: name for name in names}),
        _step(IDS, {name: name for name in names}, {spec.name: spec.name for spec in signature.outputs}),
    ]
    head = [f'name: "{ENSEMBLE}"', 'platform: "ensemble"', text, *outputs, batching[0]]
    _write(repository / ENSEMBLE, [*head, f"ensemble_scheduling {{ {' '.join(steps)} }}"])
    for name, file in ((TEXT, "text_model.py"), (TOKENIZER, "tokenizer.py")):
        shutil.copyfile(_HERE / "models" / file, repository / name / "1" / "model.py")
        shutil.copyfile(bundle.path / "tokenizer.json", repository / name / "1" / "tokenizer.json")
    shutil.copyfile(_HERE / "models" / "tokenizer.py", repository / TEXT / "1" / "tokenizer.py")
    shutil.copyfile(bundle.model_file(), repository / TEXT / "1" / "model.onnx")


def load(http: TritonHttp) -> None:
    """Load them."""
    for name in (TEXT, TOKENIZER, ENSEMBLE):
        http.load(name)


def _write(directory: Path, lines: list[str]) -> None:
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text("\n".join(lines) + "\n")


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return f'step {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'

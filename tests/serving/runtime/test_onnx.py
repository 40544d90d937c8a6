"""What the embedded runtime does beyond tests/conformance/test_runtime.py."""

import asyncio
import json
import os
from pathlib import Path

import numpy as np
import pytest

from models.errors import BundleError, ParityError
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle


def test_a_bundle_that_answers_otherwise_than_it_was_sealed_is_not_loaded(tmp_path: Path):
    bundle = tiny_bundle(tmp_path / "intent")
    file = bundle.path / "golden.json"
    spoilt = json.loads(file.read_text())
    spoilt["rows"][1]["outputs"]["float32"]["intent_logits"][0] += 0.5
    file.write_text(json.dumps(spoilt))

    async def load():
        runtime = OnnxRuntime(n_workers=1)
        try:
            await runtime.load(ServedModel("tiny-intent", "1", bundle))
        finally:
            await runtime.close()

    with pytest.raises(ParityError, match="golden row 1"):
        asyncio.run(load())


def test_the_asked_variant_runs(tmp_path: Path):
    weights = np.full((2, 1), 0.3, dtype=np.float32)
    weights[0] = 1.0
    served = ServedModel("r", "1", tiny_bundle(tmp_path, "ranking", weights=weights, int8=True))

    async def score(variant: str | None) -> float:
        runtime = OnnxRuntime(n_workers=1, variant=variant)
        await runtime.load(served)
        row = np.array([[0.0, 1.0]], dtype=np.float32)
        answer = await runtime.infer(served, {"features": row}, timeout_s=5)
        await runtime.close()
        return float(answer["score"][0])

    # int8 holds 0.3 as 38/127
    assert asyncio.run(score("float32")) == pytest.approx(0.3)
    assert asyncio.run(score("int8")) == pytest.approx(38 / 127)
    assert asyncio.run(score(None)) == pytest.approx(38 / 127)


def test_a_bundle_without_the_asked_variant_is_refused(tmp_path: Path):
    async def load():
        runtime = OnnxRuntime(n_workers=1, variant="int8")
        try:
            await runtime.load(ServedModel("tiny-intent", "1", tiny_bundle(tmp_path)))
        finally:
            await runtime.close()

    with pytest.raises(BundleError, match=r"model\.int8\.onnx"):
        asyncio.run(load())


def test_there_are_as_many_workers_as_cores():
    runtime = OnnxRuntime()
    assert runtime.n_workers == len(os.sched_getaffinity(0))
    asyncio.run(runtime.close())

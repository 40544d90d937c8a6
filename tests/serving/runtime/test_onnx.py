"""What the embedded runtime does beyond tests/conformance/test_runtime.py."""

import asyncio
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from models.errors import BundleError, ParityError
from models.session import OnnxSession
from serving.runtime import onnx
from serving.runtime.onnx import OnnxRuntime
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle
from tests.tree_bundle import NAMES, grow, tree_bundle


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


def test_a_text_that_comes_while_nothing_runs_gets_two_threads_and_the_same_bits(tmp_path: Path, monkeypatch):
    used = []

    class Recorded(OnnxSession):
        def __init__(self, path, *, n_threads):
            super().__init__(path, n_threads=n_threads)
            self.n_threads = n_threads

        def run(self, arrays):
            used.append(self.n_threads)
            return super().run(arrays)

    monkeypatch.setattr(onnx, "OnnxSession", Recorded)
    served = ServedModel("tiny-intent", "1", tiny_bundle(tmp_path))
    one = {"ngram_ids": np.array([[3, 5]]), "ngram_counts": np.ones((1, 2), np.float32)}
    two = {name: np.repeat(array, 2, axis=0) for name, array in one.items()}

    async def ask(n_alone_threads):
        runtime = OnnxRuntime(n_workers=2, n_alone_threads=n_alone_threads)
        await runtime.load(served)
        used.clear()
        asked = ((one, 0.0), (one, 9.0), (one, 1e-6), (one, None), (two, None))
        answers = [await runtime.infer(served, inputs, timeout_s=5, lone_s=lone_s) for inputs, lone_s in asked]
        await runtime.close()
        assert len({answer["intent_logits"][0].tobytes() for answer in answers}) == 1
        return used

    # Lone, for an unknown time, a long and a short one; not lone; two.
    assert asyncio.run(ask(None)) == [2, 2, 2, 1, 1]
    assert asyncio.run(ask(1)) == [1, 1, 1, 1, 1]


def test_a_model_of_trees_is_in_memory_once(tmp_path: Path, monkeypatch):
    opened = []

    def open_session(path, *, n_threads):
        opened.append(n_threads)
        return OnnxSession(path, n_threads=n_threads)

    monkeypatch.setattr(onnx, "OnnxSession", open_session)

    async def load():
        runtime = OnnxRuntime(n_workers=2)
        await runtime.load(ServedModel("r", "1", tiny_bundle(tmp_path, "ranking")))
        await runtime.close()

    asyncio.run(load())
    assert opened == [1]


def test_what_is_quick_runs_on_the_loop_for_a_lone_caller(tmp_path: Path, monkeypatch):
    is_on_loop = []
    run = onnx.SizedScorer.run

    def recorded(self, arrays):
        is_on_loop.append(threading.current_thread() is threading.main_thread())
        return run(self, arrays)

    monkeypatch.setattr(onnx.SizedScorer, "run", recorded)
    served = ServedModel("trees", "1", tree_bundle(tmp_path, grow(5)))
    inputs = {"features": np.zeros((3, len(NAMES)), np.float32)}

    async def ask():
        runtime = OnnxRuntime(n_workers=2)
        await runtime.load(served)
        is_on_loop.clear()
        for lone_s in (0.0, 0.0039, 0.0041, None):
            await runtime.infer(served, inputs, timeout_s=5, lone_s=lone_s)
        await runtime.close()

    asyncio.run(ask())
    assert is_on_loop == [False, True, False, False]

"""The ranges of a network's activations, measured on training examples: what static quantization scales by.

Shapes: K channels of an activation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.batch import Arrays
from models.session import OnnxSession

_N_CELLS = 4096


@dataclass(frozen=True, slots=True)
class Range:
    """The lowest and the highest value of every channel, both [K]."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def join(self, other: Range) -> Range:
        """Give the range of both."""
        return Range(np.minimum(self.low, other.low), np.maximum(self.high, other.high))


def ranges(float32_path: Path, names: Sequence[str], batches: Iterable[Arrays]) -> Mapping[str, Range]:
    """Run `batches` until 4,096 tokens were read, and give the range of each tensor in `names`.

    A batch should hold one request: what is computed for padding would widen the ranges.
    """
    model = onnx.load(str(float32_path))
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    found: dict[str, Range] = {}
    n_cells = 0
    with tempfile.TemporaryDirectory(prefix="rankyard-ranges-") as directory:
        path = Path(directory) / "model.onnx"
        onnx.save_model(model, str(path))
        session = OnnxSession(path, n_threads=0)
        for batch in batches:
            outputs = session.run(batch)
            for name in names:
                rows_RK = np.asarray(outputs[name], dtype=np.float32).reshape(-1, outputs[name].shape[-1])
                seen = Range(rows_RK.min(axis=0), rows_RK.max(axis=0))
                found[name] = found[name].join(seen) if name in found else seen
            n_cells += max(array.size for array in batch.values())
            if n_cells >= _N_CELLS:
                break
    return found

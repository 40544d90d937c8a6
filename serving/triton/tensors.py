"""Tensors on their way to Triton and back: types by their wire names, and batches within what the server takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.manifest import Signature

DATATYPES = {"int64": "INT64", "float32": "FP32"}


def batches(arrays: Arrays, max_rows: int) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Cut a batch into parts of at most `max_rows`: a larger request is an error to Triton, which never splits."""
    n_rows = next(iter(arrays.values())).shape[0]
    for first in range(0, max(n_rows, 1), max_rows):
        yield {name: array[first : first + max_rows] for name, array in arrays.items()}


def joined(parts: Sequence[Arrays]) -> dict[str, NDArray[np.generic]]:
    """Put the outputs of consecutive parts together again."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_declared(outputs: Arrays, signature: Signature) -> dict[str, NDArray[np.generic]]:
    """Give outputs the rank of the signature: Triton has no scalar rows, a score travels as [rows, 1]."""
    return {
        spec.name: outputs[spec.name].reshape(-1) if len(spec.shape) == 1 else outputs[spec.name]
        for spec in signature.outputs
    }

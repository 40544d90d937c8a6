"""Tensors on their way to Triton and back: types by their wire names, and batches within what the server takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.errors import RankyardError
from models.manifest import Signature, TensorSpec

DATATYPES = {"int64": "INT64", "float32": "FP32"}


def batches(arrays: Arrays, max_rows: int) -> list[Arrays]:
    """Cut a batch into parts of at most `max_rows`: a larger request is an error to Triton, which never splits."""
    n_rows = next(iter(arrays.values())).shape[0]
    if n_rows <= max_rows:
        return [arrays]
    return [
        {name: array[first : first + max_rows] for name, array in arrays.items()}
        for first in range(0, n_rows, max_rows)
    ]


def joined(parts: Sequence[Arrays]) -> dict[str, NDArray[np.generic]]:
    """Put the outputs of consecutive parts together again."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_declared(outputs: Arrays, inputs: Arrays, signature: Signature) -> dict[str, NDArray[np.generic]]:
    """Give outputs the rank of the signature: Triton has no scalar rows, a score travels as [rows, 1].

    RankyardError where the answer to `inputs` lacks an output, or one has another type or shape, or NaN in it.
    """
    varying = {
        axis: size
        for spec in signature.inputs
        for axis, size in enumerate(inputs[spec.name].shape)
        if spec.shape[axis] < 0
    }
    found = {}
    for spec in signature.outputs:
        wanted = tuple([varying[axis] if size < 0 else size for axis, size in enumerate(spec.shape)])
        array = _expect(outputs.get(spec.name), spec, wanted if len(wanted) > 1 else (*wanted, 1))
        found[spec.name] = array.reshape(wanted)
    return found


def _expect(array: NDArray[np.generic] | None, spec: TensorSpec, wanted: tuple[int, ...]) -> NDArray[np.generic]:
    if array is None:
        got = "none"
    elif array.dtype != spec.dtype or array.shape != wanted:
        got = f"{array.dtype} {list(array.shape)}"
    elif np.isnan(array).any():
        got = "NaN"
    else:
        return array
    raise RankyardError(
        f"Triton must answer {spec.name} as numbers of {spec.dtype} {list(wanted)}, got {got}; deploy the model again"
    )

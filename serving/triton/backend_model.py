"""What Triton's Python backend runs for a bundle: copied as `model.py` beside the ONNX file, it stands alone there.

A server with the onnxruntime backend runs the same ONNX file without it. Why tensors cross by DLPack:
docs/decisions/0002-triton-python-backend.md.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # exists inside the backend alone
from numpy.typing import NDArray

MODEL = "model.onnx"

_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = (ctypes.py_object, ctypes.c_char_p)
_TAKEN = b"used_dltensor"


class TritonPythonModel:
    """One instance: a session on as many threads as `config.pbtxt` says, fed with what the dynamic batcher joined."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the ONNX file beside this one."""
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = Path(args["model_repository"], args["model_version"], MODEL)
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests of equal shape as one batch; where that fails, each alone, so that one fails by itself."""
        try:
            return self._answer(requests)
        except Exception as error:
            if len(requests) > 1:
                return [self.execute([request])[0] for request in requests]
            return [triton.InferenceResponse(error=triton.TritonError(f"ONNX Runtime failed on a batch: {error}"))]

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        # `concatenate` copies even a single request's rows: nothing points into Triton's memory once this returns.
        blocks = {
            name: [np.from_dlpack(triton.get_input_tensor_by_name(request, name)) for request in requests]
            for name in self._inputs
        }
        ends = np.cumsum([block.shape[0] for block in blocks[self._inputs[0]]])[:-1]
        outputs = self._session.run(self._outputs, {name: np.concatenate(parts) for name, parts in blocks.items()})
        pieces = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [triton.InferenceResponse(list(map(_tensor, self._outputs, arrays))) for arrays in pieces]


def _tensor(name: str, array: NDArray[Any]) -> Any:
    """Hand an array over, without a copy; its memory is released when Triton has read it."""
    capsule = np.ascontiguousarray(array).__dlpack__()
    tensor = triton.Tensor.from_dlpack(name, capsule)
    # The backend marks the capsule as taken by a name of its own, at which numpy logs a traceback for every tensor.
    _set_capsule_name(capsule, _TAKEN)
    return tensor

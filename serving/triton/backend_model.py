"""What Triton's Python backend runs for a bundle: copied as `model.py` beside the ONNX file, it stands alone there.

A server with the onnxruntime backend runs the same file without it. Tensors cross by DLPack: the backend's own
`as_numpy` and `Tensor(array)` were built against numpy 1 and, under numpy 2, give wrong strides and empty outputs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # exists inside the backend alone


class TritonPythonModel:
    """One instance: a session on one thread, fed with what Triton's dynamic batcher joined."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the ONNX file that `config.pbtxt` names."""
        config = json.loads(args["model_config"])
        directory = Path(args["model_repository"]) / args["model_version"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = directory / config["parameters"]["rankyard.model_file"]["string_value"]
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the requests' rows as one batch; Triton joins only requests of equal shape."""
        arrays = [
            {name: np.from_dlpack(triton.get_input_tensor_by_name(request, name)) for name in self._inputs}
            for request in requests
        ]
        joined = {name: np.concatenate([one[name] for one in arrays]) for name in self._inputs}
        try:
            outputs = self._session.run(self._outputs, joined)
        except Exception as error:
            failed = triton.TritonError(f"ONNX Runtime failed on a batch: {error}")
            return [triton.InferenceResponse(error=failed) for _ in requests]
        ends = np.cumsum([one[self._inputs[0]].shape[0] for one in arrays])[:-1]
        pieces = [np.split(output, ends) for output in outputs]
        return [
            triton.InferenceResponse(
                [
                    triton.Tensor.from_dlpack(name, np.ascontiguousarray(piece[index]))
                    for name, piece in zip(self._outputs, pieces, strict=True)
                ]
            )
            for index in range(len(requests))
        ]

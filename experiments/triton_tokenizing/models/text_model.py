"""The study's model that reads texts: tokenizes what Triton's batcher has joined, and runs the network, in one process.

Copied as `model.py`, beside `tokenizer.py` (its tokens) and `model.onnx`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as triton

sys.path.insert(0, str(Path(__file__).parent))

from tokenizer import open_tokenizer, tensor, texts_of, tokens  # type: ignore[import-not-found]


class TritonPythonModel:
    """Texts in, logits out; the session is that of `serving/triton/backend_model.py`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open tokenizer and network."""
        config = json.loads(args["model_config"])
        directory = Path(args["model_repository"], args["model_version"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self._tokenizer = open_tokenizer(directory)
        self._output = config["output"][0]["name"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Tokenize and run all requests as one batch."""
        texts = [texts_of(request) for request in requests]
        arrays = tokens(self._tokenizer, [text for its in texts for text in its])
        (output,) = self._session.run([self._output], arrays)
        pieces = np.split(output, np.cumsum([len(its) for its in texts])[:-1])
        return [triton.InferenceResponse([tensor(self._output, piece)]) for piece in pieces]

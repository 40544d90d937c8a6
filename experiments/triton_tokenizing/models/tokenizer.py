"""The study's tokenizer for Triton's Python backend, copied as `model.py` beside `tokenizer.json`; stands alone there.

Texts come as UTF-8 in a row of bytes of one width, zeros behind: under numpy 2 this server's backend cannot read
tensors of strings (docs/decisions/0002-triton-python-backend.md). So all have one shape, and Triton joins any of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from tokenizers import Tokenizer

_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = (ctypes.py_object, ctypes.c_char_p)


class TritonPythonModel:
    """Texts in, `input_ids` and `attention_mask` out: the first half of an ensemble."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the tokenizer beside this file."""
        self._tokenizer = open_tokenizer(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with tokens padded to its own longest text."""
        responses = []
        for texts in map(texts_of, requests):
            arrays = tokens(self._tokenizer, texts)
            responses.append(triton.InferenceResponse([tensor(name, array) for name, array in arrays.items()]))
        return responses


def open_tokenizer(directory: Path) -> Tokenizer:
    """Open `tokenizer.json` to pad and never to cut."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def texts_of(request: Any) -> list[str]:
    """Read a request's texts."""
    rows = np.from_dlpack(triton.get_input_tensor_by_name(request, "text"))
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]


def tokens(tokenizer: Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    """Tokens of texts, padded to the longest."""
    encodings = tokenizer.encode_batch_fast(texts)
    longest = max(map(len, encodings))
    input_ids, attention_mask = (np.zeros((len(texts), longest), dtype=np.int64) for _ in range(2))
    for row, encoding in enumerate(encodings):
        input_ids[row, : len(encoding)] = encoding.ids
        attention_mask[row, : len(encoding)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def tensor(name: str, array: np.ndarray) -> Any:
    """Hand an array over without a copy, as `serving/triton/backend_model.py` does."""
    capsule = np.ascontiguousarray(array).__dlpack__()
    handed = triton.Tensor.from_dlpack(name, capsule)
    _set_capsule_name(capsule, b"used_dltensor")
    return handed

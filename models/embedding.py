"""One vector a text: the embedding half of `models.features`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.errors import BundleError
from models.session import OnnxSession


class SentenceEncoder:
    """Embeds texts by `encoder.onnx`; tokens beyond `max_tokens` are cut. Several threads may call it at once."""

    def __init__(self, encoder_onnx: Path, tokenizer_json: Path, max_tokens: int, *, n_threads: int = 1) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # the Rust tokenizer raises bare Exception
            raise BundleError(f"{tokenizer_json} must be a tokenizer's JSON, got: {error}; train again") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._session = OnnxSession(encoder_onnx, n_threads=n_threads)

    def embed(self, text: str) -> NDArray[np.float32]:
        """The text's vector [E] of length 1.

        One text a call: dynamic INT8 takes one activation range a tensor, so in a batch a text's vector would
        depend on its neighbours, and offline and online would differ.
        """
        encoding = self._tokenizer.encode(text)
        outputs = self._session.run(
            {
                "input_ids": np.array([encoding.ids], dtype=np.int64),
                "attention_mask": np.array([encoding.attention_mask], dtype=np.int64),
            }
        )
        return np.asarray(outputs["vector"][0], dtype=np.float32)

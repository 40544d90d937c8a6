"""One vector a text: the embedding half of `models.features`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.session import OnnxSession
from models.text import CHARACTERS_A_TOKEN, check_whole, open_tokenizer


class SentenceEncoder:
    """Embeds texts by `encoder.onnx`; tokens beyond `max_tokens` are cut. Several threads may call it at once."""

    def __init__(self, encoder_onnx: Path, tokenizer_json: Path, max_tokens: int, *, n_threads: int = 1) -> None:
        self._tokenizer = open_tokenizer(tokenizer_json)
        self._tokenizer.enable_truncation(max_tokens)
        self._n_characters = CHARACTERS_A_TOKEN * max_tokens
        self._session = OnnxSession(encoder_onnx, n_threads=n_threads)

    def embed(self, text: str) -> NDArray[np.float32] | None:
        """The text's vector [E] of length 1, None where it is blank; InputError where it holds half a character.

        One text a call, so that a vector is the same to the last bit whatever is asked beside it: a batch pads its
        rows and sums in another order (1e-7), enough to put a pair on the other side of a tree's threshold.
        """
        start = text[: self._n_characters]
        check_whole(start)
        input_ids_BT = np.array([self._tokenizer.encode(start).ids], dtype=np.int64)
        if not start.strip() or not input_ids_BT.size:
            return None
        outputs = self._session.run({"input_ids": input_ids_BT, "attention_mask": np.ones_like(input_ids_BT)})
        return np.array(outputs["vector"][0], dtype=np.float32)

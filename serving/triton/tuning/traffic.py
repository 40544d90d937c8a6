"""What a server is asked while it is tuned: whole inference requests as bytes, all made before the load begins."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np

from models.batch import Encoded, collate
from models.errors import InputError
from models.model import Model, open_model
from models.ranking import RankingModel, RankRequest
from registry.bundle import Bundle
from serving.bench.queries import Text
from serving.bench.traffic import post
from serving.triton.config import largest_batch
from serving.triton.http import HEADER_LENGTH, infer_body, infer_path
from serving.triton.settings import TritonSettings

_N_REQUESTS = 512
_MISSING = 0.05


class Traffic:
    """Requests to one model: `size` texts each, or a list of `size` documents. n_rows: what Triton counts of one."""

    def __init__(self, bundle: Bundle, text: Text, size: int, settings: TritonSettings, seed: int) -> None:
        signature = bundle.manifest.signature
        model = open_model(bundle.path, bundle.manifest)
        generator = np.random.default_rng(seed)
        self.n_rows = 0
        self._bodies = []
        for number in range(_N_REQUESTS):
            encoded = _encoded(model, text, size, number, generator)
            arrays = collate(encoded, signature)
            self.n_rows = max(self.n_rows, len(next(iter(arrays.values()))))
            self._bodies.append(infer_body(arrays, signature))
        if self.n_rows > (most := largest_batch(signature, settings)):
            raise InputError(f"a request must have at most {most} rows, got {self.n_rows}; lower --size")

    def requests(self, url: str, name: str, version: str) -> Iterator[bytes]:
        """Requests without end to a version of a model on http://HOST:PORT."""
        path = infer_path(name, version)
        return cycle([_request(url, path, body, n_json) for body, n_json in self._bodies])


def _request(url: str, path: str, body: bytes, n_json: int) -> bytes:
    headers = [(HEADER_LENGTH, str(n_json))]
    return post(url, path, lambda _: body, headers, content_type="application/octet-stream")(0)


def _encoded(model: Model, text: Text, size: int, number: int, generator: np.random.Generator) -> list[Encoded]:
    first = number * (size + 1)
    if not isinstance(model, RankingModel):
        return [model.encode(text(first + place)) for place in range(size)]
    columns = {name: generator.random(size, dtype=np.float32) for name in model.sent}
    for column_D in columns.values():
        column_D[generator.random(size) < _MISSING] = np.nan
    texts = tuple(text(first + 1 + place) for place in range(size))
    return [model.encode(RankRequest(tuple(map(str, range(size))), text(first), texts, columns))]

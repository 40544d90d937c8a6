"""The few requests that a deployment makes of a Triton server over HTTP: live, load, unload, infer.

Tensors travel in the binary extension of the Open Inference Protocol, since JSON has no NaN.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.errors import RankyardError, UnavailableError
from models.manifest import Signature
from serving.triton.tensors import DATATYPES, as_declared, batches, joined

HEADER_LENGTH = "Inference-Header-Content-Length"
_LOAD_TIMEOUT_S = 120.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A model server is a neighbour: a proxy for the rest of the world must not stand between."""


class TritonHttp:
    """A server's HTTP address: `http://HOST:PORT` or `HOST:PORT`.

    timeout_s: how long it may be silent; two minutes where it loads a model. Every call raises UnavailableError
    where no server answers, RankyardError with the server's reason where it refuses.
    """

    def __init__(self, url: str, *, timeout_s: float = 15.0) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._timeout_s = timeout_s

    def expect_live(self) -> None:
        """Return where the server takes requests; it is not asked to be ready, which one failed model would deny."""
        self._send("/v2/health/live", None)

    def load(self, name: str) -> None:
        """Load a model, or load it anew: what was loaded before answers until then, and for good where this fails."""
        self._send(f"/v2/repository/models/{name}/load", b"{}", timeout_s=max(self._timeout_s, _LOAD_TIMEOUT_S))

    def sees(self, name: str) -> bool:
        """Whether the repositories that the server reads have a model of this name, loaded or not."""
        return any(model["name"] == name for model in json.loads(self._send("/v2/repository/index", b"{}")[0]))

    def unload(self, name: str) -> None:
        """Stop serving a model; its instances end soon after."""
        self._send(f"/v2/repository/models/{name}/unload", b"{}")

    def infer(self, name: str, version: str, arrays: Arrays, signature: Signature) -> dict[str, NDArray[np.generic]]:
        """Run one batch, in as many requests as the model's `max_batch_size` asks for."""
        most = int(json.loads(self._send(f"/v2/models/{name}/versions/{version}/config", None)[0])["max_batch_size"])
        return joined([self._infer(name, version, part, signature) for part in batches(arrays, most)])

    def _infer(self, name: str, version: str, arrays: Arrays, signature: Signature) -> dict[str, NDArray[np.generic]]:
        body, length = self._send(infer_path(name, version), *infer_body(arrays, signature))
        answer = json.loads(body[:length])
        types = {spec.name: np.dtype(spec.dtype) for spec in signature.outputs}
        outputs: dict[str, NDArray[np.generic]] = {}
        for output in answer["outputs"]:
            size = output["parameters"]["binary_data_size"]
            flat = np.frombuffer(
                body, types[output["name"]], offset=length, count=size // types[output["name"]].itemsize
            )
            outputs[output["name"]] = flat.reshape(output["shape"])
            length += size
        return as_declared(outputs, arrays, signature)

    def _send(
        self, path: str, body: bytes | None, header_length: int | None = None, timeout_s: float | None = None
    ) -> tuple[bytes, int]:
        """Give the answer's body, and how much of it is JSON."""
        headers = {"content-type": "application/json"}
        if header_length is not None:
            headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(header_length)}
        try:
            request = urllib.request.Request(self.url + path, body, headers)  # noqa: S310 - the person's own address
            with _DIRECT.open(request, timeout=timeout_s or self._timeout_s) as response:
                content = response.read()
                return content, int(response.headers.get(HEADER_LENGTH, len(content)))
        except urllib.error.HTTPError as error:
            raise RankyardError(
                f"Triton at {self.url} must accept {path}, it refused: {_reason(error)}; its log may say more"
            ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = str(error.reason if isinstance(error, urllib.error.URLError) else error)
            if not why.isprintable():  # what a port says that does not speak HTTP, such as that for gRPC
                why = "another protocol"
            raise UnavailableError(
                f"a Triton server must answer HTTP on {self.url}, got: {why}; start one with `rankyard triton up`"
            ) from error


def infer_path(name: str, version: str) -> str:
    """Where a version takes requests."""
    return f"/v2/models/{name}/versions/{version}/infer"


def infer_body(arrays: Arrays, signature: Signature) -> tuple[bytes, int]:
    """One request's body, and how much of it is JSON."""
    chunks = {spec.name: np.ascontiguousarray(arrays[spec.name]).tobytes() for spec in signature.inputs}
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": spec.name,
                    "shape": list(arrays[spec.name].shape),
                    "datatype": DATATYPES[spec.dtype],
                    "parameters": {"binary_data_size": len(chunks[spec.name])},
                }
                for spec in signature.inputs
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    return header + b"".join(chunks.values()), len(header)


def _reason(error: urllib.error.HTTPError) -> str:
    """Triton's own words, `{"error": ...}`, on one line and without the Python backend's traceback."""
    body = error.read().decode(errors="replace")
    with suppress(ValueError, TypeError, KeyError):  # a proxy's page, or none
        body = str(json.loads(body)["error"])
    return " ".join(body.partition("\n\nAt:\n")[0].split()).rstrip(".;") or str(error.reason)

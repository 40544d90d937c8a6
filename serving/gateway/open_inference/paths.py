"""The protocol's routes for OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.gateway.open_inference import describe, http
from serving.gateway.operations import REFUSALS, get, post

TYPES = (
    http.InferRequest,
    http.InferAnswer,
    http.InferError,
    describe.ServerMetadata,
    describe.ModelMetadata,
    describe.ModelConfiguration,
    describe.Statistics,
    describe.IndexEntry,
)
"""The shapes of its bodies."""

_STATUSES = [*(status for status in REFUSALS if status != "422"), "501"]
_INFER_DESCRIPTION = """The Open Inference Protocol; `/v2/models/NAME/versions/VERSION/infer` is the same.

Every model takes its network's own inputs, as `/v2/models/NAME` lists them. Instead of those an intent or tagging model
takes `text` [rows] (BYTES), a ranker of features takes one tensor a feature, by name, [candidates], and a ranker that
reads texts takes `query` [1] and `text` [candidates] (BYTES). A trailing axis of 1 may be there; NaN is missing.

With the header `Inference-Header-Content-Length` the body is JSON of that length and then the raw little-endian
tensors, as a stock `tritonclient.http` sends them; `"binary_data_output": true` answers in the same way. The body may
be compressed (`Content-Encoding: gzip` or `deflate`), and an answer is for a caller with such an `Accept-Encoding`.
Of the parameters, `priority` is 1 for what somebody waits for and 2 or more for bulk work, `timeout` (microseconds)
stands in for the configured deadline; others are passed over. An output's `classification` is how many of its best
classes are wanted instead, as texts `value:index:label`. Tensors are computed anew for every request, none is kept.
Errors are `{"error": sentence}`.
"""
_INFER_EXAMPLES = {
    "one tensor a feature": {
        "value": {
            "inputs": [
                {"name": "price", "shape": [2], "datatype": "FP32", "data": [59.0, 89.0]},
                {"name": "stock", "shape": [2], "datatype": "FP32", "data": [None, 3]},
            ]
        }
    },
    "texts": {"value": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["red nike shoes"]}]}},
}
_PLAIN = {"type": "object"}


def paths(of: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    """Describe every route. of: the schemas of TYPES."""
    error = of[http.InferError]
    model = {
        "": ("What a model takes and gives", of[describe.ModelMetadata]),
        "/config": ("How a model is batched", of[describe.ModelConfiguration]),
        "/stats": ("What a model was asked and took; /v2/models/stats: of all", of[describe.Statistics]),
        "/ready": ("The model answers; without a body", _PLAIN),
    }
    return {
        "/v2/models/{name}/infer": _named(
            post(
                "Run a model on tensors",
                of[http.InferRequest],
                _INFER_EXAMPLES,
                of[http.InferAnswer],
                error,
                statuses=_STATUSES,
                description=_INFER_DESCRIPTION,
                binary="application/octet-stream",
            )
        ),
        **{
            f"/v2/models/{{name}}{what}": _named(get(summary, answer, error, ["404", "503"]))
            for what, (summary, answer) in model.items()
        },
        "/v2": get("Who answers, and which extensions it knows", of[describe.ServerMetadata], error, []),
        "/v2/health/live": get("The process lives; without a body", _PLAIN, error, []),
        "/v2/health/ready": get("The models are loaded and answer", _PLAIN, error, ["503"]),
        "/v2/repository/index": post(
            "The models that are served",
            _PLAIN,
            {"all": {"value": {}}},
            {"type": "array", "items": of[describe.IndexEntry]},
            error,
            statuses=["503"],
        ),
    }


def _named(path: dict[str, Any]) -> dict[str, Any]:
    """Say that the path has a model's name in it."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {**path, "parameters": [name]}

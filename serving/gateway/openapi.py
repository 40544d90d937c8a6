"""The contract for people and tools: an OpenAPI document made from `wire`'s structs, and Swagger UI without a CDN."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from models.answers import Understanding
from models.errors import NotFoundError
from serving.gateway import arrow, inference, wire

ASSETS = {
    "swagger-ui.css": b"text/css",
    "swagger-ui-bundle.js": b"text/javascript",
    "favicon-32x32.png": b"image/png",
}
"""Swagger UI's own files that the page needs, with their content types."""

_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "The body is not JSON.",
    "404": "No such path, or no model that answers this.",
    "405": "The path answers another method.",
    "408": "The body did not arrive before the deadline.",
    "413": "The body, a list or a text is beyond its limit.",
    "415": "The body is of a kind that needs a package which is not installed.",
    "422": "The request breaks a rule; `field` is the path of the part at fault.",
    "429": "Too many requests wait; `Retry-After` says when to come back.",
    "500": "The gateway failed; its log says why.",
    "503": "Starting, stopping, or without its model server; `Retry-After` says when to come back.",
    "504": "The deadline passed before the answer was there.",
}
_UNDERSTAND_EXAMPLES = {
    "one": {"value": {"query": "red nike shoes size 10"}},
    "several": {"value": {"queries": ["red nike shoes size 10", "where is my order"]}},
}
_RANK_EXAMPLES = {
    "by row": {
        "value": {
            "query": {"text": "red shoes", "features": {"hour": 13}},
            "candidates": [
                {"id": "p1", "text": "Nike Air, red", "features": {"price": 59.0, "stock": None}},
                {"id": "p2", "text": "Adidas Samba", "features": {"price": 89.0, "stock": 3}},
            ],
            "top_k": 10,
        }
    },
    "by column": {
        "value": {
            "query": {"text": "red shoes"},
            "candidates": {"ids": ["p1", "p2"], "features": {"price": [59.0, 89.0], "stock": [None, 3]}},
        }
    },
}
_RANK_DESCRIPTION = """By row, by column, or as an Arrow IPC stream: the same scores, to the last bit.

`null`, NaN and an absent feature are missing; infinity and an unknown feature are refused; equal scores keep the order
they came in.

**Arrow.** One record batch or several, not compressed: a column `id` of strings, a column `text` where the model reads
texts, and every other column a feature, floats or integers. The schema's metadata may hold, under the key `rankyard`,
the rest of the request as JSON: `{"query": {...}, "top_k": 10, "explain": true}`. Needs the extra `rankyard[arrow]`.

**explain.** `true` adds `contributions`: exact SHAP values of the last phase's model, which must be one of trees and
not fused with others. A candidate's score is `base` and the sum of its features' contributions, to 1e-5. `explanations`
are the values that the model read, which `"values"` asks for alone, of any model.
"""
_INFER_DESCRIPTION = """The Open Inference Protocol, for rankers; `/v2/models/NAME/versions/VERSION/infer` is the same.

Inputs are `features` [candidates, features], as the model reads them, or one tensor a feature, by name, [candidates] or
[candidates, 1]; NaN is missing. The output is `score` [candidates, 1], in the order of the candidates. With the header
`Inference-Header-Content-Length` the body is JSON of that length and then the raw little-endian tensors, as a stock
`tritonclient.http` sends them; `"binary_data_output": true` answers in the same way. Errors are `{"error": sentence}`.
"""
_INFER_EXAMPLES = {
    "one tensor a feature": {
        "value": {
            "inputs": [
                {"name": "price", "shape": [2], "datatype": "FP32", "data": [59.0, 89.0]},
                {"name": "stock", "shape": [2], "datatype": "FP32", "data": [None, 3]},
            ]
        }
    }
}
# Swagger UI 4, which the package ships, refuses a document that calls itself 3.1, and draws all that this one has.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>rankyard gateway</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script>
fetch("/openapi.json").then(answer => answer.json()).then(spec => {
  spec.openapi = "3.0.3";
  SwaggerUIBundle({spec, dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});
});
</script>
</body>
</html>
"""


@cache
def document() -> bytes:
    """OpenAPI 3.1 as JSON."""
    types = [
        wire.UnderstandRequest,
        Understanding,
        wire.UnderstandAnswers,
        wire.RankRequest,
        wire.RankAnswer,
        wire.ModelsAnswer,
        wire.StatusAnswer,
        wire.ErrorAnswer,
        inference.InferRequest,
        inference.InferAnswer,
        inference.ModelMetadata,
        inference.InferError,
    ]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    of = dict(zip(types, schemas, strict=True))
    understanding = {"anyOf": [of[Understanding], of[wire.UnderstandAnswers]]}
    status, error = of[wire.StatusAnswer], of[wire.ErrorAnswer]
    paths = {
        "/v1/understand": _post(
            "Intent and entities of one query or of several",
            of[wire.UnderstandRequest],
            _UNDERSTAND_EXAMPLES,
            understanding,
            error,
        ),
        "/v1/rank": _post(
            "Order candidates for a query",
            of[wire.RankRequest],
            _RANK_EXAMPLES,
            of[wire.RankAnswer],
            error,
            description=_RANK_DESCRIPTION,
            binary=arrow.CONTENT_TYPE.decode(),
        ),
        "/v2/models/{name}/infer": _named(
            _post(
                "Scores of candidates, as tensors",
                of[inference.InferRequest],
                _INFER_EXAMPLES,
                of[inference.InferAnswer],
                of[inference.InferError],
                description=_INFER_DESCRIPTION,
                binary=inference.BINARY.decode(),
            )
        ),
        "/v2/models/{name}": _named(
            _get("What a ranker takes and gives", of[inference.ModelMetadata], of[inference.InferError], ["404", "503"])
        ),
        "/v1/models": _get("The models that answer", of[wire.ModelsAnswer], error, ["503"]),
        "/healthz": _get("The process lives", status, error, []),
        "/readyz": _get("The models are loaded and answer", status, error, ["503"]),
        "/metrics": {
            "get": {
                "summary": "Measurements, in Prometheus' text format",
                "responses": {
                    "200": {"description": "Measurements", "content": {"text/plain": {"schema": {"type": "string"}}}}
                },
            }
        },
    }
    info = {
        "title": "rankyard gateway",
        "version": "1",
        "description": "Understands queries and ranks candidates of a shop's search.",
    }
    return wire.encode({"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": components}})


def page(name: str) -> tuple[bytes, int, bytes]:
    """The documentation page `index.html` or one of its ASSETS: body, status, content type; NotFoundError otherwise."""
    if name == "index.html":
        return _PAGE.encode(), 200, b"text/html; charset=utf-8"
    return _asset(name), 200, ASSETS[name]


@cache
def _asset(name: str) -> bytes:
    try:
        vendor = resources.files("swagger_ui_bundle") / "vendor"
        return next(entry for entry in vendor.iterdir() if entry.is_dir()).joinpath(name).read_bytes()
    except (ModuleNotFoundError, StopIteration, OSError) as error:
        raise NotFoundError(
            "the documentation page needs the package swagger-ui-bundle, which is not installed; "
            "pip install 'rankyard[serve]', or read /openapi.json"
        ) from error


def _named(path: dict[str, Any]) -> dict[str, Any]:
    """Say that the path has a model's name in it."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {**path, "parameters": [name]}


def _post(
    summary: str,
    body: dict[str, Any],
    examples: dict[str, Any],
    answer: dict[str, Any],
    error: Any,
    *,
    description: str = "",
    binary: str | None = None,
) -> dict[str, Any]:
    """Describe a route. binary: the content type of a second form of the body."""
    content: dict[str, Any] = {"application/json": {"schema": body, "examples": examples}}
    if binary is not None:
        content[binary] = {"schema": {"type": "string", "format": "binary"}}
    return {
        "post": {
            "summary": summary,
            **({"description": description} if description else {}),
            "parameters": [
                {
                    "name": "x-deadline-ms",
                    "in": "header",
                    "description": "Milliseconds after which nobody waits for the answer any more.",
                    "schema": {"type": "number", "exclusiveMinimum": 0},
                }
            ],
            "requestBody": {"required": True, "content": content},
            "responses": _responses(answer, error, list(_ERRORS)),
        }
    }


def _get(summary: str, answer: dict[str, Any], error: dict[str, Any], statuses: Sequence[str]) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": _responses(answer, error, statuses)}}


def _responses(answer: dict[str, Any], error: dict[str, Any], statuses: Sequence[str]) -> dict[str, Any]:
    responses = {"200": {"description": "The answer", "content": {"application/json": {"schema": answer}}}}
    for status in statuses:
        responses[status] = {"description": _ERRORS[status], "content": {"application/json": {"schema": error}}}
    return responses

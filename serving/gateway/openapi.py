"""The contract for people and tools: an OpenAPI document made from `wire`'s structs, and Swagger UI without a CDN."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

from models.answers import Understanding
from models.errors import NotFoundError
from serving.gateway import arrow, wire
from serving.gateway.open_inference import paths as open_inference
from serving.gateway.operations import get, post

ASSETS = {
    "swagger-ui.css": b"text/css",
    "swagger-ui-bundle.js": b"text/javascript",
    "favicon-32x32.png": b"image/png",
}
"""Swagger UI's own files that the page needs, with their content types."""

_REF = "#/components/schemas/{name}"
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
_WEBHOOK_DESCRIPTION = """MLflow calls this, where the gateway's `webhook.secret_file` is set.

`accepted` where what is served may change, which is looked at at once; `ignored` otherwise. 401 without the
signature of MLflow or with an old one (`X-MLflow-Signature`, `X-MLflow-Delivery-Id`, `X-MLflow-Timestamp`), 409 for a
delivery that came before.
"""
_WEBHOOK_EXAMPLES = {
    "an alias was set": {
        "value": {
            "entity": "model_version_alias",
            "action": "created",
            "timestamp": "2026-01-02T03:04:05+00:00",
            "data": {"name": "shop-query", "alias": "champion", "version": "3"},
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
        *open_inference.TYPES,
    ]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    of = dict(zip(types, schemas, strict=True))
    understanding = {"anyOf": [of[Understanding], of[wire.UnderstandAnswers]]}
    status, error = of[wire.StatusAnswer], of[wire.ErrorAnswer]
    paths = {
        "/v1/understand": post(
            "Intent and entities of one query or of several",
            of[wire.UnderstandRequest],
            _UNDERSTAND_EXAMPLES,
            understanding,
            error,
        ),
        "/v1/rank": post(
            "Order candidates for a query",
            of[wire.RankRequest],
            _RANK_EXAMPLES,
            of[wire.RankAnswer],
            error,
            description=_RANK_DESCRIPTION,
            binary=arrow.CONTENT_TYPE.decode(),
        ),
        "/v1/webhooks/mlflow": post(
            "MLflow's word that an alias has moved",
            {"type": "object"},
            _WEBHOOK_EXAMPLES,
            status,
            error,
            statuses=["400", "401", "404", "409", "422", "503"],
            description=_WEBHOOK_DESCRIPTION,
        ),
        "/v1/models": get("The models that answer", of[wire.ModelsAnswer], error, ["503"]),
        **open_inference.paths(of),
        "/healthz": get("The process lives", status, error, []),
        "/readyz": get("The models are loaded and answer", status, error, ["503"]),
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

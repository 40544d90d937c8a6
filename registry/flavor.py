"""A bundle as an MLflow model: the flavor `rankyard`, and `python_function` over it; no pickle, no code.

    mlflow.pyfunc.load_model("models:/shop-query@champion").predict(pandas.DataFrame({"query": ["red shoes"]}))

It encodes, runs and decodes with the gateway's own code, every text and every list alone: dynamic INT8 scales
activations by the whole batch, so that only a batch of one is the same everywhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from models.answers import Understanding, to_json
from models.batch import Arrays, Encoded, collate, split
from models.errors import InputError
from models.intent import IntentModel
from models.model import open_model
from models.ranking import RankingModel, RankRequest, sent_features
from models.session import OnnxSession
from models.tagging import TaggingModel
from registry import golden
from registry.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

FLAVOR = "rankyard"
DATA = "bundle"
"""The bundle's directory inside the MLflow model."""

_REGISTERED_AS = "registered_model_meta"  # MLflow writes name and version here when it loads a registered model
_ID_COLUMNS = ("query_id", "id", "query", "text")
_EXAMPLE_ROWS = 3


def save_model(bundle: Bundle, path: Path, mlflow_model: Model | None = None) -> None:
    """Write the bundle as an MLflow model into the new directory `path`: MLmodel, signature, input example, bundle."""
    import mlflow
    from mlflow.models import Model
    from mlflow.models.utils import _save_example

    path.mkdir(parents=True)
    shutil.copytree(bundle.path, path / DATA)
    model = mlflow_model or Model()
    model.signature = signature(bundle)
    model.add_flavor(
        FLAVOR, data=DATA, format=bundle.manifest.format, family=bundle.manifest.family, digest=bundle.digest
    )
    mlflow.pyfunc.add_to_model(model, loader_module=__name__, data=DATA)
    _save_example(model, input_example(bundle), str(path))
    model.save(str(path / "MLmodel"))


def signature(bundle: Bundle) -> ModelSignature:
    """Name the columns that `predict` takes and gives.

    Ids and features are of type `any`: MLflow would refuse integers for `double`, and numbers for `string`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    if bundle.manifest.family == "ranking":
        pairs = bundle.manifest.reads_texts
        ids = [_column_spec(name, "any", required=False) for name in ("query_id", "id")]
        texts = [_column_spec(name, "string", required=pairs) for name in ("query", "text")]
        features = [_column_spec(name, "any", required=False) for name in sent_features(bundle.manifest)]
        inputs, outputs = (
            [*ids, *texts, *features],
            [*ids, _column_spec("score", "double"), _column_spec("rank", "long")],
        )
    else:
        inputs = [_column_spec("query", "string")]
        outputs = [
            _column_spec("query", "string"),
            {**_INTENT, "name": "intent", "required": False},
            {**_array(_ENTITY), "name": "entities", "required": True},
            {"type": "map", "values": {"type": "string"}, "name": "models", "required": True},
        ]
    return ModelSignature(Schema.from_json(json.dumps(inputs)), Schema.from_json(json.dumps(outputs)))


def _column_spec(name: str, kind: str, *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "type": kind, "required": required}


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"required": True, **kind} for name, kind in properties.items()}}


def _array(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_STRING, _DOUBLE, _LONG = {"type": "string"}, {"type": "double"}, {"type": "long"}
_INTENT = _object(
    label=_STRING,
    confidence=_DOUBLE,
    in_scope={"type": "boolean"},
    alternatives=_array(_object(label=_STRING, confidence=_DOUBLE)),
    labels=_array(_object(label=_STRING, confidence=_DOUBLE)),
)
_ENTITY = _object(type=_STRING, text=_STRING, start=_LONG, end=_LONG, confidence=_DOUBLE)


def input_example(bundle: Bundle) -> pd.DataFrame:
    """Make a frame that `predict` takes, out of the bundle's golden rows."""
    requests = [row.request for row in golden.read(bundle)]
    texts = [request for request in requests if isinstance(request, str)]
    if texts:
        return pd.DataFrame({"query": texts[:_EXAMPLE_ROWS]})
    request = next(request for request in requests if isinstance(request, RankRequest))
    n_rows = min(_EXAMPLE_ROWS, len(request.ids))
    columns: dict[str, Any] = {"query_id": ["q1"] * n_rows, "id": list(request.ids[:n_rows])}
    if request.texts is not None:
        columns |= {"query": [request.text] * n_rows, "text": list(request.texts[:n_rows])}
    for name in sent_features(bundle.manifest):
        constant = request.query_features.get(name, np.nan)
        columns[name] = request.features.get(name, np.full(n_rows, constant))[:n_rows].astype(np.float64)
    return pd.DataFrame(columns)


class RankyardModel:
    """A bundle behind MLflow's `predict(frame)`. `ref` (NAME/VERSION) signs its answers."""

    def __init__(self, bundle: Bundle, ref: str) -> None:
        self.bundle = bundle
        self.ref = ref
        self._model = open_model(bundle.path, bundle.manifest)
        self._session = OnnxSession(bundle.model_file(), n_threads=0)

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Answer a frame; InputError names the column or row at fault.

        intent, tagging: column `query`, one text a row, gives one answer of POST /v1/understand a row.
        ranking: one candidate a row; `query_id` (without it all rows are one list), `id` (else the row's label),
        `query`, `text`, and the features, missing as NaN; gives query_id, id, score and rank for the same rows.
        """
        if params:
            raise InputError(f"this model takes no params, got {sorted(params)}; leave them out")
        if isinstance(self._model, RankingModel):
            return self._rank(frame, self._model)
        return self._understand(frame, self._model)

    def _understand(self, frame: pd.DataFrame, model: IntentModel | TaggingModel) -> pd.DataFrame:
        if "query" not in frame.columns:
            raise InputError(f"a frame must have the column query, got {list(frame.columns)}", field="query")
        answers = []
        for row, query in enumerate(frame["query"].tolist()):
            if not isinstance(query, str):
                raise InputError(f"a query must be text, got {query!r} in row {row}", field=f"query[{row}]")
            encoded = model.encode(query)
            reading = model.decode(query, encoded, self._alone(encoded))
            families = {"intent": reading.intent, "tagging": reading.entities}
            signed = {family: self.ref for family, answer in families.items() if answer is not None}
            answer = to_json(Understanding(query, reading.intent, reading.entities or (), signed))
            answers.append(json.loads(json.dumps(answer)))  # lists for tuples, as the gateway's users get them
        return pd.DataFrame(answers, columns=["query", "intent", "entities", "models"], index=frame.index)

    def _rank(self, frame: pd.DataFrame, model: RankingModel) -> pd.DataFrame:
        known = set(sent_features(self.bundle.manifest))
        if unknown := [str(name) for name in frame.columns if name not in known and name not in _ID_COLUMNS]:
            raise InputError(f"a column must be {', '.join(_ID_COLUMNS)} or a feature, got {unknown}; leave it out")
        columns = {name: _column(frame, name) for name in frame.columns if name in known}
        scores = np.zeros(len(frame), dtype=np.float64)
        ranks = np.zeros(len(frame), dtype=np.int64)
        for rows in _lists(frame):
            request = RankRequest(
                ids=tuple(str(row) for row in rows.tolist()),
                text=_query(frame, rows),
                texts=tuple(str(text) for text in frame["text"].to_numpy()[rows]) if "text" in frame.columns else None,
                features={name: column[rows] for name, column in columns.items()},
            )
            encoded = model.encode(request)
            for ranked in model.decode(request, encoded, self._alone(encoded)):
                scores[int(ranked.id)], ranks[int(ranked.id)] = ranked.score, ranked.rank
        return pd.DataFrame(
            {
                "query_id": frame["query_id"] if "query_id" in frame.columns else None,
                "id": frame["id"] if "id" in frame.columns else frame.index,
                "score": scores,
                "rank": ranks,
            },
            index=frame.index,
        )

    def _alone(self, encoded: Encoded) -> Arrays:
        signature_ = self.bundle.manifest.signature
        return split(self._session.run(collate([encoded], signature_)), [encoded], signature_)[0]


def _load_pyfunc(path: str) -> RankyardModel:
    """What `mlflow.pyfunc.load_model` calls, with the bundle's directory inside the model."""
    bundle = open_bundle(Path(path))
    registered_as = bundle.path.parent / _REGISTERED_AS
    if not registered_as.exists():
        return RankyardModel(bundle, bundle.manifest.name)
    registered = yaml.safe_load(registered_as.read_text(encoding="utf-8"))
    return RankyardModel(bundle, f"{registered['model_name']}/{registered['model_version']}")


def _lists(frame: pd.DataFrame) -> list[NDArray[np.int64]]:
    """Rows of each list, in the order in which lists first appear; rows of one list need not be neighbours."""
    if "query_id" not in frame.columns:
        return [np.arange(len(frame))] if len(frame) else []
    codes, _ = pd.factorize(frame["query_id"], use_na_sentinel=False)
    order = np.argsort(codes, kind="stable")
    return [rows for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(rows)]


def _query(frame: pd.DataFrame, rows: NDArray[np.int64]) -> str:
    if "query" not in frame.columns:
        return ""
    queries = frame["query"].to_numpy()[rows]
    if (queries != queries[0]).any():
        raise InputError(f"a list must have one query, row {rows[0]} begins one with {sorted(set(queries))[:3]}")
    return str(queries[0])


def _column(frame: pd.DataFrame, name: str) -> NDArray[np.float32]:
    try:
        return np.asarray(pd.to_numeric(frame[name]), dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"the feature {name} must be numbers, got: {error}", field=name) from error

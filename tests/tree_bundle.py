"""A real ranker of trees, grown in a moment and sealed as training seals one."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import xgboost
from numpy.typing import NDArray

from models.manifest import FORMAT, Contents, Manifest, Signature, SplitDigest, TensorSpec
from models.model import open_model
from models.ranking import RankRequest
from models.session import OnnxSession
from registry import bundle, golden
from registry.bundle import MODEL, Bundle
from tests.bundles import measured
from training.trees import export_trees

NAMES = ("price", "stock", "popularity", "margin", "age")


def rows(n_rows: int, seed: int = 0, n_features: int = len(NAMES)) -> NDArray[np.float32]:
    """Features [n_rows, F], a tenth of them missing."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(n_rows, n_features)).astype(np.float32)
    features[random.random(features.shape) < 0.1] = np.nan
    return features


def grow(n_trees: int = 20, seed: int = 0, n_features: int = len(NAMES), **parameters: Any) -> xgboost.Booster:
    """LambdaMART on 40 lists of 20, with missing values that say something."""
    features = rows(800, seed, n_features)
    random = np.random.default_rng(seed)
    value = np.nan_to_num(features, nan=1.0) @ np.linspace(1, -1, n_features) + random.normal(size=800) / 2
    matrix = xgboost.DMatrix(features, np.digitize(value, [0.5, 1.5]), qid=np.repeat(np.arange(40), 20))
    given = {"objective": "rank:ndcg", "seed": seed, "nthread": 1, "max_depth": 4, **parameters}
    return xgboost.train(given, matrix, n_trees)


def tree_bundle(
    directory: Path, booster: xgboost.Booster, names: tuple[str, ...] = NAMES, model: onnx.ModelProto | None = None
) -> Bundle:
    """Seal a booster's trees; `model`: what to seal in their place."""
    contents = Contents(
        family="ranking",
        features=names,
        signature=Signature(
            layout="concat",
            inputs=(TensorSpec(name="features", dtype="float32", shape=(-1, len(names))),),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
        ),
    )
    with bundle.draft(directory) as draft:
        onnx.save_model(export_trees(booster) if model is None else model, str(draft / MODEL))
        reader = open_model(draft, contents)
        features = rows(12, 5, len(names))
        requests = [
            RankRequest(ids=tuple(map(str, range(n))), features=dict(zip(names, features[:n].T, strict=True)))
            for n in (1, 12)
        ]
        encoded = [(request, reader.encode(request)) for request in requests]
        golden.write(draft, contents.signature, encoded, {"float32": OnnxSession(draft / MODEL).run})
        report, predictions = measured("ranking")
        report.save(draft)
        predictions.save(draft)
        facts = {
            "format": FORMAT,
            "name": "trees",
            "created": datetime(2026, 1, 2, tzinfo=UTC),
            "config": {"task": "ranking"},
            "config_sha256": "0" * 64,
            "data": {"train": SplitDigest(file="train.txt", rows=800, sha256="1" * 64)},
            "code_version": "0.1.0",
            "tolerance": 1e-4,
            "files": {},
        }
        return bundle.seal(draft, Manifest(**{**contents.model_dump(), **facts}), directory)

"""A ranker of the size that the study speaks of, trained on lists that are made up here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import train
from models.config import read
from training import ranking
from training.config import parse
from training.fit import Checkpoint
from training.terminal import Terminal

CONFIG = "ranking_xgboost"
BOOSTER = "booster.json"


def found_or_trained(workspace: Path, settings: dict[str, Any]) -> Path:
    """Give the bundle that an earlier run left in the workspace, or train it."""
    note = workspace / "ranker"
    if not note.exists():
        shape = (settings["features"], settings["lists"], settings["documents"])
        note.write_text(str(_trained(workspace, *shape, settings["settings"])))
    return Path(note.read_text())


def _trained(workspace: Path, n_features: int, n_lists: int, n_documents: int, settings: Sequence[str]) -> Path:
    """Train by `ranking_xgboost` on SVMrank files with `n_features` features in 0..1; give the bundle's directory.

    Beside it, `booster.json` in the workspace holds the same trees as XGBoost writes them.
    """
    data = workspace / "lists"
    data.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    weights = generator.normal(size=n_features)
    n_queries = 0
    for split, n in (("train", n_lists), ("valid", n_lists // 4), ("test", n_lists // 4)):
        lines = []
        for query in range(n_queries, n_queries + n):
            features_DF = generator.random((n_documents, n_features)).round(4)
            scores = features_DF @ weights + np.sin(9 * features_DF[:, 0] * features_DF[:, 1])
            grades = np.digitize(scores, np.quantile(scores, [0.7, 0.9]))
            for grade, row in zip(grades, features_DF, strict=True):
                values = " ".join(f"{name}:{value}" for name, value in enumerate(row, start=1))
                lines.append(f"{grade} qid:{query} {values}\n")
        n_queries += n
        (data / f"{split}.txt").write_text("".join(lines))
    bundle = Path(train("ranking", CONFIG, data, "limit-ltr", workspace, settings)["bundle"])
    # A bundle holds ONNX alone: the same training once more gives XGBoost's own file of the same trees.
    config: Any = parse(read(CONFIG, settings), "ranking")
    fitted: Any = ranking.fit(config, ranking.read(data, config), Terminal(), Checkpoint(workspace / "booster", ""))
    fitted.booster.save_model(workspace / BOOSTER)
    return bundle

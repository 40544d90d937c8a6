"""Judged lists whose relevance is known: it follows from one feature among others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from models.ranking import RankRequest
from training.data.splits import RankingRows


def ranking_rows(
    n_lists: int = 20, n_documents: int = 8, seed: int = 0, prefix: str = "q", **features: np.ndarray
) -> RankingRows:
    """Lists with relevance 0, 2 or 4 that `match` tells up to noise; `features` [n_lists, n_documents] are added."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([0, 2, 4], (n_lists, n_documents)).astype(np.float32)
    columns = {
        "match": (labels + generator.normal(0, 0.8, labels.shape)).astype(np.float32),
        "price": generator.normal(50, 20, labels.shape).astype(np.float32),
        **features,
    }
    lists = tuple(
        RankRequest(
            tuple(f"{prefix}{row}d{place}" for place in range(n_documents)),
            features={name: np.asarray(values[row], dtype=np.float32) for name, values in columns.items()},
        )
        for row in range(n_lists)
    )
    return RankingRows(
        tuple(f"{prefix}{row}" for row in range(n_lists)),
        lists,
        tuple(labels),
        tuple(columns),
        f"{prefix}.txt",
        "0" * 64,
    )


def words(rows: RankingRows, chosen: Iterable[int]) -> set[str]:
    """The ids of the chosen queries."""
    return {rows.query_ids[row] for row in chosen}

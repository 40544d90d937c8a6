"""Documents whose relevance the other lists contradict."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.checks.confident import N_FOLDS
from training.checks.finding import MAX_EXAMPLES, Cell, Finding, count, examples, percent
from training.checks.judged import Judged
from training.data.splits import RankingRows

_FAR = 3.0
"""Distance from the prediction, in root mean squared errors, from which a judgement is doubted."""
_PARAMETERS = {
    "max_depth": 4,
    "eta": 0.15,
    "tree_method": "hist",
    "max_bin": 64,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "nthread": 1,
}
_N_TREES = 40


def judgement_noise(train: Judged, rows: RankingRows, seed: int) -> list[Finding]:
    """Find the documents of train whose relevance is far from what a cross-validated model predicts."""
    if not train.names or train.lists[-1] + 1 < N_FOLDS:
        return []
    suspects, predicted_N = judgement_suspects(train, seed)
    if not len(suspects):
        return []
    starts = np.searchsorted(train.lists, train.lists, side="left")
    shown: list[dict[str, Cell]] = []
    for document in suspects[:MAX_EXAMPLES].tolist():
        row = int(train.chosen[train.lists[document]])
        request, place = rows.lists[row], int(document - starts[document])
        shown.append(
            {
                "query": request.text or rows.query_ids[row],
                "document": request.ids[place],
                **({} if request.texts is None else {"title": request.texts[place]}),
                "relevance": int(train.labels[document]),
                "predicted": round(float(predicted_N[document]), 2),
            }
        )
    sentence = (
        f"{count(len(suspects), 'train document')} ({percent(len(suspects), len(train.labels))}){train.seen} may be "
        f"judged wrongly: the other lists predict a relevance more than {_FAR:g} standard errors away; look at them, "
        "the farthest first"
    )
    return [Finding("judgement_noise", "note", len(suspects), sentence, examples(shown))]


def judgement_suspects(train: Judged, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give the documents that are doubted, the farthest first, and the predicted relevance of all [N]."""
    predicted_N = cross_validated_scores(train.features, train.labels, train.lists, seed)
    errors_N = np.abs(train.labels - predicted_N)
    order = np.argsort(-errors_N, kind="stable")
    return order[errors_N[order] > _FAR * np.sqrt(np.mean(errors_N**2))], predicted_N


def cross_validated_scores(
    features_NF: NDArray[np.float32], labels_N: NDArray[np.float32], lists_N: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """Predict each document's relevance [N] by 40 boosted trees grown on four fifths of the other lists.

    A feature is seen as it is and as its distance from the list's mean in the list's standard deviations: relevance is
    judged within a list.
    """
    # XGBoost takes a second to import, and every training imports this file.
    import xgboost

    both_NF = np.concatenate([features_NF, _within_lists(features_NF, lists_N)], axis=1)
    folds_N = (np.random.default_rng(seed).permutation(lists_N[-1] + 1) % N_FOLDS)[lists_N]
    predicted_N = np.empty(len(labels_N))
    for fold in range(N_FOLDS):
        is_held = folds_N == fold
        if is_held.all() or not is_held.any():
            predicted_N[is_held] = labels_N.mean()
            continue
        matrix = xgboost.QuantileDMatrix(both_NF[~is_held], labels_N[~is_held], max_bin=64, nthread=1)
        booster = xgboost.train(_PARAMETERS | {"seed": seed}, matrix, _N_TREES)
        predicted_N[is_held] = booster.inplace_predict(both_NF[is_held])
    return predicted_N


def _within_lists(features_NF: NDArray[np.float32], lists_N: NDArray[np.int64]) -> NDArray[np.float32]:
    starts_L = np.searchsorted(lists_N, np.arange(lists_N[-1] + 1))
    is_known_NF = ~np.isnan(features_NF)
    filled_NF = np.where(is_known_NF, features_NF, 0).astype(np.float64)
    n_LF = np.maximum(np.add.reduceat(is_known_NF.astype(np.float64), starts_L), 1)
    means_LF = np.add.reduceat(filled_NF, starts_L) / n_LF
    away_NF = np.where(is_known_NF, features_NF - means_LF[lists_N], 0.0)
    spread_LF = np.sqrt(np.add.reduceat(away_NF**2, starts_L) / n_LF)
    scaled_NF = away_NF / np.maximum(spread_LF[lists_N], 1e-9)
    return np.where(is_known_NF, scaled_NF, np.nan).astype(np.float32)

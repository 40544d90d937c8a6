"""Numeric features: constant, missing, twice the same, suspiciously good, and other in test than in train."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from training.checks.finding import Cell, Chart, Finding, Severity, count, examples, percent, some, verb
from training.checks.judged import Judged
from training.checks.judgements import cross_validated_scores
from training.checks.ndcg import expected_ndcg

_MOSTLY = 0.5
_NEARLY_ALL = 0.99
"""Share of missing values from which a feature is counted, and warned of."""
_PERFECT = 0.98
"""ndcg@10 of a single feature that only a leak reaches."""
_STRONG = 0.9
_MIN_OTHERS = 3
"""ndcg@10 of a single feature from which it is held against so many others, or more, together."""
_DRIFTED = 0.25
"""Population stability index from which a shift is called significant (Siddiqi 2006, "Credit Risk Scorecards")."""
_N_BINS = 10
_MAX_BARS = 20


def features(train: Judged, test: Judged | None, seed: int) -> list[Finding]:
    """Find what is wrong with features on their own, and what they give away about the label."""
    if not train.names:
        return []
    missing_F = np.isnan(train.features).mean(axis=0)
    is_constant_F = _constant(train.features)
    found = [*_constants(train, is_constant_F), *_missing(train, missing_F), *_twins(train, is_constant_F)]
    found += _leaks(train, is_constant_F, seed)
    if test is not None:
        found += _drift(train, test, is_constant_F)
    return found


def _constant(features_NF: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which features have one value, or are missing, in all documents."""
    first_F = features_NF[0]
    return _same(features_NF, first_F)


def _same(features_NF: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which features [F] equal those of `others` ([F] or [N, F]) in all documents."""
    both_NF = (features_NF == others) | (np.isnan(features_NF) & np.isnan(others))
    return np.asarray(both_NF.all(axis=0))


def _constants(train: Judged, is_constant_F: NDArray[np.bool_]) -> list[Finding]:
    found = []
    constant = [name for name, is_constant in zip(train.names, is_constant_F, strict=True) if is_constant]
    if constant:
        rows: list[Mapping[str, Cell]] = [
            {"feature": name, "value": _shown(train.features[0, train.names.index(name)])} for name in constant
        ]
        sentence = (
            f"{count(len(constant), 'feature')} ({some(constant)}) {verb(len(constant), 'has', 'have')} one value in "
            f"all train documents{train.seen}: nothing can be learnt from them; fill or drop them"
        )
        found.append(Finding("constant_features", "warning", len(constant), sentence, examples(rows)))
    firsts_N = np.searchsorted(train.lists, train.lists, side="left")
    same_F = _same(train.features, train.features[firsts_N])
    of_query = [
        name
        for name, is_same, is_constant in zip(train.names, same_F, is_constant_F, strict=True)
        if is_same and not is_constant
    ]
    if of_query:
        sentence = (
            f"{count(len(of_query), 'feature')} ({some(of_query)}) {verb(len(of_query), 'is', 'are')} the same for all "
            "documents of a query: they order nothing alone, only together with others"
        )
        found.append(Finding("query_features", "note", len(of_query), sentence))
    return found


def _missing(train: Judged, missing_F: NDArray[np.float64]) -> list[Finding]:
    order = [int(column) for column in np.argsort(-missing_F, kind="stable") if missing_F[column] > 0]
    if not order:
        return []
    mostly = [train.names[column] for column in order if missing_F[column] >= _MOSTLY]
    shown = order[:_MAX_BARS]
    chart = Chart(
        f"missing values in train in %{f', the {_MAX_BARS} worst of {len(order)}' if len(order) > _MAX_BARS else ''}",
        tuple(train.names[column] for column in shown),
        {"train": tuple(float(100 * missing_F[column]) for column in shown)},
        "%",
    )
    worst = order[0]
    sentence = (
        f"{count(len(order), 'feature')} {verb(len(order), 'has', 'have')} missing values, most of all "
        f"{train.names[worst]} ({percent(missing_F[worst], 1)})"
    )
    if mostly:
        sentence += (
            f"; {len(mostly)} {verb(len(mostly), 'is', 'are')} missing in half of the documents or more: look whether "
            f"{verb(len(mostly), 'it is', 'they are')} read from the right place"
        )
    severity: Severity = "warning" if missing_F[worst] >= _NEARLY_ALL else "note"
    return [Finding("missing_features", severity, float(missing_F[worst]), sentence, chart=chart)]


def _twins(train: Judged, is_constant_F: NDArray[np.bool_]) -> list[Finding]:
    groups: dict[bytes, list[str]] = {}
    for column, name in enumerate(train.names):
        if not is_constant_F[column]:
            # + 0.0: of the two zeros one.
            groups.setdefault((train.features[:, column] + 0.0).tobytes(), []).append(name)
    twins = [names for names in groups.values() if len(names) > 1]
    if not twins:
        return []
    n_spare = sum(len(names) - 1 for names in twins)
    rows: list[Mapping[str, Cell]] = [{"feature": names[0], "the same": some(names[1:], 20)} for names in twins]
    sentence = (
        f"{count(n_spare, 'feature')} {verb(n_spare, 'repeats', 'repeat')} another one in all train documents"
        f"{train.seen} ({some([' = '.join(names) for names in twins], 3)}): drop the copies"
    )
    return [Finding("duplicate_features", "note", n_spare, sentence, examples(rows))]


def _leaks(train: Judged, is_constant_F: NDArray[np.bool_], seed: int) -> list[Finding]:
    scores = _single_scores(train, is_constant_F)
    if not scores:
        return []
    ranked = sorted(scores, key=lambda column: -scores[column][0])
    chart = Chart(
        f"ndcg@10 of ordering train by one feature, the best {min(len(ranked), _MAX_BARS)} of {len(train.names)}",
        tuple(f"{train.names[column]} {scores[column][1]}" for column in ranked[:_MAX_BARS]),
        {"train": tuple(scores[column][0] for column in ranked[:_MAX_BARS])},
        "ndcg@10",
    )
    at_random = expected_ndcg(np.zeros(len(train.labels)), train.labels, train.lists)
    best, rows = ranked[0], [_leak_row(train, scores, column) for column in ranked]
    perfect = [column for column in ranked if scores[column][0] >= _PERFECT and at_random < _PERFECT]
    if perfect:
        names = [train.names[column] for column in perfect]
        sentence = (
            f"{some(names)} alone {verb(len(names), 'orders', 'order')} train almost perfectly (ndcg@10 "
            f"{scores[best][0]:.3f}, a random order {at_random:.3f}): most likely the label leaks into "
            f"{verb(len(names), 'it', 'them')}; drop what is not known when a query comes in"
        )
        return [Finding("leaking_features", "warning", scores[best][0], sentence, examples(rows), chart)]
    if scores[best][0] >= _STRONG and len(ranked) > _MIN_OTHERS:
        together = _ndcg_without(train, best, seed)
        if scores[best][0] > together:
            sentence = (
                f"{train.names[best]} alone orders train better (ndcg@10 {scores[best][0]:.3f}) than all other "
                f"features together do cross-validated ({together:.3f}): look whether it is known when a query comes in"
            )
            return [Finding("leaking_features", "warning", scores[best][0], sentence, examples(rows), chart)]
    sentence = (
        f"the best single feature is {train.names[best]} (ndcg@10 {scores[best][0]:.3f} on train, a random order "
        f"{at_random:.3f}): none gives the label away"
    )
    return [Finding("single_features", "note", scores[best][0], sentence, chart=chart)]


def _single_scores(train: Judged, is_constant_F: NDArray[np.bool_]) -> dict[int, tuple[float, str]]:
    """Give each feature's ndcg@10 in its better direction, which is named; NaN everywhere where no list is judged."""
    scores: dict[int, tuple[float, str]] = {}
    for column in np.flatnonzero(~is_constant_F).tolist():
        values_N = train.features[:, column]
        falling = expected_ndcg(values_N, train.labels, train.lists)
        rising = expected_ndcg(-values_N, train.labels, train.lists)
        if not np.isnan(falling):
            scores[column] = max((falling, "(high first)"), (rising, "(low first)"))
    return scores


def _leak_row(train: Judged, scores: Mapping[int, tuple[float, str]], column: int) -> dict[str, Cell]:
    return {
        "feature": train.names[column],
        "order": scores[column][1].strip("()"),
        "ndcg@10": round(scores[column][0], 4),
    }


def _ndcg_without(train: Judged, column: int, seed: int) -> float:
    others_NF = np.delete(train.features, column, axis=1)
    scores_N = cross_validated_scores(others_NF, train.labels, train.lists, seed)
    return expected_ndcg(scores_N, train.labels, train.lists)


def _drift(train: Judged, test: Judged, is_constant_F: NDArray[np.bool_]) -> list[Finding]:
    found = {
        name: stability_index(train.features[:, column], test.features[:, column])
        for column, name in enumerate(train.names)
        if not is_constant_F[column]
    }
    drifted = sorted((name for name, index in found.items() if index >= _DRIFTED), key=lambda name: -found[name])
    if not drifted:
        return []
    rows: list[Mapping[str, Cell]] = []
    for name in drifted:
        column = train.names.index(name)
        medians = [_median(split.features[:, column]) for split in (train, test)]
        rows.append(
            {"feature": name, "index": round(found[name], 3), "median in train": medians[0], "in test": medians[1]}
        )
    chart = Chart(
        "population stability index between train and test",
        tuple(drifted[:_MAX_BARS]),
        {"train to test": tuple(found[name] for name in drifted[:_MAX_BARS])},
        "index",
    )
    sentence = (
        f"{count(len(drifted), 'feature')} ({some(drifted)}) {verb(len(drifted), 'is', 'are')} distributed otherwise "
        f"in test than in train (stability index {_DRIFTED} or more): a test of another time or place measures that"
    )
    return [Finding("drift", "note", len(drifted), sentence, examples(rows), chart)]


def stability_index(train_N: NDArray[np.float32], test_M: NDArray[np.float32]) -> float:
    """Population stability index: sum over bins of (q - p) ln(q / p), p and q the shares of train and of test.

    Bins: tenths of train, and one of missing values; half a value is added to each so that empty bins stay finite.
    """
    known_N = train_N[~np.isnan(train_N)]
    edges = np.unique(np.quantile(known_N, np.arange(1, _N_BINS) / _N_BINS)) if len(known_N) else np.empty(0)
    shares = []
    for values in (train_N, test_M):
        places = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="left"))
        counts = np.bincount(places, minlength=len(edges) + 2) + 0.5
        shares.append(counts / counts.sum())
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def _median(values_N: NDArray[np.float32]) -> Cell:
    known_N = values_N[~np.isnan(values_N)]
    return float(f"{np.median(known_N):.4g}") if len(known_N) else "missing"


def _shown(value: np.float32) -> Cell:
    return "missing" if np.isnan(value) else float(f"{value:.6g}")

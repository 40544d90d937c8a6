"""How good answers are: one definition of every metric, for training, evaluation, promotion and studies.

Shapes: N examples, D documents of one list. Whatever is a quotient of sums over examples is a `Ratio`, so that
`models.bootstrap` can resample it without asking the model again. A metric that the examples leave undefined (recall
of `oos` where no row is `oos`) is left out of a result; it is never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.manifest import OOS_LABEL, FamilyName
from models.tagging import Span, spans

MAIN_METRIC: dict[FamilyName, str] = {"intent": "accuracy", "tagging": "span_f1", "ranking": "ndcg@10"}

N_CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric that is sum(numerator_N) / sum(denominator_N); row i is what example i adds to each."""

    numerator_N: NDArray[np.float64]  # noqa: N815
    denominator_N: NDArray[np.float64]  # noqa: N815

    @property
    def value(self) -> float:
        """The metric over all examples; NaN where the denominators sum to 0, as it is undefined then."""
        denominator = float(self.denominator_N.sum())
        return float(self.numerator_N.sum()) / denominator if denominator else math.nan

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Ratio:
        """The same metric over the chosen examples (indices or a mask)."""
        return Ratio(self.numerator_N[chosen], self.denominator_N[chosen])


def intent_metrics(
    labels: Sequence[str], predicted: Sequence[str], likeliest: Sequence[str] | None = None
) -> dict[str, Ratio]:
    """Accuracy, accuracy_in_scope (rows that are not `oos`), oos_recall, oos_precision and false_alarms_per_1000.

    A gold label that the model does not know is an error like any other. Without `oos` rows there are no oos_recall and
    oos_precision. false_alarms_per_1000: in-scope rows that are called `oos`, of a thousand of them.
    likeliest: the label other than `oos` that the model prefers for each row, whatever it decides on scope; with it,
    label_accuracy says how many in-scope rows have the right one, and accuracy_in_scope how many are also let through.
    """
    gold_N, predicted_N = np.array(labels, dtype=object), np.array(predicted, dtype=object)
    correct_N = gold_N == predicted_N
    oos_N, called_oos_N = gold_N == OOS_LABEL, predicted_N == OOS_LABEL
    ratios = {
        "accuracy": _ratio(correct_N, np.ones(len(gold_N))),
        "accuracy_in_scope": _ratio(correct_N & ~oos_N, ~oos_N),
    }
    if called_oos_N.any() or oos_N.any():
        ratios["false_alarms_per_1000"] = _ratio(1000.0 * (called_oos_N & ~oos_N), ~oos_N)
    if likeliest is not None:
        ratios["label_accuracy"] = _ratio((gold_N == np.array(likeliest, dtype=object)) & ~oos_N, ~oos_N)
    if oos_N.any():
        ratios["oos_recall"] = _ratio(correct_N & oos_N, oos_N)
        ratios["oos_precision"] = _ratio(correct_N & oos_N, called_oos_N)
    return _defined(ratios)


def label_set_metrics(label_sets: Sequence[Iterable[str]], predicted: Sequence[Iterable[str]]) -> dict[str, Ratio]:
    """Micro label_f1, label_precision and label_recall over all (text, label) of texts that may have several labels."""
    pairs = [(set(gold), set(guess)) for gold, guess in zip(label_sets, predicted, strict=True)]
    counts = [(len(gold & guess), len(gold), len(guess)) for gold, guess in pairs]
    right_N, gold_N, guessed_N = np.array(counts).reshape(-1, 3).T
    return _defined(
        {
            "label_f1": _ratio(2 * right_N, gold_N + guessed_N),
            "label_precision": _ratio(right_N, guessed_N),
            "label_recall": _ratio(right_N, gold_N),
        }
    )


def tagging_metrics(
    tags: Sequence[Sequence[str]],
    predicted_tags: Sequence[Sequence[str]],
    labels: Sequence[str] | None = None,
    predicted_labels: Sequence[str] | None = None,
) -> dict[str, Ratio]:
    """Micro span_f1, span_precision and span_recall, exact_match, and intent_accuracy where there are labels.

    A span counts where type, start and end are all right (CoNLL-2000); F1 = 2 tp / (predicted + gold). exact_match asks
    for every tag of the text to be right and, with labels, the label too.
    """
    found = [(set(spans(gold)), set(spans(guess))) for gold, guess in zip(tags, predicted_tags, strict=True)]
    right_N, gold_N, guessed_N = np.array([_counts(gold, guess) for gold, guess in found]).reshape(-1, 3).T
    exact_N = np.array(
        [list(gold) == list(guess) for gold, guess in zip(tags, predicted_tags, strict=True)], dtype=bool
    )
    ratios = {
        "span_f1": _ratio(2 * right_N, gold_N + guessed_N),
        "span_precision": _ratio(right_N, guessed_N),
        "span_recall": _ratio(right_N, gold_N),
    }
    if labels is not None and predicted_labels is not None:
        pairs = zip(labels, predicted_labels, strict=True)
        correct_N = np.array([gold == guess for gold, guess in pairs], dtype=bool)
        exact_N &= correct_N
        ratios["intent_accuracy"] = _ratio(correct_N, np.ones(len(correct_N)))
    ratios["exact_match"] = _ratio(exact_N, np.ones(len(exact_N)))
    return _defined(ratios)


def span_f1_by_type(tags: Sequence[Sequence[str]], predicted_tags: Sequence[Sequence[str]]) -> dict[str, Ratio]:
    """span_f1 of every type that is gold or predicted somewhere, by name."""
    found = [(set(spans(gold)), set(spans(guess))) for gold, guess in zip(tags, predicted_tags, strict=True)]
    types = sorted({span.type for both in found for some in both for span in some})
    row = {name: index for index, name in enumerate(types)}
    counts_TN = np.zeros((3, len(types), len(found)))
    for column, (gold, guess) in enumerate(found):
        for kind, some in enumerate((gold & guess, gold, guess)):
            for span in some:
                counts_TN[kind, row[span.type], column] += 1
    right_TN, gold_TN, guessed_TN = counts_TN
    return {name: Ratio(2 * right_TN[row[name]], gold_TN[row[name]] + guessed_TN[row[name]]) for name in types}


def ranking_metrics(labels: Sequence[NDArray[np.float32]], scores: Sequence[NDArray[np.floating]]) -> dict[str, Ratio]:
    """ndcg@5, ndcg@10, ndcg@10_empty_zero, mrr and map over lists, each list ordered by `served_order`.

    A list without a relevant document (label above 0) is left out, except by ndcg@10_empty_zero, where it counts 0.
    """
    rows = [_list_figures(labels_D, scores_D) for labels_D, scores_D in zip(labels, scores, strict=True)]
    ndcg5_N, ndcg10_N, mrr_N, map_N, relevant_N = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    return _defined(
        {
            "ndcg@5": _ratio(ndcg5_N, relevant_N),
            "ndcg@10": _ratio(ndcg10_N, relevant_N),
            "ndcg@10_empty_zero": _ratio(ndcg10_N, np.ones(len(rows))),
            "mrr": _ratio(mrr_N, relevant_N),
            "map": _ratio(map_N, relevant_N),
        }
    )


def served_order(scores_D: NDArray[np.floating]) -> NDArray[np.int64]:
    """Positions by falling score; equal scores keep the order they came in, as the gateway serves them.

    Other libraries differ: scikit-learn averages over all orders of a tie, trec_eval sorts a tie by document id.
    """
    return np.argsort(-np.asarray(scores_D, dtype=np.float64), kind="stable")


def dcg(ordered_labels_D: ArrayLike, k: int | None = None) -> float:
    """Discounted cumulative gain of labels in ranked order: sum over ranks r <= k of (2^label - 1) / log2(r + 1).

    The exponential gain of Burges et al. 2005 (LETOR); Järvelin & Kekäläinen 2002 take the label itself as gain.
    """
    top = np.asarray(ordered_labels_D, dtype=np.float64)[:k]
    return float(np.sum((np.exp2(top) - 1) / np.log2(np.arange(2, len(top) + 2))))


def ndcg(labels_D: NDArray[np.float32], scores_D: NDArray[np.floating], k: int | None = None) -> float:
    """DCG at k over the DCG of the best order; NaN for a list without a relevant document."""
    return _ndcg(np.asarray(labels_D)[served_order(scores_D)], k)


def reciprocal_rank(labels_D: NDArray[np.float32], scores_D: NDArray[np.floating]) -> float:
    """1 / rank of the first document with a label above 0; NaN where there is none."""
    return _reciprocal_rank(np.asarray(labels_D)[served_order(scores_D)])


def average_precision(labels_D: NDArray[np.float32], scores_D: NDArray[np.floating]) -> float:
    """Mean, over documents with a label above 0, of the precision at their rank; NaN where there is none."""
    return _average_precision(np.asarray(labels_D)[served_order(scores_D)])


def class_indices(labels: Sequence[str], predicted: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Gold and predicted labels as numbers from 0, the same number for the same label: what `macro_f1` takes."""
    numbers: dict[str, int] = {}
    gold = [numbers.setdefault(label, len(numbers)) for label in labels]
    guess = [numbers.setdefault(label, len(numbers)) for label in predicted]
    return np.array(gold, dtype=np.int64), np.array(guess, dtype=np.int64)


def macro_f1(gold_N: NDArray[np.int64], predicted_N: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that are gold or predicted somewhere, each counting the same; NaN without examples.

    A class that is gold but never predicted, or the reverse, counts 0 (scikit-learn's `zero_division=0`).
    """
    if not len(gold_N):
        return math.nan
    n_classes = int(max(gold_N.max(), predicted_N.max())) + 1
    sums_C = np.bincount(gold_N, minlength=n_classes) + np.bincount(predicted_N, minlength=n_classes)
    right_C = np.bincount(gold_N[gold_N == predicted_N], minlength=n_classes)
    present_C = sums_C > 0
    return float(np.mean(2 * right_C[present_C] / sums_C[present_C]))


def auroc(scores_N: NDArray[np.floating], is_positive_N: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a positive example has a higher score than a negative one, ties half.

    By the rank sum of Mann and Whitney (1947); NaN without examples of either kind.
    """
    n_positive = int(np.count_nonzero(is_positive_N))
    n_negative = len(scores_N) - n_positive
    if not n_positive or not n_negative:
        return math.nan
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N = np.asarray(scores_N)[order_N]
    starts = np.flatnonzero(np.concatenate([[True], sorted_N[1:] > sorted_N[:-1]]))
    ends = np.append(starts[1:], len(sorted_N))
    mean_ranks_N = np.repeat((starts + 1 + ends) / 2, ends - starts)
    rank_sum = float(mean_ranks_N[np.asarray(is_positive_N)[order_N]].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def ece(confidences_N: NDArray[np.floating], correct_N: NDArray[np.bool_], n_bins: int = N_CALIBRATION_BINS) -> float:
    """Expected calibration error: sum over bins of (share of examples) x |accuracy - mean confidence|; in [0, 1].

    Guo et al. 2017, equation 3, with `n_bins` bins ((m - 1) / n_bins, m / n_bins] of equal width; NaN without examples.
    """
    if not len(confidences_N):
        return math.nan
    confidences = np.asarray(confidences_N, dtype=np.float64)
    bins_N = calibration_bins(confidences, n_bins)
    gaps = np.bincount(bins_N, weights=np.asarray(correct_N, dtype=np.float64) - confidences, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(confidences))


def calibration_bins(confidences_N: NDArray[np.floating], n_bins: int = N_CALIBRATION_BINS) -> NDArray[np.int64]:
    """Bin of every confidence, from 0: bin m holds (m / n_bins, (m + 1) / n_bins], the first one also 0."""
    bins_N = np.ceil(np.asarray(confidences_N, dtype=np.float64) * n_bins).astype(np.int64) - 1
    return np.clip(bins_N, 0, n_bins - 1)


def _list_figures(
    labels_D: NDArray[np.float32], scores_D: NDArray[np.floating]
) -> tuple[float, float, float, float, float]:
    ordered_D = np.asarray(labels_D)[served_order(scores_D)]
    if not (ordered_D > 0).any():
        return 0.0, 0.0, 0.0, 0.0, 0.0
    return (_ndcg(ordered_D, 5), _ndcg(ordered_D, 10), _reciprocal_rank(ordered_D), _average_precision(ordered_D), 1.0)


def _ndcg(ordered_labels_D: NDArray[np.float32], k: int | None) -> float:
    best = dcg(np.sort(ordered_labels_D)[::-1], k)
    return dcg(ordered_labels_D, k) / best if best else math.nan


def _reciprocal_rank(ordered_labels_D: NDArray[np.float32]) -> float:
    relevant = np.flatnonzero(ordered_labels_D > 0)
    return 1.0 / (int(relevant[0]) + 1) if len(relevant) else math.nan


def _average_precision(ordered_labels_D: NDArray[np.float32]) -> float:
    ranks = np.flatnonzero(ordered_labels_D > 0) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else math.nan


def _counts(gold: set[Span], guess: set[Span]) -> tuple[int, int, int]:
    return len(gold & guess), len(gold), len(guess)


def _ratio(numerator_N: ArrayLike, denominator_N: ArrayLike) -> Ratio:
    return Ratio(np.asarray(numerator_N, dtype=np.float64), np.asarray(denominator_N, dtype=np.float64))


def _defined(ratios: dict[str, Ratio]) -> dict[str, Ratio]:
    return {name: ratio for name, ratio in ratios.items() if ratio.denominator_N.any()}

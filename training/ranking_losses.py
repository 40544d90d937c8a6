"""Losses over candidate lists by name, and their weighted sum as a `training.loop.Loss`.

Each takes scores [B, D], labels [B, D] (whole numbers from 0) and a mask [B, D] that is False where a list is padded,
and gives the mean over the B lists. Gain of a label: 2^label - 1. Shapes: B lists of a batch, D documents of the
longest, R ranks (as many as documents).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from training.config import RankingLossName
from training.loop import Loss

APPROX_TEMPERATURE = 0.1
"""Of ApproxNDCG: Bruch et al. 2019, section 4, search around 1 / alpha = 0.1."""
SORT_TEMPERATURE = 1.0
"""Of NeuralNDCG: the value of Pobrotyn and Bialobrzeski 2021, section 4.2."""
_N_SINKHORN = 30
_NEVER = -1e9

RankingLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def pointwise(scores_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor, *, max_label: float = 1.0) -> Tensor:
    """Cross-entropy of sigmoid(score) and label / max_label, mean over the documents of each list."""
    losses_BD = functional.binary_cross_entropy_with_logits(scores_BD, labels_BD / max_label, reduction="none")
    return ((losses_BD * mask_BD).sum(1) / mask_BD.sum(1)).mean()


def listnet(scores_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor) -> Tensor:
    """Cross-entropy of the top-one distributions: -sum_j softmax(labels)_j log softmax(scores)_j.

    Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach", eq. 4 with k = 1.
    """
    targets_BD = labels_BD.masked_fill(~mask_BD, _NEVER).softmax(1)
    logs_BD = scores_BD.masked_fill(~mask_BD, _NEVER).log_softmax(1)
    return -(targets_BD * logs_BD.masked_fill(~mask_BD, 0)).sum(1).mean()


def approx_ndcg(scores_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor) -> Tensor:
    """1 - NDCG with the smooth rank pi_j = 1 + sum_{i != j} sigmoid((s_i - s_j) / T) in place of the rank.

    Qin, Liu and Li 2010, "A general approximation framework for direct optimization of information retrieval
    measures", eq. 11 and 14; T: APPROX_TEMPERATURE, as Bruch et al. 2019, "Revisiting Approximate Metric Optimization
    in the Age of Deep Neural Networks". A list without a relevant document counts 0.
    """
    differences_BDD = scores_BD[:, :, None] - scores_BD[:, None, :]
    above_BDD = torch.sigmoid(differences_BDD / APPROX_TEMPERATURE) * mask_BD[:, :, None]
    # A document compared with itself gives 1/2.
    ranks_BD = 0.5 + above_BDD.sum(1)
    gains_BD = _gains(labels_BD, mask_BD)
    return _one_less((gains_BD / torch.log2(1 + ranks_BD)).sum(1), gains_BD)


def neural_ndcg(scores_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor) -> Tensor:
    """1 - NDCG of gains that are sorted softly: DCG = sum_i (P g)_i / log2(i + 1), P the relaxed sorting matrix.

    P of NeuralSort (Grover et al. 2019, eq. 4), P_i = softmax(((n + 1 - 2 i) s - A_s 1) / tau), A_s the absolute
    differences of all scores, made doubly stochastic by Sinkhorn scaling: Pobrotyn and Bialobrzeski 2021,
    "NeuralNDCG", eq. 5 to 8; tau: SORT_TEMPERATURE. A list without a relevant document counts 0.
    """
    gains_BD = _gains(labels_BD, mask_BD)
    sorted_BR = (sorting_matrix(scores_BD, mask_BD, SORT_TEMPERATURE) * gains_BD[:, None, :]).sum(2)
    return _one_less((sorted_BR * _discounts(sorted_BR.shape[1])).sum(1), gains_BD)


def sorting_matrix(scores_BD: Tensor, mask_BD: Tensor, tau: float) -> Tensor:
    """NeuralSort's matrix [B, R, D] after Sinkhorn scaling; rows and columns beyond a list's length are 0."""
    kept_BDD = mask_BD[:, :, None] & mask_BD[:, None, :]
    differences_BD = ((scores_BD[:, :, None] - scores_BD[:, None, :]).abs() * kept_BDD).sum(2)
    n_B1 = mask_BD.sum(1, keepdim=True)
    places_R = torch.arange(1, scores_BD.shape[1] + 1)
    factors_BR = n_B1 + 1 - 2 * places_R
    logits_BRD = (factors_BR[:, :, None] * scores_BD[:, None, :] - differences_BD[:, None, :]) / tau
    matrix_BRD = logits_BRD.masked_fill(~mask_BD[:, None, :], _NEVER).softmax(2) * kept_BDD
    # Sums of padded rows and columns are 0: divided by 1 they stay so, and have a gradient.
    padding_BD = (~mask_BD).to(scores_BD.dtype)
    for _ in range(_N_SINKHORN):
        matrix_BRD = matrix_BRD / (matrix_BRD.sum(1, keepdim=True) + padding_BD[:, None, :] + 1e-10)
        matrix_BRD = matrix_BRD / (matrix_BRD.sum(2, keepdim=True) + padding_BD[:, :, None] + 1e-10)
    return matrix_BRD


LOSSES: Mapping[RankingLossName, RankingLoss] = {
    "pointwise": pointwise,
    "listnet": listnet,
    "approx_ndcg": approx_ndcg,
    "neural_ndcg": neural_ndcg,
}


def ranking_loss(labels: Sequence[NDArray[np.float32]], weights: Mapping[RankingLossName, float]) -> Loss:
    """Weighted sum of named losses of `score`: [B, D] padded, or the lists' scores end to end [sum of D].

    labels: [D] of every list that may be chosen. `pointwise` divides by the highest of all labels.
    """
    max_label = max(float(labels_D.max()) for labels_D in labels)
    known = [torch.from_numpy(labels_D) for labels_D in labels]

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        chosen_labels = [known[index] for index in chosen]
        lengths = [len(labels_D) for labels_D in chosen_labels]
        scores = outputs["score"]
        if scores.ndim == 1:
            scores = pad_sequence(list(torch.split(scores, lengths)), batch_first=True)
        labels_BD = pad_sequence(chosen_labels, batch_first=True)
        mask_BD = torch.arange(labels_BD.shape[1]) < torch.tensor(lengths)[:, None]
        parts = [
            weight * pointwise(scores, labels_BD, mask_BD, max_label=max_label)
            if name == "pointwise"
            else weight * LOSSES[name](scores, labels_BD, mask_BD)
            for name, weight in weights.items()
        ]
        return torch.stack(parts).sum()

    return loss


def _gains(labels_BD: Tensor, mask_BD: Tensor) -> Tensor:
    return (2.0**labels_BD - 1) * mask_BD


def _discounts(n_ranks: int) -> Tensor:
    return 1 / torch.log2(torch.arange(2, n_ranks + 2, dtype=torch.float32))


def _one_less(dcg_B: Tensor, gains_BD: Tensor) -> Tensor:
    """1 - DCG / ideal DCG, mean over lists; 0 for a list without a gain, which no order makes better."""
    ideal_B = (gains_BD.sort(1, descending=True).values * _discounts(gains_BD.shape[1])).sum(1)
    ndcg_B = torch.where(ideal_B > 0, dcg_B / ideal_B.clamp(min=1e-10), 1.0)
    return (1 - ndcg_B).mean()

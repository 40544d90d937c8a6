"""What a network is trained to make small, a function a question; each gives a `training.loop.Loss`.

Shapes: N examples, B examples of a batch, T tokens, C intent labels, K tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.networks.crf import Crf
from training.loop import Loss

IGNORED = -100
"""Target of a token that is not the first of its word, and of padding."""


def intent_loss(targets_N: NDArray[np.int64], *, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of `intent_logits` [B, C], mean over texts."""

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        targets_B = torch.from_numpy(targets_N[chosen])
        return functional.cross_entropy(outputs["intent_logits"], targets_B, label_smoothing=label_smoothing)

    return loss


def labels_loss(is_label_NC: NDArray[np.bool_], *, label_smoothing: float = 0.0) -> Loss:
    """Binary cross-entropy of each of `intent_logits` [B, C], mean over texts of the sum over labels."""
    smoothed_NC = is_label_NC.astype(np.float32) * np.float32(1 - label_smoothing) + np.float32(label_smoothing / 2)

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        targets_BC = torch.from_numpy(smoothed_NC[chosen])
        logits_BC = outputs["intent_logits"]
        return functional.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="sum") / len(chosen)

    return loss


def tag_loss(targets: Sequence[NDArray[np.int64]], *, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of `tag_logits` [B, T, K], mean over words; targets: [T] of every example [N], or IGNORED.

    A text in windows has [windows, T] of them.
    """

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        logits_BTK = outputs["tag_logits"]
        targets_BT = torch.full(logits_BTK.shape[:2], IGNORED)
        for row, row_T in enumerate(row_T for index in chosen for row_T in np.atleast_2d(targets[index])):
            targets_BT[row, : len(row_T)] = torch.from_numpy(row_T)
        total = functional.cross_entropy(
            logits_BTK.flatten(0, 1),
            targets_BT.flatten(),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        # Not the mean of cross_entropy: over a batch in which no word has a token that is NaN.
        return total / (targets_BT != IGNORED).sum().clamp(min=1)

    return loss


def crf_loss(crf: Crf, targets: Sequence[NDArray[np.int64]]) -> Loss:
    """Negative log-likelihood of `tag_logits` under `crf`, mean over words; targets as for `tag_loss`."""

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        rows = [row_T for index in chosen for row_T in np.atleast_2d(targets[index])]
        places = [np.flatnonzero(row_T != IGNORED) for row_T in rows]
        with_words = [row for row, words in enumerate(places) if len(words)]
        lengths = [len(places[row]) for row in with_words]
        logits_BTK = outputs["tag_logits"]
        if not with_words:
            return logits_BTK.sum() * 0.0
        words_BW = np.zeros((len(with_words), max(lengths)), dtype=np.int64)
        targets_BW = np.zeros_like(words_BW)
        for text, row in enumerate(with_words):
            words_BW[text, : lengths[text]] = places[row]
            targets_BW[text, : lengths[text]] = rows[row][places[row]]
        logits_BWK = logits_BTK[torch.tensor(with_words)[:, None], torch.from_numpy(words_BW)]
        return crf.loss(logits_BWK, torch.from_numpy(targets_BW), torch.tensor(lengths))

    return loss


def weighted(losses: Sequence[tuple[float, Loss]]) -> Loss:
    """Sum of losses, each times its weight."""

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        return torch.stack([weight * one(outputs, chosen) for weight, one in losses]).sum()

    return loss
